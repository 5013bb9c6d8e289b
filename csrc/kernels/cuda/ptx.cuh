// Instructions of a warp that CUDA C++ has no words for, and halves in pairs: the matrix products of the tensor cores
// and what brings their operands into registers. The lane of a thread is q + 4 g, q < 4, g < 8.
#pragma once

#include "platform.cuh"

namespace monarch {

// Neighbouring words, each two neighbouring halves or a float; 16 bytes of them.
template <int N>
struct alignas(4 * N) Words {
  uint32_t w[N];
};
using Quad = Words<4>;

struct FloatPair {
  float low, high;
};

// Both halves of a word.
#if defined(__CUDACC__)
MONARCH_DEVICE uint32_t pack(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(both);
}
MONARCH_DEVICE FloatPair unpack(uint32_t word) {
  const float2 v = __half22float2(reinterpret_cast<const __half2&>(word));
  return {v.x, v.y};
}
MONARCH_DEVICE uint32_t times(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const uint32_t&>(product);
}
#else
MONARCH_DEVICE uint32_t pack(float low, float high) {
  return emulator::float_to_half(low) | uint32_t{emulator::float_to_half(high)} << 16;
}
MONARCH_DEVICE FloatPair unpack(uint32_t word) {
  return {emulator::half_to_float(uint16_t(word)), emulator::half_to_float(uint16_t(word >> 16))};
}
MONARCH_DEVICE uint32_t times(uint32_t a, uint32_t b) {  // products of halves are floats
  const FloatPair x = unpack(a), y = unpack(b);
  return pack(x.low * y.low, x.high * y.high);
}
#endif

MONARCH_DEVICE Quad times(Quad x, uint32_t factor) {
  return {times(x.w[0], factor), times(x.w[1], factor), times(x.w[2], factor), times(x.w[3], factor)};
}

// The lower, or the upper, halves of two words.
MONARCH_DEVICE uint32_t lower_halves(uint32_t a, uint32_t b) { return (a & 0xFFFF) | b << 16; }
MONARCH_DEVICE uint32_t upper_halves(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xFFFF0000); }
MONARCH_DEVICE uint32_t negated(uint32_t halves) { return halves ^ 0x80008000; }

// The thread's number, for a pass that is to work out what depends on it by itself: kept from pass to pass it would
// take registers from all of them.
#if defined(__CUDACC__)
MONARCH_DEVICE int own_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}
// The same number, of which the compiler no longer knows where it comes from: it keeps it rather than work it out once
// more, and works out what depends on it rather than keep it.
MONARCH_DEVICE int opaque(int number) {
  asm volatile("" : "+r"(number));
  return number;
}
#else
inline int own_thread() { return static_cast<int>(threadIdx.x); }
inline int opaque(int number) { return number; }
#endif

// A 16 x 16 matrix A of halves as a lane holds it for mma(): A[g][2q ..], A[g + 8][2q ..], A[g][2q + 8 ..],
// A[g + 8][2q + 8 ..].
using Fragment = Quad;
MONARCH_DEVICE Fragment negated(const Fragment& a) {
  return {negated(a.w[0]), negated(a.w[1]), negated(a.w[2]), negated(a.w[3])};
}

#if defined(__CUDACC__)

// d += A B, B 16 x 8: b0 = B[2q ..][g], b1 = B[2q + 8 ..][g]; d = D[g][2q ..], D[g + 8][2q ..].
MONARCH_DEVICE void mma(float (&d)[4], const Fragment& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.w[0]), "r"(a.w[1]), "r"(a.w[2]), "r"(a.w[3]), "r"(b0), "r"(b1));
}

// Two 16 x 8 matrices B of shared memory as operands of mma(), b0 and b1 of the first one, then of the second. A lane
// names eight halves, a row of which: row lane % 16 of matrix lane / 16.
MONARCH_DEVICE void load_matrices(const Quad* row, uint32_t (&b)[4]) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
               : "r"(address)
               : "memory");
}

#else

inline void mma(float (&d)[4], const Fragment& a, uint32_t b0, uint32_t b1, const char* file = __builtin_FILE(),
                int line = __builtin_LINE()) {
  emulator::mma(d, a.w, b0, b1, {file, line});
}
inline void load_matrices(const Quad* row, uint32_t (&b)[4], const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
  emulator::load_matrices_transposed(row, b, {file, line});
}

#endif

// What is on its way while a thread goes on: sixteen bytes from device memory to shared memory, of which the first
// `bytes` are copied and the others are zero, and which nobody may look at before the same thread has waited for its
// copies; or a cache line, to the L2 cache.
#if defined(__CUDACC__)
MONARCH_DEVICE void copy_async(Quad* to, const void* from, int bytes) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(address), "l"(from), "r"(bytes) : "memory");
}
MONARCH_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" : : : "memory"); }
MONARCH_DEVICE void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" : : "l"(line)); }
#else
inline void copy_async(Quad* to, const void* from, int bytes, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  emulator::copy_async(to, from, bytes, {file, line});
}
inline void wait_for_copies() { emulator::wait_for_copies(); }
inline void prefetch(const void* line) { emulator::prefetch(line); }
#endif

// The greatest of the warp's values.
#if defined(__CUDACC__)
MONARCH_DEVICE uint32_t warp_max(uint32_t value) { return __reduce_max_sync(0xFFFFFFFF, value); }
#else
inline uint32_t warp_max(uint32_t value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return emulator::warp_max(value, {file, line});
}
#endif

}  // namespace monarch
