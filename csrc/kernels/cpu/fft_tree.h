// The right-angle transform of one row held in a work buffer (math/rightangle.h says what it computes).
//
//   work buffer   blocks of W complex numbers, [W real parts][W imaginary parts], W = SIMD lanes
//   passes        radix-R splits with one set of scalar twiddles per tree node, depth first: a subtree that fits
//                 a cache level is finished before the next one is touched
//   codelet       the last W*B points of every branch (B vectors): twisted to a plain cyclic transform, done in
//                 registers forward, handed to a BinOp (multiply by the filter, accumulate a gradient, ...) and
//                 brought back, without touching memory in between; small ones in pairs, stage by stage, because a
//                 processor does not look far enough ahead to begin the second before it is done with the first
//
// Limiting resource: shuffles and twiddle loads in the codelet, L2 bandwidth in the passes.
#pragma once

#include "simd.h"
#include "tree_tables.h"

namespace monarch {
namespace {

// Instead of a source or a sink: none, of which no part is invalid.
struct Nothing {
  static constexpr int64_t valid = INT64_MAX;
};
template <class X>
constexpr bool kGiven = !std::is_same_v<X, Nothing>;

template <class T, int W>
class Engine {
 public:
  using V = Vec<T, W>;
  using C = Complex<V>;
  static constexpr int kBlock = 2 * W;  // scalars in one vector of complex numbers

  static MONARCH_INLINE C load_block(const T* p) { return {load<W>(p), load<W>(p + W)}; }
  static MONARCH_INLINE void store_block(T* p, C x) {
    store<W>(p, x.re);
    store<W>(p + W, x.im);
  }

 private:
  // ---- one radix-R node: x[q] *= c^(q/R), then the transform; the inverse undoes it in the opposite order ----

  template <int R, bool Inverse>
  static MONARCH_INLINE void butterfly(C* x, const Complex<T>* tw) {
    if constexpr (Inverse) dft<R, true>(x);
#pragma GCC unroll 8
    for (int q = 1; q < R; ++q) x[q] = twiddle<Inverse>(x[q], tw[q - 1]);
    if constexpr (!Inverse) dft<R, false>(x);
  }

  template <int R, bool Inverse>
  static void pass(T* w, int64_t stride, const Complex<T>* tw) {
    for (int64_t j = 0; j < stride; ++j) {
      C x[R];
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) x[q] = load_block(w + kBlock * (q * stride + j));
      butterfly<R, Inverse>(x, tw);
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) store_block(w + kBlock * (q * stride + j), x[q]);
    }
  }

  // Calls f with the radix as a compile-time constant.
  template <class F>
  static MONARCH_INLINE void with_radix(int radix, F f) {
    switch (radix) {
      case 2: return f(std::integral_constant<int, 2>());
      case 3: return f(std::integral_constant<int, 3>());
      case 4: return f(std::integral_constant<int, 4>());
      case 5: return f(std::integral_constant<int, 5>());
      default: return f(std::integral_constant<int, 8>());
    }
  }

  template <bool Inverse>
  static void pass(T* w, const Level<T>& lv, int64_t node) {
    const Complex<T>* tw = lv.twiddles + node * (lv.radix - 1);
    with_radix(lv.radix, [&](auto radix) { pass<radix, Inverse>(w, lv.stride, tw); });
  }

