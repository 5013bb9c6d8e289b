// What a kernel may use of CUDA. nvcc sees the real thing; g++ sees the emulator of tests/emulator, which runs the
// same kernel source on the CPU, one fiber per thread. Kernels include this and nothing of CUDA directly.
#pragma once

#include <cstdint>

#include "../args.h"
#include "../math/complex.h"
#include "../registry.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define MONARCH_DEVICE __device__ __forceinline__
#define MONARCH_DEVICE_CALL inline __device__ __noinline__  // for what would be inlined too often
#define MONARCH_KERNEL __global__
#define MONARCH_MOST_THREADS(n) __launch_bounds__(n, 1)
namespace monarch {
// Dynamic shared memory of the block, as T.
template <class T>
MONARCH_DEVICE T* shared_memory() {
  extern __shared__ __align__(16) unsigned char monarch_shared[];
  return reinterpret_cast<T*>(monarch_shared);
}
}  // namespace monarch
#else
#include "cuda_emulator.h"
#endif

namespace monarch {

// Complex numbers per vector in the work buffers: no SIMD vectors on CUDA.
template <class T>
constexpr int kLanes = 1;

// Storage types of 16-bit tensors: bits only, arithmetic happens in float.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

MONARCH_DEVICE uint32_t bits_of(float v) { return __builtin_bit_cast(uint32_t, v); }
MONARCH_DEVICE float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

MONARCH_DEVICE float load(const float* p) { return *p; }
MONARCH_DEVICE void store(float* p, float v) { *p = v; }
#if defined(__CUDACC__)
MONARCH_DEVICE float load(const Bf16* p) { return __bfloat162float(__ushort_as_bfloat16(p->bits)); }
MONARCH_DEVICE void store(Bf16* p, float v) { p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
MONARCH_DEVICE float load(const Half* p) { return __half2float(__ushort_as_half(p->bits)); }
MONARCH_DEVICE void store(Half* p, float v) { p->bits = __half_as_ushort(__float2half_rn(v)); }
#else
MONARCH_DEVICE float load(const Bf16* p) { return emulator::bf16_to_float(p->bits); }
MONARCH_DEVICE void store(Bf16* p, float v) { p->bits = emulator::float_to_bf16(v); }
MONARCH_DEVICE float load(const Half* p) { return emulator::half_to_float(p->bits); }
MONARCH_DEVICE void store(Half* p, float v) { p->bits = emulator::float_to_half(v); }
#endif

// a / b within two units in the last place; 0 for b above 2^126.
#if defined(__CUDACC__)
MONARCH_DEVICE float quotient(float a, float b) { return __fdividef(a, b); }
#else
MONARCH_DEVICE float quotient(float a, float b) { return a / b; }
#endif

// How many pieces of `size` hold n things.
MONARCH_HD constexpr int64_t pieces(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Row i of batch row b of a tensor that is given: loops have no second version for null.
template <class Io>
MONARCH_DEVICE Io* given_row(const Rows& rows, int64_t b, int64_t i) {
  return static_cast<Io*>(rows.data) + b * rows.batch_stride + i * rows.channel_stride;
}
// The same, null of none.
template <class Io>
MONARCH_DEVICE Io* row_of(const Rows& rows, int64_t b, int64_t i) {
  return rows.data ? given_row<Io>(rows, b, i) : nullptr;
}

// The sum of one value per thread, the same on every thread, always added in the same order. `scratch` is shared
// memory of one float per thread.
MONARCH_DEVICE float block_sum(float value, float* scratch) {
  const int tid = threadIdx.x;
  scratch[tid] = value;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (tid < half) scratch[tid] += scratch[tid + half];
    __syncthreads();
  }
  const float total = scratch[0];
  __syncthreads();
  return total;
}

// Calls f with a tag whose ::type is the storage type of the tensor.
template <class T>
struct Tag {
  using type = T;
};
template <class F>
const char* with_short_io(Scalar io, F f) {  // of 16 bits
  return io == Scalar::bf16 ? f(Tag<Bf16>()) : f(Tag<Half>());
}
template <class F>
const char* with_io(Scalar io, F f) {
  switch (io) {
    case Scalar::f32: return f(Tag<float>());
    default: return with_short_io(io, f);
  }
}

}  // namespace monarch
