#include "host.h"

#include <algorithm>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace monarch {
namespace {

Isa best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  // the feature sets of -march=x86-64-v3 and -v4, with which the kernels are compiled (CMakeLists.txt)
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? Isa::avx512 : v3 ? Isa::avx2 : Isa::generic;
#else
  return Isa::generic;
#endif
}

}  // namespace

const DeviceInfo& host_device() {
  static const DeviceInfo info = [] {
    DeviceInfo d;
    d.kind = DeviceKind::cpu;
    d.isa = best_isa();
#if defined(_SC_LEVEL2_CACHE_SIZE)
    d.l2_bytes = std::max<int64_t>(0, sysconf(_SC_LEVEL2_CACHE_SIZE));
#endif
    return d;
  }();
  return info;
}

}  // namespace monarch
