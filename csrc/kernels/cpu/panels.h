// Products of weights with panels: a few rows turned so that positions lie in lanes and features follow each other.
// Then every weight is a scalar that meets whole vectors of positions, weights are read in the order they are stored
// in, and a result is the next product's operand: nothing is packed but the rows themselves.
#pragma once

#include "../args.h"
#include "../registry.h"
#include "simd.h"

namespace monarch {
namespace {

template <class T>
struct Panels {
  static constexpr int W = kLanes<T>;
  using V = Vec<T, W>;
  // kRows * 2 vectors of sums stay in registers, beside two of positions and a weight.
#if defined(__AVX512F__) || defined(__aarch64__)
  static constexpr int kRows = 12;
#else
  static constexpr int kRows = 6;
#endif
  static constexpr int kStretch = 192;           // products that are summed in one register
  static constexpr int kPanel = 2 * W;           // positions that are computed together
  static constexpr int kTile = 512 / sizeof(T);  // most positions that share one pass over the weights
  static constexpr int kPanels = kTile / kPanel;

  // How many do: as many as the L2 cache has room for, at so many features each, and at least half of kTile, however
  // little it has.
  static MONARCH_INLINE int64_t tile(int64_t features, const DeviceInfo& device) {
    const int64_t room = device.l2_bytes / 4 * 3 / (features * int64_t(sizeof(T))) / kPanel * kPanel;
    return room < kTile / 2 ? kTile / 2 : room < kTile ? room : kTile;
  }

  // Where the first feature of position i lies, a multiple of W.
  static MONARCH_INLINE int64_t place(int64_t i, int64_t features) {
    return i / kPanel * kPanel * features + i % kPanel;
  }
  static MONARCH_INLINE int64_t vectors(int64_t positions) { return (positions + W - 1) / W; }
  static MONARCH_INLINE int64_t panels(int64_t vectors) { return (vectors + 1) / 2; }

  // sums[panel][r] = sum_k w[r, k] * x[k], for so many vectors of positions, two in a panel; from panel to panel lie
  // x_features features. In stretches, so that rounding errors stay small and the weights of one are in cache for all
  // panels. AMD's Zen 3 (AVX2) does not see where short rows of weights go on: those of the next call are brought into
  // cache. Intel's processors with AVX-512 do, and are faster alone.
  template <int R>
  static MONARCH_INLINE void product(const T* w, int64_t K, const T* x, int64_t x_features, int64_t vectors,
                                     V (&sums)[kPanels][R][2]) {
    int64_t begin = 0, end;
    do {
      end = begin + kStretch < K ? begin + kStretch : K;
      for (int64_t panel = 0, panels = Panels::panels(vectors); panel < panels; ++panel) {
        if (sizeof(V) < 64 && K <= kStretch)
          for (int64_t i = R * K * panel / panels; i < R * K * (panel + 1) / panels; i += kCacheLine<T>)
            __builtin_prefetch(w + R * K + i);
        const T* const at = x + (panel * x_features + begin) * kPanel;
        if (2 * panel + 1 < vectors)
          stretch<R, 2>(w + begin, K, end - begin, at, begin > 0, sums[panel]);
        else
          stretch<R, 1>(w + begin, K, end - begin, at, begin > 0, sums[panel]);
      }
      begin = end;
    } while (begin < K);
  }

  // Calls f with the number of rows, as a constant, of each part that [0, n) is cut into.
  template <class F>
  static MONARCH_INLINE void in_parts(int64_t n, F f) {
    int64_t i = 0;
    for (; i + kRows <= n; i += kRows) f(i, std::integral_constant<int, kRows>());
    for (; i + 3 <= n; i += 3) f(i, std::integral_constant<int, 3>());
    for (; i < n; ++i) f(i, std::integral_constant<int, 1>());
  }

  // Features [0, features) of positions [m, m + n) to panels (features, kPanel); missing positions are zero.
  template <class Io = T>
  static void pack(const Matrix& x, int64_t batch, int64_t m, int64_t n, int64_t features, T* panels) {
    const Io* const from = element<const Io>(x, batch, m, 0);
    const int64_t padded = vectors(n) * W;
    if (x.position_stride == 1) {
      for (int64_t j = 0; j < features; ++j)
        for (int64_t i = 0; i < padded; i += W)
          store<W>(panels + place(i, features) + j * kPanel, load_upto<W>(from + j * x.feature_stride + i, n - i));
      return;
    }
    for (int64_t i = 0; i < padded; i += W) {
      T* const to = panels + place(i, features);
      for (int64_t j = 0; j < features; j += W) {
        V v[W];
        for (int r = 0; r < W; ++r)
          v[r] = i + r < n ? load_upto<W>(from + (i + r) * x.position_stride + j, features - j) : V{};
        transpose(v);
        for (int r = 0; r < W && j + r < features; ++r) store<W>(to + (j + r) * kPanel, v[r]);
      }
    }
  }

