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

// exp(2 pi i num / den), 0 <= num <= den: the one place where the host computes a sine; blocks on a GPU have
// kernels/cuda/roots.cuh. The angle is reduced to an eighth of a turn in integers, so the error is a rounding alone.
inline Complex<double> unit_root(int64_t num, int64_t den) {
  const int64_t eighth = (8 * num + den / 2) / den;
  const double angle = 6.283185307179586476925 * (double(8 * num - eighth * den) / double(8 * den));
  const double c = std::cos(angle), s = std::sin(angle), h = 0.70710678118654752440;
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
  Complex<double> root(int64_t j, int64_t size) const { return unit_root(j * (1 + 4 * m), 4 * n * size); }
};

}  // namespace monarch
