// SIMD vectors from compiler vector types: one source for AVX-512, AVX2, NEON and plain C++. The instruction
// set is chosen by the flags of the translation unit (variants.def), the width by the template argument.
//
// Everything is always_inline and nothing comes from the standard library's templates: a weak symbol compiled
// for AVX-512 must never be the one the linker keeps for an older processor (tests/test_build.py looks).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../plan/plan.h"
#include "../math/dft.h"

#define MONARCH_INLINE inline __attribute__((always_inline))

namespace monarch {

// Storage types of 16-bit tensors: bits only, arithmetic happens in float.
struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

namespace {  // one copy per translation unit, see above

template <class T, int W>
struct VecOf;
#define MONARCH_VEC(T, W)                                                                       \
  template <>                                                                                   \
  struct VecOf<T, W> {                                                                          \
    typedef T type __attribute__((vector_size(W * sizeof(T))));                                 \
    typedef T loose __attribute__((vector_size(W * sizeof(T)), aligned(sizeof(T)), may_alias)); \
  }
MONARCH_VEC(float, 4);
MONARCH_VEC(float, 8);
MONARCH_VEC(float, 16);
MONARCH_VEC(double, 2);
MONARCH_VEC(double, 4);
MONARCH_VEC(double, 8);
MONARCH_VEC(uint32_t, 4);
MONARCH_VEC(uint32_t, 8);
MONARCH_VEC(uint32_t, 16);
MONARCH_VEC(uint16_t, 4);
MONARCH_VEC(uint16_t, 8);
MONARCH_VEC(uint16_t, 16);
#undef MONARCH_VEC

template <class T, int W>
using Vec = typename VecOf<T, W>::type;

template <class T>
constexpr int kCacheLine = 64 / sizeof(T);

}  // namespace
template <class R>
  requires(sizeof(R) > sizeof(double))
struct ScalarOf<R> {
  using type = std::remove_cvref_t<decltype(R{}[0])>;
};
namespace {

// Widest vector of T that the translation unit's instruction set computes with.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

// a in all lanes, without arithmetic: a - 0 is a, 0 + a is not.
template <class V, class T>
MONARCH_INLINE V broadcast(T a) {
  return a - V{};
}

// p, in a register of its own: the compiler does not know that it is a sum.
template <class T>
MONARCH_INLINE const T* of_its_own(const T* p) {
  asm("" : "+r"(p));
  return p;
}

// sum += *a * x. AVX-512's multiply-add reads the number from memory itself, which saves the instruction that spreads
// it; where it meets two vectors, the compiler would rather load it once.
template <class T, class V>
MONARCH_INLINE void multiply_add(V& sum, const T* a, V x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    asm("vfmadd231ps %1%{1to16%}, %2, %0" : "+v"(sum) : "m"(*a), "v"(x));
  else
    asm("vfmadd231pd %1%{1to8%}, %2, %0" : "+v"(sum) : "m"(*a), "v"(x));
#else
  sum += broadcast<V>(*a) * x;
#endif
}

// What was read from memory before is read again, not kept on the stack: twiddles that both ways of a transform use.
MONARCH_INLINE void forget_loads() { asm volatile("" ::: "memory"); }

// ---- loads and stores: unaligned, W elements of the tensor's type to and from a vector of the compute type ----

template <int W>
MONARCH_INLINE Vec<float, W> load(const float* p) {
  return *reinterpret_cast<const typename VecOf<float, W>::loose*>(p);
}
template <int W>
MONARCH_INLINE Vec<double, W> load(const double* p) {
  return *reinterpret_cast<const typename VecOf<double, W>::loose*>(p);
}
template <int W>
MONARCH_INLINE void store(float* p, Vec<float, W> v) {
  *reinterpret_cast<typename VecOf<float, W>::loose*>(p) = v;
}
template <int W>
MONARCH_INLINE void store(double* p, Vec<double, W> v) {
  *reinterpret_cast<typename VecOf<double, W>::loose*>(p) = v;
}

// Stores that leave the caches alone, where the machine has them; p is aligned to a vector. stream_end() comes before
// another thread may read what was stored.
template <int W>
MONARCH_INLINE void stream(float* p, Vec<float, W> v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX__)
  _mm256_stream_ps(p, v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, v);
#else
  store<W>(p, v);
#endif
}
template <int W>
MONARCH_INLINE void stream(double* p, Vec<double, W> v) {
#if defined(__AVX512F__)
  _mm512_stream_pd(p, v);
#elif defined(__AVX__)
  _mm256_stream_pd(p, v);
#elif defined(__x86_64__)
  _mm_stream_pd(p, v);
#else
  store<W>(p, v);
#endif
}
MONARCH_INLINE void stream_end() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <int W>
MONARCH_INLINE Vec<float, W> load(const Bf16* p) {
  const auto bits = *reinterpret_cast<const typename VecOf<uint16_t, W>::loose*>(p);
  return reinterpret_cast<Vec<float, W>>(__builtin_convertvector(bits, Vec<uint32_t, W>) << 16);
}
// Round to nearest even; NaN stays NaN (quietened).
template <int W>
MONARCH_INLINE void store(Bf16* p, Vec<float, W> v) {
  const auto u = reinterpret_cast<Vec<uint32_t, W>>(v);
  const auto rounded = u + 0x7fffu + ((u >> 16) & 1u);
  const auto nan = (u & 0x7fffffffu) > 0x7f800000u;
  const auto bits = (nan ? (u | 0x400000u) : rounded) >> 16;
  *reinterpret_cast<typename VecOf<uint16_t, W>::loose*>(p) = __builtin_convertvector(bits, Vec<uint16_t, W>);
}

// IEEE half <-> float in integer arithmetic, for instruction sets without conversion instructions.
MONARCH_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000u) << 16, rest = h & 0x7fffu;
  uint32_t bits;
  if (rest >= 0x7c00u) {
    bits = 0x7f800000u | (rest & 0x3ffu) << 13;  // infinity, NaN
  } else {
    // 2^112 rebiases the exponent and normalises subnormals in one multiplication.
    float f;
    bits = rest << 13;
    std::memcpy(&f, &bits, 4);
    f *= 0x1p112f;
    std::memcpy(&bits, &f, 4);
  }
  bits |= sign;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