  // Sources and sinks of the root give and take W elements of a row from position t on. Those with `Inside` are known
  // to lie within the valid part of the row, which needs no test. A real row takes half the twiddle work, and only
  // real parts need to leave the inverse; filters may be complex.
  template <int R, bool Inside, class Source>
  static MONARCH_INLINE void first(const Source& in, T* w, int64_t j, int64_t stride, int64_t pitch,
                                   const Complex<T>* tw) {
    C x[R];
    if constexpr (std::is_same_v<decltype(in.template get<Inside>(j)), C>) {
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) x[q] = in.template get<Inside>(W * (q * stride + j));
      butterfly<R, false>(x, tw);
    } else {
      x[0] = {in.template get<Inside>(W * j), V{}};
#pragma GCC unroll 8
      for (int q = 1; q < R; ++q) {
        const V a = in.template get<Inside>(W * (q * stride + j));
        x[q] = {a * tw[q - 1].re, a * tw[q - 1].im};
      }
      dft<R, false>(x);
    }
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) store_block(w + kBlock * (q * pitch + j), x[q]);
  }

  template <int R, bool Inside, class Sink>
  static MONARCH_INLINE void last(const T* w, const Sink& out, int64_t j, int64_t stride, int64_t pitch,
                                  const Complex<T>* tw) {
    C x[R];
#pragma GCC unroll 8
    for (int q = 0; q < R; ++q) x[q] = load_block(w + kBlock * (q * pitch + j));
    if constexpr (requires { out.template put<Inside>(j, x[0]); }) {
      butterfly<R, true>(x, tw);
#pragma GCC unroll 8
      for (int q = 0; q < R; ++q) out.template put<Inside>(W * (q * stride + j), x[q]);
    } else {
      dft<R, true>(x);
      out.template put<Inside>(W * j, x[0].re);
#pragma GCC unroll 8
      for (int q = 1; q < R; ++q)
        out.template put<Inside>(W * (q * stride + j), x[q].re * tw[q - 1].re + x[q].im * tw[q - 1].im);
    }
  }

  // ---- the codelet: W*B points in registers ----------------------------------------------------------------

  // Neighbours that are worked on together.
  template <int B>
  static constexpr int kTogether = B == 4 ? 2 : 1;

  // Lane stages of N codelets: tiles of R vectors trade lane groups so that the next R-fold split runs across
  // registers.
  template <int B, int N, int Group, bool Inverse>
  static MONARCH_INLINE void lane_stages(C* x, const T* tw) {
    if constexpr (Group > 1) {
      constexpr int R = lane_radix<T>(Group), G = Group / R;
      if constexpr (Inverse) lane_stages<B, N, G, true>(x, tw + (B / R) * (R - 1) * kBlock);
#pragma GCC unroll 8
      for (int t = 0; t < N * B; t += R) {
        C* y = x + t;
        if constexpr (!Inverse) trade<R, G>(y);
        if constexpr (Inverse) dft<R, true>(y);
#pragma GCC unroll 4
        for (int q = 1; q < R; ++q)
          y[q] = twiddle<Inverse>(y[q], load_block(tw + ((t % B / R) * (R - 1) + q - 1) * kBlock));
        if constexpr (!Inverse) dft<R, false>(y);
        if constexpr (Inverse) trade<R, G>(y);
      }
      if constexpr (!Inverse) lane_stages<B, N, G, false>(x, tw + (B / R) * (R - 1) * kBlock);
    }
  }

  // Transpose R vectors of R lane groups, groups of G lanes; its own inverse.
  template <int R, int G>
  static MONARCH_INLINE void trade(C* y) {
    if constexpr (R == 4) {
      transpose4<W, G>(y[0].re, y[1].re, y[2].re, y[3].re);
      transpose4<W, G>(y[0].im, y[1].im, y[2].im, y[3].im);
    } else {
      exchange<W, G>(y[0].re, y[1].re);
      exchange<W, G>(y[0].im, y[1].im);
    }
  }

  // Multiply coefficient j by c^(j/n): the node t^n - c becomes t^n - 1, whose tables are the same everywhere.
  template <int B, bool Inverse>
  static MONARCH_INLINE void twist(C* x, const Tree<T>& tree, int64_t block) {
    if (tree.twist_is_split) {
      const C lane = load_block(tree.twist_lanes + block * kBlock);
      const Complex<T>* step = tree.twist_steps + block * (B - 1);
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q) {
        x[q] = twiddle<Inverse>(x[q], lane);
        if (q > 0) x[q] = twiddle<Inverse>(x[q], step[q - 1]);
      }
    } else {
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q)
        x[q] = twiddle<Inverse>(x[q], load_block(tree.twist_lanes + (block * B + q) * kBlock));
    }
  }

  // N codelets from `block` on. BinOp: op(position of the first bin in tree order, x, n) works on n vectors of bins.
  template <int B, int N, bool Forward, bool Inverse, class BinOp>
  static MONARCH_INLINE void codelets(T* w, const Tree<T>& tree, int64_t block, const BinOp& op) {
    C x[N * B];
    if constexpr (Forward) {
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
        for (int q = n * B; q < (n + 1) * B; ++q) x[q] = load_block(w + q * kBlock);
        twist<B, false>(x + n * B, tree, block + n);
        dft<B, false>(x + n * B);
      }
      lane_stages<B, N, W, false>(x, tree.lane_twiddles);
    }
    op(block * B * kBlock, x, N * B);
    forget_loads();
    if constexpr (Inverse) {
      lane_stages<B, N, W, true>(x, tree.lane_twiddles);
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        dft<B, true>(x + n * B);
        twist<B, true>(x + n * B, tree, block + n);
#pragma GCC unroll 8
        for (int q = n * B; q < (n + 1) * B; ++q) store_block(w + q * kBlock, x[q]);
      }
    }
  }

  // A row that is one codelet never leaves the registers. Inside: all of it is within the valid part.
  template <int B, bool Inside, class Source, class BinOp, class Sink>
  static void single_codelet(const Source& in, const BinOp& op, const Sink& out, const Tree<T>& tree) {
    C x[B];
    if constexpr (kGiven<Source>) {
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q) {
        const auto a = in.template get<Inside>(W * q);
        const C c = load_block(tree.twist_lanes + q * kBlock);
        if constexpr (std::is_same_v<decltype(a), const C>) {
          x[q] = mul(a, c);
        } else {
          x[q] = {a * c.re, a * c.im};
        }
      }
      dft<B, false>(x);
      lane_stages<B, 1, W, false>(x, tree.lane_twiddles);
    }
    op(0, x, B);
    forget_loads();
    if constexpr (kGiven<Sink>) {
      lane_stages<B, 1, W, true>(x, tree.lane_twiddles);
      dft<B, true>(x);
#pragma GCC unroll 8
      for (int q = 0; q < B; ++q) {
        const C a = mul_conj(x[q], load_block(tree.twist_lanes + q * kBlock));
        if constexpr (requires { out.template put<Inside>(0, a); }) {
          out.template put<Inside>(W * q, a);
        } else {
          out.template put<Inside>(W * q, a.re);
        }
      }
    }
  }

  // ---- depth-first walk --------------------------------------------------------------------------------------

  template <int B, bool Forward, bool Inverse, class BinOp>
  static void subtree(T* w, const Tree<T>& tree, int level, int64_t node, const BinOp& op) {
    if (level == tree.depth) return codelets<B, 1, Forward, Inverse>(w, tree, node, op);
    const Level<T>& lv = tree.levels[level];
    if constexpr (Forward) pass<false>(w, lv, node);
    children<B, Forward, Inverse>(w, lv.stride, tree, level, node, op);
    if constexpr (Inverse) pass<true>(w, lv, node);
  }
  // Of a node, `pitch` vectors apart.
  template <int B, bool Forward, bool Inverse, class BinOp>
  static MONARCH_INLINE void children(T* w, int64_t pitch, const Tree<T>& tree, int level, int64_t node,
                                      const BinOp& op) {
    const int radix = tree.levels[level].radix;
    int p = 0;
    if constexpr (constexpr int N = kTogether<B>; N > 1)
      if (level + 1 == tree.depth)
        for (; p + N <= radix; p += N)
          codelets<B, N, Forward, Inverse>(w + p * pitch * kBlock, tree, node * radix + p, op);
    for (; p < radix; ++p) subtree<B, Forward, Inverse>(w + p * pitch * kBlock, tree, level + 1, node * radix + p, op);
  }

  // Columns of the root, of which the first `inside` have all their elements within the valid part of the row.
  static MONARCH_INLINE int64_t columns_inside(const Tree<T>& tree, int64_t valid) {
    const Level<T>& lv = tree.levels[0];
    const int64_t inside = valid / W - (lv.radix - 1) * lv.stride;
    return inside < 0 ? 0 : inside < lv.stride ? inside : lv.stride;
  }
  template <class Source>
  static void root_forward(const Source& in, T* w, const Tree<T>& tree) {
    const Level<T>& lv = tree.levels[0];
    const int64_t inside = columns_inside(tree, in.valid);
    with_radix(lv.radix, [&](auto radix) {
      for (int64_t j = 0; j < inside; ++j) first<radix, true>(in, w, j, lv.stride, tree.root_pitch, lv.twiddles);
      for (int64_t j = inside; j < lv.stride; ++j)
        first<radix, false>(in, w, j, lv.stride, tree.root_pitch, lv.twiddles);
    });
  }
  template <class Sink>
  static void root_inverse(const T* w, const Sink& out, const Tree<T>& tree) {
    const Level<T>& lv = tree.levels[0];
    const int64_t inside = columns_inside(tree, out.valid);
    with_radix(lv.radix, [&](auto radix) {
      for (int64_t j = 0; j < inside; ++j) last<radix, true>(w, out, j, lv.stride, tree.root_pitch, lv.twiddles);
      for (int64_t j = inside; j < lv.stride; ++j)
        last<radix, false>(w, out, j, lv.stride, tree.root_pitch, lv.twiddles);
    });
  }

  template <int B, class Source, class BinOp, class Sink>
  static MONARCH_INLINE void transform(const Source& in, const BinOp& op, const Sink& out, T* w, const Tree<T>& tree) {
    if (tree.depth == 0) {
      const bool inside = in.valid >= tree.points && out.valid >= tree.points;
      return inside ? single_codelet<B, true>(in, op, out, tree) : single_codelet<B, false>(in, op, out, tree);
    }
    if constexpr (kGiven<Source>) root_forward(in, w, tree);
    children<B, kGiven<Source>, kGiven<Sink>>(w, tree.root_pitch, tree, 0, 0, op);
    if constexpr (kGiven<Sink>) root_inverse(w, out, tree);
  }

 public:
  // A row from `in` through the transform, its bins through `op`, and through the inverse to `out`; `w` is work memory.
  // Without `in` the bins come from `op`, without `out` they stay there.
  template <class Source, class BinOp, class Sink>
  static void transform(const Source& in, const BinOp& op, const Sink& out, T* w, const Tree<T>& tree) {
    if (tree.codelet_vectors == 8) {
      transform<8>(in, op, out, w, tree);
    } else {
      transform<4>(in, op, out, w, tree);
    }
  }
};

}  // namespace
}  // namespace monarch
