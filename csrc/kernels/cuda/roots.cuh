// Roots of unity, of which the tables of twiddles and matrices are made.
#pragma once

#include <cmath>

#include "platform.cuh"

namespace monarch {

// exp(2 pi i num / den), 0 <= num <= den: each part rounded once, or nearly so. All errors of twiddles add up in each
// result, so that those of sincospif(), twice as large, would show. `den`: of five times a power of two at most, and
// below 2^28.
MONARCH_DEVICE Complex<float> rounded_root(int num, int den) {
  constexpr float kQuarter = 1.57079637f, kRest = -4.37113900e-8f;  // pi / 2 as a sum
  // less than an eighth of a turn from a quarter: an angle and its rounding error
  const int quarter = (4 * num + den / 2) / den, left = 4 * num - quarter * den;
  const float of = static_cast<float>(den), head = static_cast<float>(left);
  const float part = head / of, rest = (fmaf(-part, of, head) + static_cast<float>(left - static_cast<int>(head))) / of;
  const float t = part * kQuarter, beside = fmaf(part, kQuarter, -t) + fmaf(part, kRest, rest * kQuarter);
  const float p = t * t, beside_p = fmaf(t, t, -p), low = 1 - p / 2;
  const float odd = fmaf(p, fmaf(p, fmaf(p, 1 / 362880.f, -1 / 5040.f), 1 / 120.f), -1 / 6.f);
  const float even = fmaf(p, fmaf(p, fmaf(p, -1 / 3628800.f, 1 / 40320.f), -1 / 720.f), 1 / 24.f);
  const float s = t + fmaf(beside, low, t * p * odd);
  const float c = low + (((1 - low) - p / 2) + fmaf(p * p, even, -fmaf(beside, s, beside_p / 2)));
  switch (quarter & 3) {
    case 0: return {c, s};
    case 1: return {-s, c};
    case 2: return {-c, -s};
    default: return {s, -c};
  }
}

// exp(2 pi i num / den) with errors of about 5e-7, in a fraction of the instructions of rounded_root(): for tables that
// a launch begins with and halves go with. num / den may be up to 2^20.
MONARCH_DEVICE Complex<float> near_root(int num, int den) {
#if defined(__CUDACC__)
  const float inverse = quotient(1.f, static_cast<float>(den));
  const int turns = __float2int_rn(static_cast<float>(num) * inverse);
  Complex<float> z;
  __sincosf(6.283185307f * (static_cast<float>(num - turns * den) * inverse), &z.im, &z.re);
  return z;
#else
  const float angle = 6.283185307f * static_cast<float>(num % den) / static_cast<float>(den);
  return {std::cos(angle), std::sin(angle)};
#endif
}

}  // namespace monarch
