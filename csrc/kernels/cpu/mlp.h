// Block-diagonal products, one or the two of a Monarch matrix, and the M2-BERT MLP in one pass: both products, the
// gated GELU between them, residual and LayerNorm. Limiting resource: multiply-adds. What a tile of positions needs
// (features, hidden features of one output block, results) stays in the second-level cache.
#pragma once

#include "mlp_rows.h"
#include "panels.h"

namespace monarch {
namespace {

template <class T>
struct Mlp : Panels<T> {
  using Panels<T>::W, Panels<T>::kPanel, Panels<T>::kTile;
  using P = Panels<T>;
  using V = typename P::V;

  static const char* block_matmul(const BlockMatmulArgs& g, const Exec& exec) {
    constexpr int64_t kChunk = 192;  // output features at a time: whole parts of kRows, whole vectors to turn back
    const auto& [blocks, q, p, weights] = g.weight;
    Scratch<T> x(kTile * blocks * p), y(kTile * kChunk);
    const T* const bias = static_cast<const T*>(g.bias);
    P::for_tiles(g.positions, exec.begin, exec.end, [&](int64_t batch, int64_t m, int64_t n) {
      P::pack(g.x, batch, m, n, blocks * p, x.get());
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t i = 0; i < q; i += kChunk) {
          const int64_t size = q - i < kChunk ? q - i : kChunk, first = block * q + i;
          const T* const weight = static_cast<const T*>(weights) + first * p;
          products(weight, p, size, bias ? bias + first : nullptr, x.get() + block * p * kPanel, blocks * p,
                   P::count(n), y.get(), size);
          P::unpack(y.get(), g.y, batch, m, n, first, size);
        }
    });
    return nullptr;
  }

  // The permutations decide where a result of a tile is stored, and cost nothing.
  static const char* monarch(const MonarchArgs& g, const Exec& exec) {
    const auto& [k, q, p, first] = g.first;
    const auto& [l, s, r, second] = g.second;
    const int64_t wide = k * p, middle = l * r, features = l * s;
    // the results take the place of x, which only the first factor reads
    Scratch<T> outer(kTile * (wide > features ? wide : features)), h(kTile * middle);
    P::for_tiles(g.positions, exec.begin, exec.end, [&, l = l, r = r](int64_t batch, int64_t m, int64_t n) {
      const int64_t panels = P::count(n);
      P::pack(g.x, batch, m, n, wide, outer.get());
      for (int64_t block = 0; block < k; ++block)
        products(static_cast<const T*>(first) + block * q * p, p, q, nullptr, outer.get() + block * p * kPanel, wide,
                 panels, h.get(), middle, [&](int64_t i) { return (block * q + i) % l * r + (block * q + i) / l; });
      for (int64_t block = 0; block < l; ++block)
        products(static_cast<const T*>(second) + block * s * r, r, s, static_cast<const T*>(g.bias),
                 h.get() + block * r * kPanel, middle, panels, outer.get(), features,
                 [&](int64_t i) { return i * l + block; });
      P::unpack(outer.get(), g.y, batch, m, n, 0, features);
    });
    return nullptr;
  }

  static const char* whole(const GluMlpArgs& g, const Exec& exec) {
    const int64_t wide = g.in.blocks * g.in.p, features = g.out.blocks * g.out.q;
    Scratch<T> x(kTile * wide), h(kTile * g.out.p), y(kTile * features);
    P::for_tiles(g.positions, exec.begin, exec.end, [&](int64_t batch, int64_t m, int64_t n) {
      const int64_t panels = P::count(n);
      P::pack(g.x, batch, m, n, wide, x.get());
      if (g.residual.data) P::pack(g.residual, batch, m, n, features, y.get());
      for (int64_t block = 0; block < g.out.blocks; ++block) {
        const int64_t first = block * g.out.q;
        hidden(g, x.get(), panels, block * g.out.p, g.out.p, h.get());
        products(static_cast<const T*>(g.out.data) + first * g.out.p, g.out.p, g.out.q,
                 g.bias ? static_cast<const T*>(g.bias) + first : nullptr, h.get(), g.out.p, panels,
                 y.get() + first * kPanel, features, InOrder(), g.residual.data != nullptr);
      }
      if (g.norm_weight)
        for (int64_t i = 0; i < n; i += W)
          normalise(g, features, y.get() + i / kPanel * kPanel * features + i % kPanel);
      P::unpack(y.get(), g.y, batch, m, n, 0, features);
    });
    return nullptr;
  }

