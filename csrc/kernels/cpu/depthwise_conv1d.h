// Short depthwise convolution on the CPU, both layouts. Limiting resource: memory bandwidth.
#pragma once

#include "../args.h"
#include "../registry.h"
#include "scratch.h"
#include "vmath.h"

namespace monarch {
namespace {

template <class T>
struct Depthwise {
  static constexpr int W = kLanes<T>;
  using V = Vec<T, W>;

  template <class Io>
  static MONARCH_INLINE Io* row(const Rows& rows, int64_t b, int64_t i) {
    return static_cast<Io*>(rows.data) + b * rows.batch_stride + i * rows.channel_stride;
  }

  // (B, H, L): a task is one row, vectors run along the sequence.
  template <class Io>
  static void rows_forward(const DepthwiseArgs& a, const Exec& exec) {
    for (int64_t task = exec.begin; task < exec.end; ++task) {
      const int64_t b = task / a.channels, h = task % a.channels;
      const Io* x = row<Io>(a.x, b, h);
      Io* y = row<Io>(a.y, b, h);
      const T* weight = static_cast<const T*>(a.weight) + h * a.taps;
      const T bias = a.bias ? static_cast<const T*>(a.bias)[h] : T(0);
      for (int64_t t = 0; t < a.out_len; t += W) {
        V v = V{} + bias;
        for (int64_t j = 0; j < a.taps; ++j) v = v + weight[j] * load_between<W>(x, t - a.pad_left + j, a.seqlen);
        store_upto<W>(y + t, a.silu ? vsilu<T, W>(v) : v, a.out_len - t);
      }
    }
  }

  // (B, L, H): a task is one position, vectors run along the channels. Neighbouring positions share their
  // inputs through the cache.
  template <class Io>
  static void positions_forward(const DepthwiseArgs& a, const Exec& exec) {
    const int64_t H = a.channels;
    Scratch<T> by_tap(H * a.taps);
    for (int64_t h = 0; h < H; ++h)
      for (int64_t j = 0; j < a.taps; ++j) by_tap.get()[j * H + h] = static_cast<const T*>(a.weight)[h * a.taps + j];
    for (int64_t task = exec.begin; task < exec.end; ++task) {
      const int64_t b = task / a.out_len, t = task % a.out_len;
      Io* y = row<Io>(a.y, b, t);
      for (int64_t h = 0; h < H; h += W) {
        V v = a.bias ? load_upto<W>(static_cast<const T*>(a.bias) + h, H - h) : V{};
        for (int64_t j = 0; j < a.taps; ++j) {
          const int64_t s = t - a.pad_left + j;
          if (s < 0 || s >= a.seqlen) continue;
          v = v + load_upto<W>(by_tap.get() + j * H + h, H - h) * load_upto<W>(row<Io>(a.x, b, s) + h, H - h);
        }
        store_upto<W>(y + h, a.silu ? vsilu<T, W>(v) : v, H - h);
      }
    }
  }

  static const char* forward(const DepthwiseArgs& a, const Exec& exec) {
    return with_io<T>(a.io, [&](auto io) {
      using Io = typename decltype(io)::type;
      a.channels_last ? positions_forward<Io>(a, exec) : rows_forward<Io>(a, exec);
    });
  }

  // A task is one channel (B, H, L) ...
  template <class Io>
  static void rows_weight_grad(const DepthwiseWeightGradArgs& a, const Exec& exec) {
    for (int64_t h = exec.begin; h < exec.end; ++h) {
      for (int64_t j = 0; j < a.taps; ++j) {
        T total = 0;
        for (int64_t b = 0; b < a.batch; ++b) {
          const Io *x = row<Io>(a.x, b, h), *g = row<Io>(a.grad, b, h);
          V v{};
          for (int64_t t = 0; t < a.out_len; t += W)
            v = v + load_upto<W>(g + t, a.out_len - t) * load_between<W>(x, t - a.pad_left + j, a.seqlen);
          for (int i = 0; i < W; ++i) total += v[i];
        }
        static_cast<T*>(a.weight_grad)[h * a.taps + j] = total;
      }
    }
  }

  // ... or one vector of channels (B, L, H).
  template <class Io>
  static void positions_weight_grad(const DepthwiseWeightGradArgs& a, const Exec& exec) {
    for (int64_t h = exec.begin; h < exec.end; h += W) {
      const int64_t n = exec.end - h;
      for (int64_t j = 0; j < a.taps; ++j) {
        V total{};
        for (int64_t b = 0; b < a.batch; ++b) {
          V v{};
          for (int64_t t = 0; t < a.out_len; ++t) {
            const int64_t s = t - a.pad_left + j;
            if (s < 0 || s >= a.seqlen) continue;
            v = v + load_upto<W>(row<Io>(a.grad, b, t) + h, n) * load_upto<W>(row<Io>(a.x, b, s) + h, n);
          }
          total = total + v;
        }
        for (int i = 0; i < W && i < n; ++i) static_cast<T*>(a.weight_grad)[(h + i) * a.taps + j] = total[i];
      }
    }
  }

  static const char* weight_grad(const DepthwiseWeightGradArgs& a, const Exec& exec) {
    return with_io<T>(a.io, [&](auto io) {
      using Io = typename decltype(io)::type;
      a.channels_last ? positions_weight_grad<Io>(a, exec) : rows_weight_grad<Io>(a, exec);
    });
  }
};

template <class T>
constexpr DepthwiseKernels depthwise_conv1d_kernels(VariantInfo info) {
  return {info, &Depthwise<T>::forward, &Depthwise<T>::weight_grad};
}

}  // namespace
}  // namespace monarch
