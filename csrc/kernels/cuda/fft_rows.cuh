// Where the rows of a long convolution come from and where they go: what the first and the last pass of a transform
// call for each point. A source or sink is plain data; at(b, h) gives a row of it.
#pragma once

#include <type_traits>

#include "../math/taps.h"
#include "fft_tile.cuh"

namespace monarch {

// Rows (b, h) of a launch, channel-major.
struct RowGrid {
  int batch, channels;

  MONARCH_HD int rows() const { return batch * channels; }
  template <class Place>
  MONARCH_DEVICE auto at(const Place& place, int row) const {
    return place.at(row % batch, row / batch);
  }
};

// One of the shares that [0, n) is cut into: of this block, when nothing else is said, in a launch_resident() of n
// tiles.
struct Share {
  int begin, end;
  MONARCH_HD Share(int64_t n, int64_t share, int64_t shares)
      : begin(static_cast<int>(n * share / shares)), end(static_cast<int>(n * (share + 1) / shares)) {}
  MONARCH_DEVICE explicit Share(int64_t n) : Share(0, 0, 1) {
    const int64_t each = pieces(n, gridDim.x), first = blockIdx.x * each;
    const Share layer(n - first < each ? n - first : each, blockIdx.y, gridDim.y);
    begin = static_cast<int>(first) + layer.begin, end = static_cast<int>(first) + layer.end;
  }
};

// A bad length stops the kernel: the host cannot look at device memory without waiting for it.
MONARCH_DEVICE int valid_length(const int64_t* lengths, int64_t b, int64_t seqlen) {
  if (!lengths) return static_cast<int>(seqlen);
  if (lengths[b] < 0 || lengths[b] > seqlen) __trap();
  return static_cast<int>(lengths[b]);
}

// Eight neighbouring elements, the first of which is on a boundary of as many bytes.
template <class Io>
struct alignas(16) Eight {
  Io x[8];
};
// How many of so many points come in whole eights from rows that begin at these addresses.
template <class... Io>
MONARCH_DEVICE int in_eights(int points, const Io*... rows) {
  return ((reinterpret_cast<uintptr_t>(rows) | ...) & 15) == 0 ? points & ~7 : 0;
}
template <class Row>
constexpr bool comes_in_eights = requires(const Row& row) { row.eights(); };
// Of which a thread can have two at once: they take few registers.
template <class Row>
constexpr bool comes_in_pairs = requires { Row::kInPairs; };
template <class Io>
MONARCH_DEVICE void load_eight(const Io* p, float (&v)[8]) {
  const Eight<Io> from = *reinterpret_cast<const Eight<Io>*>(p);
  if constexpr (std::is_same_v<Io, Bf16>) {  // each is the upper half of a float
    struct Words {
      uint32_t w[4];
    };
    const Words words = __builtin_bit_cast(Words, from);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[2 * i] = float_of(words.w[i] << 16), v[2 * i + 1] = float_of(words.w[i] & 0xFFFF0000);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = load(from.x + i);
  }
}

template <class Io>
MONARCH_DEVICE void store_eight(Io* p, const float (&v)[8]) {
  Eight<Io> to;
#pragma unroll
  for (int i = 0; i < 8; ++i) store(to.x + i, v[i]);
  *reinterpret_cast<Eight<Io>*>(p) = to;
}

// x times the gate, zero from the row's length on.
template <class Io>
struct GatedSource {
  Rows x, gate;
  const int64_t* lengths;
  int64_t seqlen;

  struct Row {
    static constexpr bool kInPairs = true;
    const Io *x, *gate;
    int valid;
    MONARCH_DEVICE float operator()(int t) const {
      if (t >= valid) return 0.f;
      return gate ? load(x + t) * load(gate + t) : load(x + t);
    }
    // The first so many points can also be read eight at a time.
    MONARCH_DEVICE int eights() const { return in_eights(valid, x, gate); }
    MONARCH_DEVICE void read(int t, float (&v)[8]) const {
      load_eight(x + t, v);
      if (!gate) return;
      float factors[8];
      load_eight(gate + t, factors);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= factors[i];
    }
    // Calls f(first element, how many) for what is read of each tensor.
    template <class F>
    MONARCH_DEVICE void streams(F f) const {
      f(x, valid);
      if (gate) f(gate, valid);
    }
    // The same row where its tensors are at f(first element) now, called in the same order.
    template <class F>
    MONARCH_DEVICE Row moved(F f) const {
      const Io* const to = f(x);
      return {to, gate ? f(gate) : nullptr, valid};
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {row_of<Io>(x, b, h), row_of<Io>(gate, b, h), valid_length(lengths, b, seqlen)};
  }
  // Whether results would be worse if these numbers were rounded to halves.
  static constexpr bool kMayBePrecise = std::is_same_v<Io, Half>;
  bool are_precise() const { return kMayBePrecise && gate.data; }
  static MONARCH_DEVICE Row nothing() { return {nullptr, nullptr, 0}; }
};

// y = the values times the gate, zero from the row's length on.
template <class Io>
struct GatedSink {
  Rows y, gate;
  const int64_t* lengths;
  int64_t seqlen;