 private:
  struct InOrder {
    MONARCH_INLINE int64_t operator()(int64_t i) const { return i; }
  };

  // y[at(i)] = w[i] x + bias[at(i)], plus y[at(i)] itself when adding; x_features and y_features apart from panel to
  // panel.
  template <class At = InOrder>
  static void products(const T* w, int64_t K, int64_t rows, const T* bias, const T* x, int64_t x_features,
                       int64_t panels, T* y, int64_t y_features, At at = {}, bool add = false) {
    P::in_parts(rows, [&](int64_t i, auto part) {
      constexpr int R = decltype(part)::value;
      int64_t rows_at[R];
      for (int r = 0; r < R; ++r) rows_at[r] = at(i + r);
      for (int64_t panel = 0; panel < panels; ++panel) {
        V sums[R][2];
        P::template product<R>(w + i * K, K, x + panel * x_features * kPanel, sums);
        T* const to = y + panel * y_features * kPanel;
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < 2; ++v) {
            T* const place = to + rows_at[r] * kPanel + v * W;
            if (bias) sums[r][v] = sums[r][v] + bias[rows_at[r]];
            store<W>(place, add ? sums[r][v] + load<W>(place) : sums[r][v]);
          }
      }
    });
  }

  // h[j] = gelu(a[begin + j]) * a[inner + begin + j] for count hidden features, a = w_in x.
  static void hidden(const GluMlpArgs& g, const T* x, int64_t panels, int64_t begin, int64_t count, T* h) {
    const int64_t p = g.in.p, q = g.in.q, inner = g.in.blocks * q / 2, features = g.in.blocks * p;
    const T* const weight = static_cast<const T*>(g.in.data);
    for (int64_t j = begin, n; j < begin + count; j += n) {
      const int64_t gate = j, value = inner + j;  // rows of w_in; neither run may leave its block
      n = begin + count - j;
      n = n < q - gate % q ? n : q - gate % q;
      n = n < q - value % q ? n : q - value % q;
      P::in_parts(n, [&](int64_t i, auto part) {
        constexpr int R = decltype(part)::value;
        for (int64_t panel = 0; panel < panels; ++panel) {
          const T* const from = x + panel * features * kPanel;
          T* const to = h + (panel * count + j - begin + i) * kPanel;
          V sums[R][2];
          P::template product<R>(weight + (gate + i) * p, p, from + gate / q * p * kPanel, sums);
          for (int r = 0; r < R; ++r)
            for (int v = 0; v < 2; ++v) store<W>(to + r * kPanel + v * W, vgelu<T, W>(sums[r][v]));
          P::template product<R>(weight + (value + i) * p, p, from + value / q * p * kPanel, sums);
          for (int r = 0; r < R; ++r)
            for (int v = 0; v < 2; ++v) {
              T* const place = to + r * kPanel + v * W;
              store<W>(place, sums[r][v] * load<W>(place));
            }
        }
      });
    }
  }

  // f(0) + ... + f(n - 1), in groups, so that rounding errors stay small
  template <class F>
  static MONARCH_INLINE V sum_over(int64_t n, F f) {
    V total{};
    for (int64_t begin = 0; begin < n; begin += 32) {
      V part{};
      for (int64_t j = begin; j < n && j < begin + 32; ++j) part = part + f(j);
      total = total + part;
    }
    return total;
  }

  // LayerNorm over the features of W positions.
  static void normalise(const GluMlpArgs& g, int64_t features, T* y) {
    const V mean = sum_over(features, [&](int64_t j) { return load<W>(y + j * kPanel); }) / T(features);
    const V squares = sum_over(features, [&](int64_t j) {
      const V d = load<W>(y + j * kPanel) - mean;
      return d * d;
    });
    V scale;
    for (int i = 0; i < W; ++i) scale[i] = T(1) / T(::sqrt(double(squares[i] / T(features)) + g.eps));
    const T* const weight = static_cast<const T*>(g.norm_weight);
    const T* const bias = static_cast<const T*>(g.norm_bias);
    for (int64_t j = 0; j < features; ++j)
      store<W>(y + j * kPanel, (load<W>(y + j * kPanel) - mean) * scale * weight[j] + bias[j]);
  }
};

template <class T>
constexpr MlpKernels mlp_kernels(VariantInfo info) {
  return {info, &MlpRows<T>::glu, &MlpRows<T>::residual_norm, &Mlp<T>::block_matmul, &Mlp<T>::monarch, &Mlp<T>::whole};
}

}  // namespace
}  // namespace monarch