MONARCH_INLINE uint16_t float_to_half(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  const uint32_t sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return uint16_t(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or more
  if (a < 0x38800000u) {                                  // below 2^-14: let the addition round to a multiple of 2^-24
    float v, magic = 0.5f;
    std::memcpy(&v, &a, 4);
    v += magic;
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return uint16_t(sign | (bits - 0x3f000000u));
  }
  return uint16_t(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
}

template <int W>
MONARCH_INLINE Vec<float, W> load(const Half* p) {
#if defined(__AVX512F__)
  static_assert(W == 16);
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  static_assert(W == 8);
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float, W> v;
  for (int i = 0; i < W; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}
template <int W>
MONARCH_INLINE void store(Half* p, Vec<float, W> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < W; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

// ---- parts of vectors ----------------------------------------------------------------------------------

#if defined(__AVX512F__)

// A bit per lane: the first n, which may be <= 0 or more than there are.
MONARCH_INLINE uint32_t first_bits(int64_t n) { return n >= 32 ? ~0u : n <= 0 ? 0u : (1u << n) - 1u; }

// The W elements from p + s on, of which those outside [0, n) read as zero. Where there are none, nothing is read: a
// masked load of a page that does not exist does not fail, but takes long.
template <int W, class Io>
MONARCH_INLINE auto load_between(const Io* p, int64_t s, int64_t n) {
  if (s >= n || s <= -W) return decltype(load<W>(p)){};
  const uint32_t mask = first_bits(n - s) & ~first_bits(-s);
  if constexpr (std::is_same_v<Io, float>) {
    return reinterpret_cast<Vec<float, W>>(_mm512_maskz_loadu_ps(__mmask16(mask), p + s));
  } else if constexpr (std::is_same_v<Io, double>) {
    return reinterpret_cast<Vec<double, W>>(_mm512_maskz_loadu_pd(__mmask8(mask), p + s));
  } else {
    Io part[W];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(part), _mm256_maskz_loadu_epi16(__mmask16(mask), p + s));
    return load<W>(part);
  }
}

// The first n of W elements; the others are not written. n may be <= 0 or >= W, here and below.
template <int W, class Io, class V>
MONARCH_INLINE void store_upto(Io* p, V v, int64_t n) {
  if (n <= 0) return;
  const uint32_t mask = first_bits(n);
  if constexpr (std::is_same_v<Io, float>) {
    _mm512_mask_storeu_ps(p, __mmask16(mask), reinterpret_cast<__m512>(v));
  } else if constexpr (std::is_same_v<Io, double>) {
    _mm512_mask_storeu_pd(p, __mmask8(mask), reinterpret_cast<__m512d>(v));
  } else {
    Io part[W];
    store<W>(part, v);
    _mm256_mask_storeu_epi16(p, __mmask16(mask), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part)));
  }
}

// The first n lanes, zero in the others.
template <int W, class V>
MONARCH_INLINE V first_lanes(V v, int64_t n) {
  if constexpr (sizeof(v[0]) == 4) {
    return reinterpret_cast<V>(_mm512_maskz_mov_ps(__mmask16(first_bits(n)), reinterpret_cast<__m512>(v)));
  } else {
    return reinterpret_cast<V>(_mm512_maskz_mov_pd(__mmask8(first_bits(n)), reinterpret_cast<__m512d>(v)));
  }
}

#else  // the same in plain C++

template <int W, class Io>
MONARCH_INLINE auto load_between(const Io* p, int64_t s, int64_t n) {
  if (s >= 0 && s + W <= n) return load<W>(p + s);
  Io part[W] = {};
  for (int i = 0; i < W; ++i)
    if (s + i >= 0 && s + i < n) part[i] = p[s + i];
  return load<W>(part);
}
template <int W, class Io, class V>
MONARCH_INLINE void store_upto(Io* p, V v, int64_t n) {
  if (n >= W) {
    store<W>(p, v);
    return;
  }
  Io part[W];
  store<W>(part, v);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}
template <int W, class V>
MONARCH_INLINE V first_lanes(V v, int64_t n) {
  if (n >= W) return v;
  V out{};
  for (int i = 0; i < n; ++i) out[i] = v[i];
  return out;
}

#endif

// The first n of W elements; the rest reads as zero.
template <int W, class Io>
MONARCH_INLINE auto load_upto(const Io* p, int64_t n) {
  return load_between<W>(p, 0, n);
}

// Calls f with a tag whose ::type is the storage type of the tensor; T is the type computed in.
template <class T>
struct Tag {
  using type = T;
};
template <class T, class F>
MONARCH_INLINE const char* with_io(Scalar io, F f) {
  if constexpr (sizeof(T) == 8) {
    f(Tag<double>());
  } else {
    switch (io) {
      case Scalar::bf16: f(Tag<Bf16>()); break;
      case Scalar::f16: f(Tag<Half>()); break;
      default: f(Tag<float>()); break;
    }
  }
  return nullptr;
}

// ---- lane movement -------------------------------------------------------------------------------------

// Lanes in chunks 0, 1, 2, ...: a keeps its even chunks and takes b's even chunks in the odd places,
// b keeps its odd chunks and takes a's odd chunks in the even places. Applying it twice gives a and b back.
template <int Chunk, class V, int... I>
MONARCH_INLINE void exchange_impl(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  const V lo = __builtin_shufflevector(a, b, ((I / Chunk) % 2 == 0 ? I : W + I - Chunk)...);
  const V hi = __builtin_shufflevector(a, b, ((I / Chunk) % 2 == 0 ? I + Chunk : W + I)...);
  a = lo;
  b = hi;
}
template <int W, int Chunk, class V>
MONARCH_INLINE void exchange(V& a, V& b) {
  exchange_impl<Chunk>(a, b, std::make_integer_sequence<int, W>());
}

template <class V, int... I>
MONARCH_INLINE V reverse_impl(V a, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, a, (int(sizeof...(I)) - 1 - I)...);
}
template <int W, class V>
MONARCH_INLINE V reverse(V a) {
  return reverse_impl(a, std::make_integer_sequence<int, W>());
}

