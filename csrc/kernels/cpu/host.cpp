#include "host.h"

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
    return d;
  }();
  return info;
}

}  // namespace monarch
