// The element-wise halves of the M2-BERT MLP, row by row: gated GELU, and LayerNorm of a sum. Limiting resource:
// cache bandwidth; the caller hands in tiles that fit.
#pragma once

#include "../args.h"
#include "../registry.h"
#include "scratch.h"
#include "vmath.h"

namespace monarch {
namespace {

template <class T>
struct MlpRows {
  static constexpr int W = kLanes<T>;
  using V = Vec<T, W>;

  template <class Io>
  static void glu_rows(const GluArgs& g, const Exec& exec) {
    for (int64_t m = exec.begin; m < exec.end; ++m) {
      const Io* a = static_cast<const Io*>(g.a) + m * 2 * g.inner;
      Io* h = static_cast<Io*>(g.h) + m * g.inner;
      for (int64_t j = 0; j < g.inner; j += W) {
        const int64_t n = g.inner - j;
        store_upto<W>(h + j, vgelu<T, W>(load_upto<W>(a + j, n)) * load_upto<W>(a + g.inner + j, n), n);
      }
    }
  }

  static const char* glu(const GluArgs& g, const Exec& exec) {
    return with_io<T>(g.io, [&](auto io) { glu_rows<typename decltype(io)::type>(g, exec); });
  }

  static MONARCH_INLINE T sum(V v) {
    T total = 0;
    for (int i = 0; i < W; ++i) total += v[i];
    return total;
  }

  template <class Io>
  static void norm_rows(const ResidualNormArgs& a, const Exec& exec) {
    const int64_t F = a.features;
    Scratch<T> buffer(F);
    T* const z = buffer.get();
    for (int64_t m = exec.begin; m < exec.end; ++m) {
      const Io* y = static_cast<const Io*>(a.y) + m * F;
      const Io* bias = static_cast<const Io*>(a.bias);
      const Io* residual =
          a.residual.data ? static_cast<const Io*>(a.residual.data) + m * a.residual.position_stride : nullptr;
      Io* out = static_cast<Io*>(a.out.data) + m * a.out.position_stride;
      V total{};
      for (int64_t j = 0; j < F; j += W) {
        V v = load_upto<W>(y + j, F - j);
        if (bias) v = v + load_upto<W>(bias + j, F - j);
        if (residual) v = v + load_upto<W>(residual + j, F - j);
        store_upto<W>(z + j, v, F - j);
        total = total + v;
      }
      if (!a.norm_weight) {
        for (int64_t j = 0; j < F; j += W) store_upto<W>(out + j, load_upto<W>(z + j, F - j), F - j);
        continue;
      }
      const T mean = sum(total) / T(F);
      V squares{};
      for (int64_t j = 0; j < F; j += W) {
        V v = load_upto<W>(z + j, F - j) - mean;
        for (int64_t i = F - j; i < W; ++i) v[i] = T(0);
        squares = squares + v * v;
      }
      const T scale = T(1) / T(::sqrt(double(sum(squares) / T(F)) + a.eps));
      for (int64_t j = 0; j < F; j += W) {
        const int64_t n = F - j;
        const V weight = load_upto<W>(static_cast<const T*>(a.norm_weight) + j, n);
        const V norm_bias = load_upto<W>(static_cast<const T*>(a.norm_bias) + j, n);
        store_upto<W>(out + j, (load_upto<W>(z + j, n) - mean) * scale * weight + norm_bias, n);
      }
    }
  }
};

}  // namespace
}  // namespace monarch
