// Where the rows of a long convolution come from and where they go: what the first and the last pass of a transform
// call for each point. A source or sink is plain data; at(b, h) gives a row of it.
#pragma once

#include "../math/taps.h"
#include "fft_tile.cuh"

namespace monarch {

// A bad length stops the kernel: the host cannot look at device memory without waiting for it.
MONARCH_DEVICE int valid_length(const int64_t* lengths, int64_t b, int64_t seqlen) {
  if (!lengths) return static_cast<int>(seqlen);
  if (lengths[b] < 0 || lengths[b] > seqlen) __trap();
  return static_cast<int>(lengths[b]);
}

// x times the gate, zero from the row's length on.
template <class Io>
struct GatedSource {
  Rows x, gate;
  const int64_t* lengths;
  int64_t seqlen;

  struct Row {
    const Io *x, *gate;
    int valid;
    MONARCH_DEVICE float operator()(int t) const {
      if (t >= valid) return 0.f;
      return gate ? load(x + t) * load(gate + t) : load(x + t);
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {row_of<Io>(x, b, h), row_of<Io>(gate, b, h), valid_length(lengths, b, seqlen)};
  }
  static MONARCH_DEVICE Row nothing() { return {nullptr, nullptr, 0}; }
};

// y = the values times the gate, zero from the row's length on.
template <class Io>
struct GatedSink {
  Rows y, gate;
  const int64_t* lengths;
  int64_t seqlen;

  struct Row {
    Io* y;
    const Io* gate;
    int valid, seqlen;
    MONARCH_DEVICE void operator()(int t, float v) const {
      if (t >= seqlen) return;
      store(y + t, t >= valid ? 0.f : gate ? v * load(gate + t) : v);
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {row_of<Io>(y, b, h), row_of<Io>(gate, b, h), valid_length(lengths, b, seqlen), static_cast<int>(seqlen)};
  }
  static MONARCH_DEVICE Row nothing() { return {nullptr, nullptr, 0, 0}; }
};

// Gradients of u and of the gate it was multiplied with, from the gradient of their product; either may be absent.
template <class Io>
struct ProductGradSink {
  GatedSink<Io> u, gate;  // each times the other factor

  struct Row {
    typename GatedSink<Io>::Row u, gate;
    MONARCH_DEVICE void operator()(int t, float v) const {
      if (u.y) u(t, v);
      if (gate.y) gate(t, v);
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const { return {u.at(b, h), gate.at(b, h)}; }
  static MONARCH_DEVICE Row nothing() { return {GatedSink<Io>::nothing(), GatedSink<Io>::nothing()}; }
};

// float32 rows (B, H, L) of the workspace, which a later kernel adds to its own.
struct HeldRows {
  float* data;
  int64_t channels, seqlen;

  struct Row {
    float* y;
    int seqlen;
    MONARCH_DEVICE void operator()(int t, float v) const {
      if (t < seqlen) y[t] = v;
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {data ? data + (b * channels + h) * seqlen : nullptr, static_cast<int>(seqlen)};
  }
};

// The causal short convolution of a channel of MixerArgs::a.
template <class Io>
struct ShortRow {
  const Io* x;
  const float* weight;
  float bias;
  int taps;

  MONARCH_DEVICE ShortRow(const MixerArgs& a, int64_t b, int64_t c)
      : x(row_of<Io>(a.a, b, c)),
        weight(static_cast<const float*>(a.short_weight) + c * a.short_taps),
        bias(a.short_bias ? static_cast<const float*>(a.short_bias)[c] : 0.f),
        taps(static_cast<int>(a.short_taps)) {}
  MONARCH_DEVICE float operator()(int t) const {
    float v = bias;
    for (int j = 0; j < taps; ++j) {
      const int s = t + j - (taps - 1);
      if (s >= 0) v += weight[j] * load(x + s);
    }
    return v;
  }
};

// The channels that a launch works on begin with `first` of `total`.
template <class Io>
struct MixerSource {
  MixerArgs a;
  int64_t first, total;

  struct Row {
    ShortRow<Io> x1, v;
    int valid;
    MONARCH_DEVICE float operator()(int t) const { return t < valid ? x1(t) * v(t) : 0.f; }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {{a, b, first + h}, {a, b, 2 * total + first + h}, valid_length(a.lengths, b, a.seqlen)};
  }
};

template <class Io>
struct MixerSink {
  MixerArgs a;
  int64_t first, total;
  HeldRows residual;

  struct Row {
    ShortRow<Io> x2;
    Io* y;
    const float* residual;
    int valid, seqlen;
    MONARCH_DEVICE void operator()(int t, float v) const {
      if (t >= seqlen) return;
      store(y + t, t >= valid ? 0.f : v * x2(t) + (residual ? residual[t] : 0.f));
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {{a, b, total + first + h},
            row_of<Io>(a.y, b, first + h),
            residual.at(b, h).y,
            valid_length(a.lengths, b, a.seqlen),
            static_cast<int>(a.seqlen)};
  }
};

// The packed taps of a channel.
struct TapSource {
  Taps taps;
  int64_t seqlen, points;

  struct Row {
    TapSequence<float> sequence;
    MONARCH_DEVICE Bin operator()(int t) const { return sequence(t); }
  };
  MONARCH_DEVICE Row at(int64_t, int64_t h) const { return {{taps, h, seqlen, points}}; }
};

// Complex sequences of all points, a row per channel.
struct BinSink {
  Bin* data;
  int64_t points;

  struct Row {
    Bin* y;
    MONARCH_DEVICE void operator()(int t, Bin z) const { y[t] = z; }
  };
  MONARCH_DEVICE Row at(int64_t, int64_t h) const { return {data + h * points}; }
};

}  // namespace monarch