  // Back, to features [first, first + features).
  template <class Io = T>
  static void unpack(const T* panels, const Matrix& y, int64_t batch, int64_t m, int64_t n, int64_t first,
                     int64_t features) {
    Io* const to = element<Io>(y, batch, m, first);
    if (y.position_stride == 1) {
      for (int64_t j = 0; j < features; ++j)
        for (int64_t i = 0; i < n; i += W)
          store_upto<W>(to + j * y.feature_stride + i, load<W>(panels + place(i, features) + j * kPanel), n - i);
      return;
    }
    for (int64_t i = 0; i < n; i += W) {
      const T* const from = panels + place(i, features);
      for (int64_t j = 0; j < features; j += W) {
        V v[W];
        for (int r = 0; r < W; ++r) v[r] = j + r < features ? load<W>(from + (j + r) * kPanel) : V{};
        transpose(v);
        for (int r = 0; r < W && i + r < n; ++r)
          store_upto<W>(to + (i + r) * y.position_stride + j, v[r], features - j);
      }
    }
  }

  // Where unpack() will write. A part of it is brought into cache during each part of the products before, so that the
  // stores do not wait for lines from memory.
  struct Target {
    const T* data = nullptr;
    int64_t runs = 0, length = 0, stride = 0;
    MONARCH_INLINE void fetch(int64_t begin, int64_t end, int64_t of) const {
      for (int64_t run = runs * begin / of; run < runs * end / of; ++run)
        for (int64_t i = 0; i < length; i += kCacheLine<T>) __builtin_prefetch(data + run * stride + i, 1);
    }
  };
  static MONARCH_INLINE Target target(const Matrix& y, int64_t batch, int64_t m, int64_t n, int64_t first,
                                      int64_t features) {
    const T* const to = element<const T>(y, batch, m, first);
    if (y.position_stride == 1) return {to, features, n, y.feature_stride};
    return {to, n, features, y.position_stride};
  }

  // Calls f(batch, first position, how many) for every tile of the flattened positions [begin, end).
  template <class F>
  static MONARCH_INLINE void for_tiles(int64_t tile, int64_t positions, int64_t begin, int64_t end, F f) {
    for (int64_t at = begin, n; at < end; at += n) {
      const int64_t m = at % positions;
      n = end - at < tile ? end - at : tile;
      n = n < positions - m ? n : positions - m;
      f(at / positions, m, n);
    }
  }

 private:
  template <class Io>
  static MONARCH_INLINE Io* element(const Matrix& x, int64_t batch, int64_t position, int64_t feature) {
    return static_cast<Io*>(x.data) + batch * x.batch_stride + position * x.position_stride +
           feature * x.feature_stride;
  }

  // Not inlined: where the caller's variables are alive too, the compiler finds no registers for R rows.
  //
  // Multiply-adds are the limit only if little else has to be decoded, above all where two processors share a core:
  // half of the rows have a pointer, so that their multiply-adds read the weight themselves, and four products share
  // the end of the loop.
  template <int R, int N>
  [[gnu::noinline]] static void stretch(const T* w, int64_t row, int64_t count, const T* x, bool add, V (&sums)[R][2]) {
    V part[R][N]{};
    constexpr int kPairs = (R + 1) / 2;
    const T* pair[kPairs];
#pragma GCC unroll 6
    for (int i = 0; i < kPairs; ++i) pair[i] = of_its_own(w + 2 * i * row);
    const auto multiply = [&](int k) __attribute__((always_inline)) {
      V at[N];
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) at[v] = load<W>(x + k * kPanel + v * W);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const T* const weight = pair[r / 2] + r % 2 * row + k;
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) {
          if (r % 2 == 0) {
            multiply_add(part[r][v], weight, at[v]);
          } else {
            part[r][v] += broadcast<V>(*weight) * at[v];
          }
        }
      }
    };
    const auto advance = [&](int k) __attribute__((always_inline)) {
      x += k * kPanel;
#pragma GCC unroll 6
      for (int i = 0; i < kPairs; ++i) pair[i] += k;
    };
    constexpr int kUnrolled = kVectorBytes > 16 ? 4 : 1;  // SSE has no registers for more
    for (; count >= kUnrolled; count -= kUnrolled) {
#pragma GCC unroll 4
      for (int k = 0; k < kUnrolled; ++k) multiply(k);
      advance(kUnrolled);
    }
    for (; count > 0; --count) {
      multiply(0);
      advance(1);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) sums[r][v] = add ? sums[r][v] + part[r][v] : part[r][v];
  }

  static MONARCH_INLINE void transpose(V (&v)[W]) { transpose_stages<1>(v); }
  template <int Chunk>
  static MONARCH_INLINE void transpose_stages(V (&v)[W]) {
    if constexpr (Chunk < W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (i / Chunk % 2 == 0) exchange<W, Chunk>(v[i], v[i + Chunk]);
      transpose_stages<2 * Chunk>(v);
    }
  }
};

}  // namespace
}  // namespace monarch
