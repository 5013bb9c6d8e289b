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
  using Panels<T>::W, Panels<T>::kPanel;
  using Target = typename Panels<T>::Target;
  using P = Panels<T>;
  using V = typename P::V;

  static const char* block_matmul(const BlockMatmulArgs& g, const Exec& exec) {
    constexpr int64_t kChunk = 192;  // output features at a time: whole parts of kRows, whole vectors to turn back
    const auto& [blocks, q, p, weights] = g.weight;
    const int64_t tile = P::tile(blocks * p + kChunk, *exec.device);
    Scratch<T> x(tile * blocks * p), y(tile * kChunk);
    const T* const bias = static_cast<const T*>(g.bias);
    P::for_tiles(tile, g.positions, exec.begin, exec.end, [&](int64_t batch, int64_t m, int64_t n) {
      const bool in_place = g.y.position_stride == 1 && n % kPanel == 0;
      T* const to = static_cast<T*>(g.y.data) + batch * g.y.batch_stride + m;
      P::pack(g.x, batch, m, n, blocks * p, x.get());
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t i = 0; i < q; i += kChunk) {
          const int64_t size = q - i < kChunk ? q - i : kChunk, first = block * q + i;
          const T* const weight = static_cast<const T*>(weights) + first * p;
          const Results results =
              in_place ? Results{to + first * g.y.feature_stride, kPanel, g.y.feature_stride}
                       : Results::in_panels(y.get(), size, P::target(g.y, batch, m, n, first, size), 0, size);
          products(weight, p, size, bias ? bias + first : nullptr, x.get() + block * p * kPanel, blocks * p,
                   P::vectors(n), results);
          if (!in_place) P::unpack(y.get(), g.y, batch, m, n, first, size);
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
    const int64_t outside = wide > features ? wide : features, tile = P::tile(outside + middle, *exec.device);
    Scratch<T> outer(tile * outside), h(tile * middle);
    P::for_tiles(tile, g.positions, exec.begin, exec.end,
                 [&, l = l, s = s, r = r](int64_t batch, int64_t m, int64_t n) {
                   const int64_t vectors = P::vectors(n);
                   const Target target = P::target(g.y, batch, m, n, 0, features);
                   P::pack(g.x, batch, m, n, wide, outer.get());
                   for (int64_t block = 0; block < k; ++block)
                     products(static_cast<const T*>(first) + block * q * p, p, q, nullptr,
                              outer.get() + block * p * kPanel, wide, vectors, Results::in_panels(h.get(), middle),
                              [&](int64_t i) { return (block * q + i) % l * r + (block * q + i) / l; });
                   for (int64_t block = 0; block < l; ++block)
                     products(static_cast<const T*>(second) + block * s * r, r, s, static_cast<const T*>(g.bias),
                              h.get() + block * r * kPanel, middle, vectors,
                              Results::in_panels(outer.get(), features, target, block * s, features),
                              [&](int64_t i) { return i * l + block; });
                   P::unpack(outer.get(), g.y, batch, m, n, 0, features);
                 });
    return nullptr;
  }

  static const char* residual_norm(const ResidualNormArgs& a, const Exec& exec) {
    return with_io<T>(a.io, [&](auto io) {
      using Io = typename decltype(io)::type;
      a.out.feature_stride == 1 ? MlpRows<T>::template norm_rows<Io>(a, exec) : norm_panels<Io>(a, exec);
    });
  }

  static const char* whole(const GluMlpArgs& g, const Exec& exec) {
    const int64_t wide = g.in.blocks * g.in.p, features = g.out.blocks * g.out.q;
    const int64_t tile = P::tile(wide + g.out.p + features, *exec.device);
    Scratch<T> x(tile * wide), h(tile * g.out.p), y(tile * features);
    const bool residual_is_x = g.residual.data == g.x.data && wide == features && same_strides(g.residual, g.x);
    const T* const residual = !g.residual.data ? nullptr : residual_is_x ? x.get() : y.get();
    P::for_tiles(tile, g.positions, exec.begin, exec.end, [&](int64_t batch, int64_t m, int64_t n) {
      const int64_t vectors = P::vectors(n);
      const Target target = P::target(g.y, batch, m, n, 0, features);
      P::pack(g.x, batch, m, n, wide, x.get());
      if (g.residual.data && !residual_is_x) P::pack(g.residual, batch, m, n, features, y.get());
      for (int64_t block = 0; block < g.out.blocks; ++block) {
        const int64_t first = block * g.out.q;
        hidden(g, x.get(), vectors, block * g.out.p, g.out.p, h.get());
        products(static_cast<const T*>(g.out.data) + first * g.out.p, g.out.p, g.out.q,
                 g.bias ? static_cast<const T*>(g.bias) + first : nullptr, h.get(), g.out.p, vectors,
                 Results::in_panels(y.get() + first * kPanel, features, target, first, features), InOrder(),
                 residual ? residual + first * kPanel : nullptr);
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

  struct Results {  // of features that are feature_stride apart, from panel to panel panel_stride
    T* data;
    int64_t panel_stride, feature_stride;
    // Where they will be unpacked once `all` rows of weights are done, `done` of them before these.
    Target target{};
    int64_t done = 0, all = 1;
    static Results in_panels(T* data, int64_t features, const Target& target = {}, int64_t done = 0, int64_t all = 1) {
      return {data, features * kPanel, kPanel, target, done, all};
    }
  };

  static MONARCH_INLINE bool same_strides(const Matrix& a, const Matrix& b) {
    return a.batch_stride == b.batch_stride && a.position_stride == b.position_stride &&
           a.feature_stride == b.feature_stride;
  }

  // y[at(i)] = w[i] x + bias[at(i)] + added[at(i)], which lies as y does; panels of x have x_features.
  template <class At = InOrder>
  static void products(const T* w, int64_t K, int64_t rows, const T* bias, const T* x, int64_t x_features,
                       int64_t vectors, Results y, At at = {}, const T* added = nullptr) {
    P::in_parts(rows, [&](int64_t i, auto part) {
      constexpr int R = decltype(part)::value;
      int64_t rows_at[R];
      for (int r = 0; r < R; ++r) rows_at[r] = at(i + r);
      y.target.fetch(y.done + i, y.done + i + R, y.all);
      for (int64_t panel = 0; panel < P::panels(vectors); ++panel)
        for (int r = 0; r < R; ++r)
          for (int64_t line = 0; line < kPanel; line += kCacheLine<T>)
            __builtin_prefetch(y.data + panel * y.panel_stride + rows_at[r] * y.feature_stride + line, 1);
      V sums[P::kPanels][R][2];
      P::template product<R>(w + i * K, K, x, x_features, vectors, sums);
      for (int64_t panel = 0; panel < P::panels(vectors); ++panel)
        for (int r = 0; r < R; ++r)
          for (int v = 0; v < 2 && 2 * panel + v < vectors; ++v) {
            const int64_t place = panel * y.panel_stride + rows_at[r] * y.feature_stride + v * W;
            const V sum = bias ? sums[panel][r][v] + bias[rows_at[r]] : sums[panel][r][v];
            store<W>(y.data + place, added ? sum + load<W>(added + place) : sum);
          }
    });
  }

  // h[j] = gelu(a[begin + j]) * a[inner + begin + j] for count hidden features, a = w_in x.
  static void hidden(const GluMlpArgs& g, const T* x, int64_t vectors, int64_t begin, int64_t count, T* h) {
    const int64_t p = g.in.p, q = g.in.q, inner = g.in.blocks * q / 2, features = g.in.blocks * p;
    const T* const weight = static_cast<const T*>(g.in.data);
    for (int64_t j = begin, n; j < begin + count; j += n) {
      const int64_t gate = j, value = inner + j;  // rows of w_in; neither run may leave its block
      n = begin + count - j;
      n = n < q - gate % q ? n : q - gate % q;
      n = n < q - value % q ? n : q - value % q;
      P::in_parts(n, [&](int64_t i, auto part) {
        constexpr int R = decltype(part)::value;
        V gates[P::kPanels][R][2], values[P::kPanels][R][2];
        P::template product<R>(weight + (gate + i) * p, p, x + gate / q * p * kPanel, features, vectors, gates);
        P::template product<R>(weight + (value + i) * p, p, x + value / q * p * kPanel, features, vectors, values);
        for (int64_t panel = 0; panel < P::panels(vectors); ++panel)
          for (int r = 0; r < R; ++r)
            for (int v = 0; v < 2 && 2 * panel + v < vectors; ++v)
              store<W>(h + (panel * count + j - begin + i + r) * kPanel + v * W,
                       vgelu<T, W>(gates[panel][r][v]) * values[panel][r][v]);
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
  template <class Args>
  static void normalise(const Args& g, int64_t features, T* y) {
    const V mean = sum_over(features, [&](int64_t j) { return load<W>(y + j * kPanel); }) / T(features);
    const V squares = sum_over(features, [&](int64_t j) {
      const V d = load<W>(y + j * kPanel) - mean;
      return d * d;
    });
    V scale{};
    for (int i = 0; i < W; ++i) scale[i] = T(1) / T(::sqrt(double(squares[i] / T(features)) + g.eps));
    const T* const weight = static_cast<const T*>(g.norm_weight);
    const T* const bias = static_cast<const T*>(g.norm_bias);
    for (int64_t j = 0; j < features; ++j)
      store<W>(y + j * kPanel, (load<W>(y + j * kPanel) - mean) * scale * weight[j] + bias[j]);
  }

  // With positions side by side in the residual and the result.
  template <class Io>
  static void norm_panels(const ResidualNormArgs& a, const Exec& exec) {
    const int64_t F = a.features;
    Scratch<T> panel(F * kPanel), bias(F + W);
    for (int64_t j = 0; j < F; j += W)
      store<W>(bias.get() + j, a.bias ? load_upto<W>(static_cast<const Io*>(a.bias) + j, F - j) : V{});
    for (int64_t m = exec.begin, n; m < exec.end; m += n) {
      n = exec.end - m < kPanel ? exec.end - m : kPanel;
      P::template pack<Io>({const_cast<void*>(a.y), 0, F, 1}, 0, m, n, F, panel.get());
      const Io* const residual = a.residual.data ? static_cast<const Io*>(a.residual.data) + m : nullptr;
      for (int64_t j = 0; j < F; ++j)
        for (int64_t i = 0; i < n; i += W) {
          T* const z = panel.get() + j * kPanel + i;
          const V biased = load<W>(z) + bias.get()[j];
          store<W>(z, residual ? biased + load_upto<W>(residual + j * a.residual.feature_stride + i, n - i) : biased);
        }
      if (a.norm_weight)
        for (int64_t i = 0; i < n; i += W) normalise(a, F, panel.get() + i);
      P::template unpack<Io>(panel.get(), a.out, 0, m, n, 0, F);
    }
  }
};

template <class T>
constexpr MlpKernels mlp_kernels(VariantInfo info) {
  using M = Mlp<T>;
  return {info, &MlpRows<T>::glu, &M::residual_norm, &M::block_matmul, &M::monarch, &M::whole, M::kPanel};
}

}  // namespace
}  // namespace monarch
