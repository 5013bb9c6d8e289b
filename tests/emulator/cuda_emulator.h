// CUDA as the kernels see it when g++ compiles them: csrc/kernels/cuda/platform.cuh includes this in place of the
// CUDA headers. Names are CUDA's.
#pragma once

#include <math.h>  // expf and its like, in the global namespace

#include <bit>
#include <cstdint>

#include "kernels/registry.h"
#include "runtime.h"
#include "warp.h"

#define MONARCH_DEVICE inline
#define MONARCH_DEVICE_CALL inline
#define MONARCH_KERNEL inline
#define MONARCH_MOST_THREADS(n)

// The default arguments are the place of the call.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::block_barrier({file, line});
}
inline void __syncwarp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::warp_instruction({file, line}, nullptr, nullptr, true);
}
inline unsigned atomicMax(unsigned* p, unsigned value) {
  unsigned old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(p, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}
[[noreturn]] inline void __trap(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emulator::fail("__trap", {file, line});
}

namespace emulator {

// What kernels/cuda/launch.cuh calls instead of the <<<>>> of nvcc.
template <class Body>
const char* run(int64_t blocks, int64_t layers, int64_t threads, int64_t shared_bytes, const monarch::Exec& exec,
                const Body& body) {
  return launch({blocks, layers, threads, shared_bytes, exec.device->shared_memory}, body);
}

inline float bf16_to_float(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }
// To nearest, ties to even; every NaN becomes the one that CUDA makes.
inline uint16_t float_to_bf16(float v) {
  if (v != v) return 0x7FFF;
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float half_to_float(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline uint16_t float_to_half(float v) { return v != v ? 0x7FFF : std::bit_cast<uint16_t>(static_cast<_Float16>(v)); }

}  // namespace emulator

namespace monarch {
// Dynamic shared memory of the block, as T.
template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulator::shared_memory());
}
}  // namespace monarch