// In every group of four chunks: the low halves of a and b, then their high halves; all even chunks, then all odd ones.
template <int Chunk, class V, int... I>
MONARCH_INLINE void halves(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  const V lo = __builtin_shufflevector(a, b, (I / Chunk % 4 < 2 ? I : W + I - 2 * Chunk)...);
  const V hi = __builtin_shufflevector(a, b, (I / Chunk % 4 < 2 ? I + 2 * Chunk : W + I)...);
  a = lo;
  b = hi;
}
template <int Chunk, class V, int... I>
MONARCH_INLINE void evens_and_odds(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int W = sizeof...(I);
  // chunk i of a result comes from chunk 2 i of (a, b), i counted within the group
  const V even = __builtin_shufflevector(
      a, b, (I - I % (4 * Chunk) + I / Chunk % 4 / 2 * W + I / Chunk % 2 * 2 * Chunk + I % Chunk)...);
  const V odd = __builtin_shufflevector(
      a, b, (I - I % (4 * Chunk) + I / Chunk % 4 / 2 * W + (I / Chunk % 2 * 2 + 1) * Chunk + I % Chunk)...);
  a = even;
  b = odd;
}

// Transposes the 4 x 4 chunks of every group of four, one vector a row; its own inverse.
template <int W, int Chunk, class V>
MONARCH_INLINE void transpose4(V& a, V& b, V& c, V& d) {
  using Lanes = std::make_integer_sequence<int, W>;
  constexpr int kChunkBytes = Chunk * int(sizeof(a)) / W;
  if constexpr (kChunkBytes == 16 || 4 * kChunkBytes == 16) {  // one instruction for every shuffle
    halves<Chunk>(a, b, Lanes());
    halves<Chunk>(c, d, Lanes());
    evens_and_odds<Chunk>(a, c, Lanes());
    evens_and_odds<Chunk>(b, d, Lanes());
    const V third = b;
    b = c;
    c = third;
  } else {
    exchange<W, 2 * Chunk>(a, c);
    exchange<W, 2 * Chunk>(b, d);
    exchange<W, Chunk>(a, b);
    exchange<W, Chunk>(c, d);
  }
}

}  // namespace
}  // namespace monarch