  struct Row {
    static constexpr bool kInPairs = true;
    Io* y;
    const Io* gate;
    int valid, seqlen;
    MONARCH_DEVICE void operator()(int t, float v) const {
      if (t >= seqlen) return;
      store(y + t, t >= valid ? 0.f : gate ? v * load(gate + t) : v);
    }
    MONARCH_DEVICE int eights() const { return in_eights(valid, y, gate); }
    MONARCH_DEVICE void write(int t, float (&v)[8]) const {
      if (gate) {
        float factors[8];
        load_eight(gate + t, factors);
#pragma unroll
        for (int i = 0; i < 8; ++i) v[i] *= factors[i];
      }
      store_eight(y + t, v);
    }
    template <class F>
    MONARCH_DEVICE void streams(F f) const {
      if (gate) f(gate, valid);
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
    MONARCH_DEVICE int eights() const { return in_eights(u.valid, u.y, u.gate, gate.y, gate.gate); }
    MONARCH_DEVICE void write(int t, float (&v)[8]) const {
      float product[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) product[i] = v[i];
      if (u.y) u.write(t, v);
      if (gate.y) gate.write(t, product);
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
    MONARCH_DEVICE int eights() const { return in_eights(seqlen, y); }
    MONARCH_DEVICE void write(int t, float (&v)[8]) const { store_eight(y + t, v); }
    template <class F>
    MONARCH_DEVICE void streams(F) const {}
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
#pragma unroll 1
    for (int j = 0; j < taps; ++j) {
      const int s = t + j - (taps - 1);
      if (s >= 0) v += weight[j] * load(x + s);
    }
    return v;
  }
  // As many of so many points as can also be read eight at a time, where other rows lie at these addresses.
  template <class... Other>
  MONARCH_DEVICE int eights(int points, const Other*... rows) const {
    return taps <= kMostTaps ? in_eights(points, x, rows...) : 0;
  }
  MONARCH_DEVICE void read(int t, float (&v)[8]) const {
    constexpr int kBefore = kMostTaps - 1;
    float window[kBefore + 8], now[8];
    load_eight(x + t, now);
#pragma unroll
    for (int i = 0; i < kBefore; ++i) window[i] = t + i >= kBefore ? load(x + (t + i - kBefore)) : 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) window[kBefore + i] = now[i], v[i] = bias;
#pragma unroll
    for (int lag = kBefore; lag >= 0; --lag) {
      if (lag >= taps) continue;
      const float w = weight[taps - 1 - lag];
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] += w * window[kBefore + i - lag];
    }
  }

 private:
  static constexpr int kMostTaps = 4;
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
    MONARCH_DEVICE int eights() const { return x1.eights(valid, v.x); }
    MONARCH_DEVICE void read(int t, float (&product)[8]) const {
      float factors[8];
      x1.read(t, product);
      v.read(t, factors);
#pragma unroll
      for (int i = 0; i < 8; ++i) product[i] *= factors[i];
    }
    template <class F>
    MONARCH_DEVICE void streams(F f) const {
      f(x1.x, valid), f(v.x, valid);
    }
  };
  MONARCH_DEVICE Row at(int64_t b, int64_t h) const {
    return {{a, b, first + h}, {a, b, 2 * total + first + h}, valid_length(a.lengths, b, a.seqlen)};
  }
  static constexpr bool kMayBePrecise = std::is_same_v<Io, Half>;
  bool are_precise() const { return kMayBePrecise; }
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
    MONARCH_DEVICE int eights() const { return x2.eights(valid, y, residual); }
    MONARCH_DEVICE void write(int t, float (&v)[8]) const {
      float factors[8], added[8] = {};
      x2.read(t, factors);
      if (residual) load_eight(residual + t, added);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] = v[i] * factors[i] + added[i];
      store_eight(y + t, v);
    }
    template <class F>
    MONARCH_DEVICE void streams(F f) const {
      f(x2.x, valid);
      if (residual) f(residual, valid);
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
