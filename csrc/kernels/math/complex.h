// Complex numbers over any real type R: a scalar on the host or the device, or a SIMD vector.
#pragma once

#if defined(__CUDACC__)
#define MONARCH_HD __host__ __device__ __forceinline__
#else
#define MONARCH_HD inline __attribute__((always_inline))
#endif

namespace monarch {

template <class R>
struct Complex {
  R re, im;
};

template <class R>
MONARCH_HD Complex<R> operator+(Complex<R> a, Complex<R> b) {
  return {a.re + b.re, a.im + b.im};
}

template <class R>
MONARCH_HD Complex<R> operator-(Complex<R> a, Complex<R> b) {
  return {a.re - b.re, a.im - b.im};
}

// a * w. S may be the scalar type of a SIMD vector R: it is then broadcast.
template <class R, class S>
MONARCH_HD Complex<R> mul(Complex<R> a, Complex<S> w) {
  return {a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}

// a * conj(w)
template <class R, class S>
MONARCH_HD Complex<R> mul_conj(Complex<R> a, Complex<S> w) {
  return {a.re * w.re + a.im * w.im, a.im * w.re - a.re * w.im};
}

// a * w going forward, a * conj(w) going back: every transform uses its twiddles this way.
template <bool Inverse, class R, class S>
MONARCH_HD Complex<R> twiddle(Complex<R> a, Complex<S> w) {
  if constexpr (Inverse) {
    return mul_conj(a, w);
  } else {
    return mul(a, w);
  }
}

// a + i*b going forward, a - i*b going back.
template <bool Inverse, class R>
MONARCH_HD Complex<R> add_i(Complex<R> a, Complex<R> b) {
  if constexpr (Inverse) {
    return {a.re + b.im, a.im - b.re};
  } else {
    return {a.re - b.im, a.im + b.re};
  }
}

}  // namespace monarch
