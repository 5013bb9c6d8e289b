// Between filter taps and the complex sequence of length M whose right-angle transform is the filter's spectrum:
// taps at lag d at position d, -i times the taps at lag -d at position M - d, all divided by M because the inverse
// transform does not normalise. A cyclic filter has k[L-d] at lag -d.
#pragma once

#include "../args.h"
#include "complex.h"

namespace monarch {

template <class T>
struct TapSequence {
  Taps taps;
  int64_t channel, seqlen, points;

  MONARCH_HD const T* row(const void* data, int64_t length) const {
    return static_cast<const T*>(data) + channel * length;
  }
  MONARCH_HD int64_t usable(int64_t count, int64_t limit) const { return count < limit ? count : limit; }

  // The packed sequence at position t.
  MONARCH_HD Complex<T> operator()(int64_t t) const {
    const int64_t lag = points - t;  // of the anti-causal tap that lands here
    const int64_t causal = usable(taps.num_k, seqlen);
    Complex<T> z = {T(0), T(0)};
    if (t < causal) z.re = row(taps.k, taps.num_k)[t];
    if (t == 0 && taps.skip) z.re += static_cast<const T*>(taps.skip)[channel];
    if (taps.circular) {
      if (lag < seqlen && seqlen - lag < causal) z.im = -row(taps.k, taps.num_k)[seqlen - lag];
    } else if (lag <= usable(taps.num_rev, seqlen - 1)) {
      z.im = -row(taps.k_rev, taps.num_rev)[lag - 1];
    }
    const T scale = T(1) / T(points);
    return {z.re * scale, z.im * scale};
  }

  // The adjoint: gradients of the taps from the gradient `at(position)` of the packed sequence.
  template <class At>
  MONARCH_HD T k_grad(int64_t n, At at) const {
    if (n >= seqlen) return T(0);
    T g = at(n).re;
    if (taps.circular && n > 0) g -= at(points - (seqlen - n)).im;
    return g / T(points);
  }
  template <class At>
  MONARCH_HD T k_rev_grad(int64_t n, At at) const {
    return n + 1 < seqlen ? -at(points - (n + 1)).im / T(points) : T(0);
  }
  template <class At>
  MONARCH_HD T skip_grad(At at) const {
    return at(0).re / T(points);
  }
};

}  // namespace monarch
