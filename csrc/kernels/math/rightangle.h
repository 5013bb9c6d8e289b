// The right-angle transform: what it computes, and its angles.
//
// A causal convolution of two real rows of length L is the product of two polynomials of which only the low
// half is wanted. Modulo t^M - i (M >= L) the low half is the real part of the product and the high half the
// imaginary part, so ONE complex transform of length M, with no zero padding and no real/complex unpacking,
// does the work of a real transform of length 2M. The transform evaluates the polynomial at the M roots of
// t^M = i, i.e. at exp(2 pi i (j + 1/4) / M), by splitting
//
//     t^n - c  =  prod_{p<R} (t^(n/R) - c_p),   c_p = c^(1/R) exp(2 pi i p / R)
//
// again and again: natural order in, "tree order" out, and the inverse walks the same tree backwards, so no
// permutation exists anywhere. With c = exp(2 pi i theta), theta in turns, the tree is plain arithmetic:
//
//     theta(root) = 1/4,   theta(child p) = (theta + p) / R.
//
// Two-sided filters cost nothing: as t^(2M) = -1, a tap at lag -d enters as -i k_rev[d-1] at position M - d.
// A cyclic convolution of period L is the two-sided filter whose tap at lag -d is k[L-d].
#pragma once

#include <cmath>
#include <cstdint>

#include "complex.h"

namespace monarch {

// cos and sin of x turns, |x| <= 1/16.
MONARCH_HD void small_angle(double x, double* c, double* s) {
  *c = std::cos(6.283185307179586476925 * x);
  *s = std::sin(6.283185307179586476925 * x);
}
MONARCH_HD void small_angle(float x, float* c, float* s) {
#if defined(__CUDA_ARCH__)
  sincospif(2.f * x, s, c);  // no slow path for large arguments, unlike sinf
#else
  *c = std::cos(6.283185307f * x);
  *s = std::sin(6.283185307f * x);
#endif
}

// exp(2 pi i num / den), 0 <= num <= den: the one place where the library computes a sine, but for what blocks on a GPU
// compute for themselves (kernels/cuda/roots.cuh). The angle is reduced to an eighth of a turn in integers, so the
// error is the rounding of R alone. Int holds 9 * den; 32 bits are faster on a GPU.
template <class R, class Int = int64_t>
MONARCH_HD Complex<R> unit_root(Int num, Int den) {
  const Int eighth = (8 * num + den / 2) / den;
  R c, s;
  small_angle(R(8 * num - eighth * den) / R(8 * den), &c, &s);
  const R h = R(0.70710678118654752440);
  switch (eighth & 7) {
    case 0: return {c, s};
    case 1: return {h * (c - s), h * (c + s)};
    case 2: return {-s, c};
    case 3: return {-h * (c + s), h * (c - s)};
    case 4: return {-c, -s};
    case 5: return {h * (s - c), -h * (c + s)};
    case 6: return {s, -c};
    default: return {h * (c + s), h * (s - c)};
  }
}

// The angle of one tree node: theta = (1 + 4 m) / (4 n), n nodes on its level and m this node's number among
// them in root order. Exact for every length the library accepts.
struct Angle {
  int64_t m = 0, n = 1;

  MONARCH_HD Angle child(int p, int radix) const { return {m + n * p, n * radix}; }

  // exp(2 pi i theta j / size): the twiddle of coefficient j when the node t^size - c is split or twisted.
  template <class R>
  MONARCH_HD Complex<R> root(int64_t j, int64_t size) const {
    return unit_root<R>(j * (1 + 4 * m), 4 * n * size);
  }
};

}  // namespace monarch
