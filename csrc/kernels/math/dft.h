// Small discrete Fourier transforms in registers: X[p] = sum_q x[q] exp(+-2 pi i p q / Radix), in place.
// Forward is the PLUS sign: the library evaluates polynomials at exp(+i angle) (see rightangle.h).
#pragma once

#include "complex.h"

namespace monarch {

// The scalar type behind a SIMD vector, or the scalar itself; specialised where vectors are defined.
template <class R>
struct ScalarOf {
  using type = R;
};

template <bool Inverse, class R>
MONARCH_HD void dft4(Complex<R>& x0, Complex<R>& x1, Complex<R>& x2, Complex<R>& x3) {
  const Complex<R> a = x0 + x2, b = x0 - x2, c = x1 + x3, d = x1 - x3;
  x0 = a + c;
  x1 = add_i<Inverse>(b, d);
  x2 = a - c;
  x3 = add_i<!Inverse>(b, d);
}

template <int Radix, bool Inverse, class R>
MONARCH_HD void dft(Complex<R>* x) {
  using S = typename ScalarOf<R>::type;
  static_assert(Radix == 2 || Radix == 3 || Radix == 4 || Radix == 5 || Radix == 8);
  if constexpr (Radix == 2) {
    const Complex<R> a = x[0];
    x[0] = a + x[1];
    x[1] = a - x[1];
  } else if constexpr (Radix == 3) {
    const S half = S(0.5), s = S(0.86602540378443864676);  // sin(2 pi / 3)
    const Complex<R> sum = x[1] + x[2], dif = x[1] - x[2];
    const Complex<R> mid = {x[0].re - sum.re * half, x[0].im - sum.im * half};
    const Complex<R> rot = {dif.re * s, dif.im * s};
    x[0] = x[0] + sum;
    x[1] = add_i<Inverse>(mid, rot);
    x[2] = add_i<!Inverse>(mid, rot);
  } else if constexpr (Radix == 4) {
    dft4<Inverse>(x[0], x[1], x[2], x[3]);
  } else if constexpr (Radix == 5) {
    const S c1 = S(0.30901699437494742410), c2 = S(-0.80901699437494742410);  // cos(2 pi/5), cos(4 pi/5)
    const S s1 = S(0.95105651629515357212), s2 = S(0.58778525229247312917);   // sin(2 pi/5), sin(4 pi/5)
    const Complex<R> a = x[1] + x[4], b = x[2] + x[3], c = x[1] - x[4], d = x[2] - x[3];
    const Complex<R> m1 = {x[0].re + a.re * c1 + b.re * c2, x[0].im + a.im * c1 + b.im * c2};
    const Complex<R> m2 = {x[0].re + a.re * c2 + b.re * c1, x[0].im + a.im * c2 + b.im * c1};
    const Complex<R> r1 = {c.re * s1 + d.re * s2, c.im * s1 + d.im * s2};
    const Complex<R> r2 = {c.re * s2 - d.re * s1, c.im * s2 - d.im * s1};
    x[0] = x[0] + a + b;
    x[1] = add_i<Inverse>(m1, r1);
    x[4] = add_i<!Inverse>(m1, r1);
    x[2] = add_i<Inverse>(m2, r2);
    x[3] = add_i<!Inverse>(m2, r2);
  } else {
    dft4<Inverse>(x[0], x[2], x[4], x[6]);
    dft4<Inverse>(x[1], x[3], x[5], x[7]);
    const S s = S(0.70710678118654752440);  // cos(pi / 4)
    const Complex<R> e0 = x[0], e1 = x[2], e2 = x[4], e3 = x[6];
    const Complex<R> o0 = x[1], o2 = x[5];
    const Complex<R> o1 = add_i<Inverse>(x[3], x[3]);  // sqrt(2) exp(+-i pi/4) x[3]
    const Complex<R> o3 = add_i<Inverse>(x[7], x[7]);  // the same for x[7]; the other +-i comes below
    x[0] = e0 + o0;
    x[4] = e0 - o0;
    x[2] = add_i<Inverse>(e2, o2);
    x[6] = add_i<!Inverse>(e2, o2);
    x[1] = {e1.re + o1.re * s, e1.im + o1.im * s};
    x[5] = {e1.re - o1.re * s, e1.im - o1.im * s};
    const Complex<R> t = {o3.re * s, o3.im * s};
    x[3] = add_i<Inverse>(e3, t);
    x[7] = add_i<!Inverse>(e3, t);
  }
}

}  // namespace monarch
