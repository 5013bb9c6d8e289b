// Subtrees of the right-angle transform (rightangle.h) in registers: an optional split into three or five, then
// splits in two. A split t^2n - c -> (t^n - r)(t^n + r), r^2 = c, is a, b -> a + r b, a - r b: six fused
// multiply-adds, fewer than twiddles followed by a DFT of a larger radix.
#pragma once

#include "dft.h"
#include "rightangle.h"

namespace monarch {

// 2 a - b; the compiler would make an addition of the product, and with it two instructions.
MONARCH_HD float twice_minus(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaf(2.f, a, -b);
#else
  return 2 * a - b;
#endif
}

template <class R>
MONARCH_HD void split(Complex<R>& a, Complex<R>& b, Complex<R> r) {
  const Complex<R> sum = {a.re - b.im * r.im + b.re * r.re, a.im + b.im * r.re + b.re * r.im};
  b = {twice_minus(a.re, sum.re), twice_minus(a.im, sum.im)};
  a = sum;
}

// The adjoint of split(), which is twice its inverse.
template <class R>
MONARCH_HD void merge(Complex<R>& a, Complex<R>& b, Complex<R> r) {
  const Complex<R> dif = a - b;
  a = a + b;
  b = mul_conj(dif, r);
}

// split() of real numbers, and the real parts of merge().
template <class R>
MONARCH_HD void split_real(Complex<R>& a, Complex<R>& b, Complex<R> r) {
  const R x = a.re, y = b.re;
  a = {x + y * r.re, y * r.im};
  b = {x - y * r.re, -a.im};
}
template <class R>
MONARCH_HD void merge_real(Complex<R>& a, Complex<R>& b, Complex<R> r) {
  const Complex<R> dif = a - b;
  a.re = a.re + b.re;
  b.re = dif.re * r.re + dif.im * r.im;
}

// exp(2 pi i s / 16)
template <class R>
MONARCH_HD Complex<R> sixteenth(int s) {
  const R c = R(0.92387953251128675613), d = R(0.38268343236508977173), h = R(0.70710678118654752440);
  return s == 0 ? Complex<R>{1, 0} : s == 1 ? Complex<R>{c, d} : s == 2 ? Complex<R>{h, h} : Complex<R>{d, c};
}

MONARCH_HD constexpr int reverse_bits(int k, int bits) {
  int r = 0;
  for (int i = 0; i < bits; ++i) r |= (k >> i & 1) << (bits - 1 - i);
  return r;
}

// One of the four, on all pairs of a node of 2 * Half points.
template <int Half, bool Inverse, bool Real, class R>
MONARCH_HD void butterflies(Complex<R>* x, Complex<R> r) {
#pragma unroll
  for (int j = 0; j < Half; ++j) {
    if constexpr (Inverse && Real) {
      merge_real(x[j], x[Half + j], r);
    } else if constexpr (Inverse) {
      merge(x[j], x[Half + j], r);
    } else if constexpr (Real) {
      split_real(x[j], x[Half + j], r);
    } else {
      split(x[j], x[Half + j], r);
    }
  }
}

// The transform of the 2^Bits points below a node of angle theta (in turns); roots[l] = exp(2 pi i theta / 2^(l+1)).
// `Real`: the points before a forward transform have no imaginary part, and after an inverse one none is wanted.
// x is node K of level Level below that node, and Bits counts from there.
template <int Bits, bool Inverse, bool Real, int Level = 0, int K = 0, class R>
MONARCH_HD void subtree(Complex<R>* x, const Complex<R>* roots) {
  if constexpr (Bits > 0) {
    constexpr int kHalf = 1 << (Bits - 1);
    // the angle is (theta + reverse_bits(K)) / 2^Level; an odd K is a quarter of a turn more
    constexpr int kTurn = reverse_bits(K & ~1, Level) << (3 - Level);
    const Complex<R> even = kTurn ? mul(roots[Level], sixteenth<R>(kTurn)) : roots[Level];
    const Complex<R> root = K & 1 ? Complex<R>{-even.im, even.re} : even;
    if constexpr (!Inverse) butterflies<kHalf, false, Real>(x, root);
    subtree<Bits - 1, Inverse, false, Level + 1, 2 * K>(x, roots);
    subtree<Bits - 1, Inverse, false, Level + 1, 2 * K + 1>(x + kHalf, roots);
    if constexpr (Inverse) butterflies<kHalf, true, Real>(x, root);
  }
}

// What the top of a tree needs, Odd << Bits children: odd[q] = exp(2 pi i q / (4 Odd)), and the roots of the Odd
// subtrees below.
struct HeadRoots {
  Complex<float> odd[5], node[5][4];
};

constexpr int odd_part(int head) {
  while (head % 2 == 0) head /= 2;
  return head;
}

inline HeadRoots head_roots(int head) {
  HeadRoots h{};
  const int odd = odd_part(head);
  const auto single = [](Complex<double> z) { return Complex<float>{float(z.re), float(z.im)}; };
  for (int p = 0; p < odd; ++p) {
    h.odd[p] = single(Angle{}.root(p, odd));
    for (int level = 0; level < 4; ++level)
      h.node[p][level] = single(Angle{}.child(p, odd).root(1, int64_t{2} << level));
  }
  return h;
}

// The odd split of the top of a tree, on Odd rows of `size` points each.
template <int Odd, bool Inverse, bool Real>
MONARCH_HD void odd_split(Complex<float>* x, int size, const HeadRoots& roots) {
#pragma unroll
  for (int j = 0; j < size; ++j) {
    Complex<float> y[Odd];
#pragma unroll
    for (int q = 0; q < Odd; ++q) y[q] = x[q * size + j];
    if constexpr (Inverse) dft<Odd, true>(y);
#pragma unroll
    for (int q = 1; q < Odd; ++q) {
      if constexpr (Inverse) {
        y[q] = mul_conj(y[q], roots.odd[q]);
      } else if constexpr (Real) {
        y[q] = {y[q].re * roots.odd[q].re, y[q].re * roots.odd[q].im};
      } else {
        y[q] = mul(y[q], roots.odd[q]);
      }
    }
    if constexpr (!Inverse) dft<Odd, false>(y);
#pragma unroll
    for (int q = 0; q < Odd; ++q) x[q * size + j] = y[q];
  }
}

// The top of the tree on its Odd << Bits points, in place; `Real` as in subtree().
template <int Odd, int Bits, bool Inverse, bool Real>
MONARCH_HD void head_tree(Complex<float>* x, const HeadRoots& roots) {
  if constexpr (Odd > 1 && !Inverse) odd_split<Odd, false, Real>(x, 1 << Bits, roots);
#pragma unroll
  for (int p = 0; p < Odd; ++p) subtree<Bits, Inverse, Real && Odd == 1>(x + (p << Bits), roots.node[p]);
  if constexpr (Odd > 1 && Inverse) odd_split<Odd, true, Real>(x, 1 << Bits, roots);
}

}  // namespace monarch
