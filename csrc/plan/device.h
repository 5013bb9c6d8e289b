// Facts about the machine, as data: queried once by kernels/*/host code and passed in, never literals in kernels.
#pragma once

#include <cstdint>

// Exported from libmonarch_ops, for monarch_ops._C.
#define MONARCH_API __attribute__((visibility("default")))

namespace monarch {

enum class DeviceKind : int8_t { cpu, cuda };

// What a kernel needs from the machine. On the CPU every later one includes the earlier ones.
enum class Isa : int8_t { generic, avx2, avx512, cuda, tensor_cores };

struct DeviceInfo {
  DeviceKind kind = DeviceKind::cpu;
  Isa isa = Isa::generic;      // best instruction set of this CPU
  int64_t l2_bytes = 0;        // of a core, or of the whole GPU; 0 where it is not known
  int index = 0;               // CUDA device number
  int multiprocessors = 0;     // CUDA only, as are the next two
  int64_t shared_memory = 0;   // bytes one block may use
  int compute_capability = 0;  // 90 for sm_90
};

}  // namespace monarch
