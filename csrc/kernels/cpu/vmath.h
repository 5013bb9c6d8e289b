// exp, erf and what is made of them, on SIMD vectors. Float: polynomials with a maximum error of a few units in
// the last place; double: the C library, lane by lane.
#pragma once

#include <cmath>

#include "simd.h"

namespace monarch {
namespace {

template <int W>
MONARCH_INLINE Vec<float, W> vexp(Vec<float, W> x) {
  using U = Vec<uint32_t, W>;
  const auto lo = x < -87.3f, hi = x > 88.3f;
  x = lo ? Vec<float, W>{} - 87.3f : x;
  x = hi ? Vec<float, W>{} + 88.3f : x;
  const auto shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const auto n = shifted - 12582912.0f;
  const auto f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  auto p = f * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const U exponent = (reinterpret_cast<U>(shifted) << 23) + 0x3f800000u;
  return p * reinterpret_cast<Vec<float, W>>(exponent);
}

// erf(x) = x P(x^2) / Q(x^2) on |x| < 3.93, where it reaches 1 in float; fitted for the smallest relative error.
template <int W>
MONARCH_INLINE Vec<float, W> verf(Vec<float, W> x) {
  const auto above = x > 3.93f, below = x < -3.93f;
  auto c = above ? Vec<float, W>{} + 3.93f : x;
  c = below ? Vec<float, W>{} - 3.93f : c;
  const auto z = c * c;
  auto p = z * 2.04197358e-06f + 2.84808777e-04f;
  p = p * z + 3.77960855e-03f;
  p = p * z + 5.27902874e-02f;
  p = p * z + 1.90783776e-01f;
  p = p * z + 1.12837915f;
  auto q = z * 3.80041139e-05f + 1.16521286e-03f;
  q = q * z + 1.49974370e-02f;
  q = q * z + 1.14257507e-01f;
  q = q * z + 5.02410439e-01f;
  q = q * z + 1.0f;
  return c * p / q;
}

template <int W>
MONARCH_INLINE Vec<double, W> vexp(Vec<double, W> x) {
  for (int i = 0; i < W; ++i) x[i] = ::exp(x[i]);
  return x;
}
template <int W>
MONARCH_INLINE Vec<double, W> verf(Vec<double, W> x) {
  for (int i = 0; i < W; ++i) x[i] = ::erf(x[i]);
  return x;
}

template <class T, int W>
MONARCH_INLINE Vec<T, W> vgelu(Vec<T, W> x) {
  return x * T(0.5) * (verf<W>(x * T(0.70710678118654752440)) + T(1));
}
template <class T, int W>
MONARCH_INLINE Vec<T, W> vsilu(Vec<T, W> x) {
  return x / (vexp<W>(Vec<T, W>{} - x) + T(1));
}

}  // namespace
}  // namespace monarch
