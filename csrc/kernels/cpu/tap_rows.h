// The packed filter sequence of math/taps.h, W positions at a time, as source and sink of a transform's root pass.
#pragma once

#include "../args.h"
#include "simd.h"

namespace monarch {
namespace {

template <class T>
struct TapRow {
  static constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  using C = Complex<V>;

  T *k, *k_rev, *skip;
  int64_t num_k, num_rev;  // taps that reach an output
  int64_t points;
  bool circular;
  int64_t wrap;  // position of tap 0 of a cyclic filter one period earlier
  T scale;

  TapRow(const Taps& taps, int64_t channel, int64_t seqlen, int64_t points)
      : k(row(taps.k, channel, taps.num_k)),
        k_rev(row(taps.k_rev, channel, taps.num_rev)),
        skip(row(taps.skip, channel, 1)),
        num_k(taps.k ? least(taps.num_k, seqlen) : 0),
        num_rev(taps.k_rev ? least(taps.num_rev, seqlen - 1) : 0),
        points(points),
        circular(taps.circular),
        wrap(points - seqlen),
        scale(T(1) / T(points)) {}

  static T* row(void* data, int64_t channel, int64_t length) {
    return data ? static_cast<T*>(data) + channel * length : nullptr;
  }
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  bool two_sided() const { return circular || num_rev > 0; }
  // What the tap of the input itself adds to every bin.
  T constant() const { return skip ? *skip * scale : T(0); }

  // Positions t .. t + W - 1 hold lags -(points - t) and up: k_rev backwards from this index on.
  int64_t last_rev(int64_t t) const { return points - t - W; }

  struct Source {  // causal taps alone: a real sequence
    const TapRow& taps;
    int64_t valid;
    template <bool Inside>
    MONARCH_INLINE V get(int64_t t) const {
      return load_upto<W>(taps.k + t, Inside ? W : valid - t) * taps.scale;
    }
  };
  struct TwoSidedSource {
    const TapRow& taps;
    int64_t valid = 0;
    template <bool>
    MONARCH_INLINE C get(int64_t t) const {
      const TapRow& a = taps;
      const V im = a.circular ? load_between<W>(a.k + 1, t - a.wrap - 1, a.num_k - 1)
                              : reverse<W>(load_between<W>(a.k_rev, a.last_rev(t), a.num_rev));
      return {load_upto<W>(a.k + t, a.num_k - t) * a.scale, im * -a.scale};
    }
  };

  // The adjoint. Gradients of taps that reach no output are left alone.
  struct Sink {
    const TapRow& taps;
    int64_t valid;
    template <bool Inside>
    MONARCH_INLINE void put(int64_t t, V re) const {
      re = re * taps.scale;
      if (t == 0 && taps.skip) *taps.skip = re[0];
      if (taps.k) store_upto<W>(taps.k + t, re, Inside ? W : valid - t);
    }
  };
  struct TwoSidedSink {  // adds to the taps, as two positions may belong to one
    const TapRow& taps;
    int64_t valid = 0;
    template <bool>
    MONARCH_INLINE void put(int64_t t, C x) const {
      const TapRow& a = taps;
      const V re = x.re * a.scale, im = x.im * -a.scale;
      if (t == 0 && a.skip) *a.skip = re[0];
      add(a.k, t, a.num_k, re);
      if (a.circular) add(a.k + 1, t - a.wrap - 1, a.num_k - 1, im);
      if (a.k_rev) add(a.k_rev, a.last_rev(t), a.num_rev, reverse<W>(im));
    }
    static MONARCH_INLINE void add(T* to, int64_t from, int64_t count, V v) {
      if (from >= 0 && from + W <= count) {
        store<W>(to + from, load<W>(to + from) + v);
      } else {
        for (int i = 0; i < W; ++i)
          if (from + i >= 0 && from + i < count) to[from + i] += v[i];
      }
    }
  };
};

}  // namespace
}  // namespace monarch
