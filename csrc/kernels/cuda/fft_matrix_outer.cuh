// The outer part of rows that do not fit into a block, on tensor cores (plan/tiles.h: MatrixCut): its passes and their
// tables. Tiles and what is around them are in fft_outer_columns.cuh, the inner nodes in fft_matrix_inner.cuh.
#pragma once

#include "fft_matrix_head.cuh"
#include "fft_outer_columns.cuh"

namespace monarch {

MONARCH_DEVICE_CALL void make_outer_tables(bool inverse) {
  const OuterColumns s(0);
  const int radix = s.tile.radix, head = s.tile.head;
  if (s.thread < 2) s.greatest_point(s.thread) = s.greatest_bin(s.thread) = 0;
  // the numbers by angle of a level's nodes, found once each, where the tile will be
  int* const by_angle = s.part<int>(kOuterQuads);
  for (int node = s.thread; node < head; node += s.tile.threads) {
    const int m = static_cast<int>((radix ? node_angle(radix, 2, node) : node_angle(head, 1, node)).m);
    by_angle[node] = radix ? node : m;
    if (radix) s.in_tree(m) = node;
  }
  for (int node = s.thread; s.tile.levels > 1 && node < head * kNodePoints; node += s.tile.threads)
    by_angle[head + node] = static_cast<int>(node_angle(head, 2, node).m);
  __syncthreads();
  const auto angle = [&](int level, int node) {
    return level ? Angle{by_angle[head + node], head * kNodePoints} : Angle{by_angle[node], head};
  };
  for (int level = 0, nodes = head; level < s.tile.levels; ++level, nodes *= kNodePoints)
    for (int i = s.thread; i < nodes * kNodePoints; i += s.tile.threads) {
      const int node = i / kNodePoints, j = i % kNodePoints;
      s.twist(level, node, j) = turned(angle(level, node), j, 16, 1 / kMatrixScale);
    }
  // Matrices, a warp for each word. Of a level: children are in tree order; the inverse is the conjugate, transposed.
  const auto of_level = [&](int r, int c) {
    const int turns = inverse ? r * reversed(c, 4) : reversed(r, 4) * c;
    return scaled_root(turns, 16, kMatrixScale / 4);
  };
  const int warp = s.thread / 32, warps = s.tile.threads / 32;
  for (int word = warp; s.tile.levels && word < kFragmentWords; word += warps)
    make_matrix(s.at, word, of_level, s.dft_matrix(), false);
  // of a level at the root
  const int matrices = radix ? radix : s.tile.parts * s.tile.parts;
  for (int task = warp; task < kFragmentWords * matrices; task += warps) {
    const int i = task / kFragmentWords;
    const auto angle_of = [&](int node) { return angle(0, node); };
    const auto of = [&](int r, int c) {
      return level_entry(angle_of, head, radix, s.tile.parts, i, s.stride(-1), inverse, r, c);
    };
    make_matrix(s.at, task % kFragmentWords, of, s.root_matrix(0, 0) + 128 * i, true);
  }
  __syncthreads();
}

template <bool Inverse>
MONARCH_DEVICE_CALL void outer_head(int turn) {
  const OuterColumns s(turn);
  const int below = s.tile.plane / s.tile.head;
  const float scale = scale_for(s.greatest_point(turn));
  with_head(s.tile.head, [&]<class Head>(Head) {
    constexpr int kCount = kWordsOfHead<Head::kParts>, kGroups = kQuadWords / kCount;
    for (int i = s.thread; i < below * kGroups; i += s.tile.threads) {
      const int piece = i / kGroups;
      transform_columns<Head, Inverse>(
          s.words(0), s.words(1), scale, s.head_roots(),
          [&](int q) { return s.place(piece + q * below) * kQuadWords + i % kGroups * kCount; },
          [&](Bin z, int q, int) {  // the way back's levels have done it
            return Inverse || s.tile.levels == 0 ? z : mul(z, s.twist(0, q, piece >> s.stride(0)));
          });
    }
  });
  __syncthreads();
}

// Calls f(first piece) for this warp's groups of 32 columns of the level at the root.
template <class F>
MONARCH_DEVICE void for_root_columns(const OuterColumns& s, F f) {
  for (int i = s.thread / 32; i < 1 << (s.stride(-1) - 2); i += s.tile.threads / 32) f(4 * i);
  __syncthreads();
}

// The level at the root, of real numbers in `Parts` parts of 16 points, to as many groups of 16 nodes. The matrix and,
// where `Precise`, the numbers come as halves and their rounding errors.
template <int Parts, bool Precise>
MONARCH_DEVICE void outer_root_forward(const OuterColumns& s) {
  const int stride = s.stride(-1);
  const float scale = scale_for(s.greatest_point(s.turn));
  const auto row = [&](int k) { return s.place(k << stride); };
  // products take columns 8 q + 2 t + e to lane q, in place of 8 t + 2 q + e
  const Quad* const plane = s.plane(s.at.g & 1);
  const int from = s.place(s.at.g >> 1) ^ row(2 * s.at.q), to = s.place(s.at.q) ^ row(s.at.g);
  for_root_columns(s, [&](int first) {
    const int at_first = s.place(first);
    Columns b[Parts];
#pragma unroll
    for (int part = 0; part < Parts; ++part)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int place = at_first ^ from ^ row(16 * part + 8 * half);
        b[part].set_real(half, plane[place], plane[place ^ row(1)], scale, Precise);
      }
    __syncwarp();  // the columns are written where they were read
#pragma unroll 1
    for (int group = 0; group < Parts; ++group) {
      LevelSums x;
      const auto add = [&](const Fragment* matrix, const uint32_t (&of)[8]) {
        const Fragment a_re = matrix[s.at.lane], a_im = matrix[32 + s.at.lane];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          mma(x.re[t], a_re, of[2 * t], of[2 * t + 1]);
          mma(x.im[t], a_im, of[2 * t], of[2 * t + 1]);
        }
      };
#pragma unroll
      for (int part = 0; part < Parts; ++part) {
        const Fragment* const matrix = s.root_matrix(group, part);
        add(matrix, b[part].re), add(matrix + 64, b[part].re);
        if (Precise) add(matrix, b[part].im);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int nodes = 16 * group + 8 * r, place = at_first ^ to ^ row(nodes);
        if (s.tile.levels) {
          const Bin w = s.twist(0, nodes + s.at.g, first >> s.stride(0));
#pragma unroll
          for (int t = 0; t < 4; ++t) x.turn(t, 2 * r, w), x.turn(t, 2 * r + 1, w);
        }
        x.pack_row(r, s.plane(0)[place], s.plane(1)[place]);
      }
    }
  });
}

template <int Parts>
MONARCH_DEVICE void outer_root_inverse(const OuterColumns& s) {
  const int stride = s.stride(-1);
  const auto row = [&](int k) { return s.place(k << stride); };
  const int from = s.place(s.at.lane / 16) ^ row(s.at.lane % 16), to = row(s.at.g);
  for_root_columns(s, [&](int first) {
    const int at_first = s.place(first);
    Columns b[Parts];
#pragma unroll
    for (int group = 0; group < Parts; ++group) {
      b[group].load(s.plane(0), s.plane(1), at_first ^ from ^ row(16 * group));
      if (!s.tile.levels) b[group].rescale(&s.rescaling(8 * group), s.at.q);
    }
    __syncwarp();
#pragma unroll 1
    for (int part = 0; part < Parts; ++part) {
      float x[4][4] = {};
#pragma unroll
      for (int group = 0; group < Parts; ++group) add_real_parts(x, s.at, s.root_matrix(group, part), b[group]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int first_word = (at_first ^ to ^ row(16 * part + 8 * r)) * kQuadWords + s.at.q;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          const int word = first_word ^ t * kQuadWords;
          s.words(0)[word] = bits_of(x[t][2 * r]), s.words(1)[word] = bits_of(x[t][2 * r + 1]);
        }
      }
    }
  });
}

template <bool Inverse, bool Precise>
MONARCH_DEVICE_CALL void outer_root(int turn) {
  const OuterColumns s(turn);
  if constexpr (Inverse) {
    s.tile.parts == 1 ? outer_root_inverse<1>(s) : outer_root_inverse<2>(s);
  } else {
    s.tile.parts == 1 ? outer_root_forward<1, Precise>(s) : outer_root_forward<2, Precise>(s);
  }
}

// The same with a head below it, on its sums. `Levels`: below both.
template <int Levels>
struct RootColumns {
  static constexpr int kMatrixPitch = 128, kStride = side_below_head(Levels) + 4 * Levels;
  static constexpr bool kRescaled = Levels == 0;

  const OuterColumns& s;

  MONARCH_DEVICE Quad* plane(int odd) const { return s.plane(odd); }
  MONARCH_DEVICE int place(int slot, int piece) const { return s.place(piece + (slot << kStride), (8 << kStride) - 1); }
  MONARCH_DEVICE int apart() const { return 8 << kStride; }
  MONARCH_DEVICE const Fragment* matrices() const { return s.root_matrix(0, 0); }
  MONARCH_DEVICE uint32_t rescaling(int pair) const { return s.rescaling(pair); }
};

// Calls f(tile, first piece) for a warp's pieces, `Count` at a time.
template <int Count, int Levels, class F>
MONARCH_DEVICE void for_root_pieces(const OuterColumns& s, F f) {
  using Tile = RootColumns<Levels>;
  for (int first = s.thread / 32 * Count; first < 1 << Tile::kStride; first += s.tile.threads / 32 * Count)
    f(Tile{s}, first);
  __syncthreads();
}

template <int Radix, int Levels, bool Precise>
MONARCH_DEVICE void outer_root_and_head_forward(const OuterColumns& s) {
  constexpr int kCount = kPiecesOfHead<Radix>;
  const float scale = scale_for(s.greatest_point(s.turn));
  for_root_pieces<kCount, Levels>(s, [&](const auto& tile, int first) {
    HeadSums<Radix, kCount, Precise> x(tile, s.at, first, scale);
    x.transform();
    const int k = slot_of_row(s.at.g, tile.kStride);
    x.store(tile, s.at, k, first, [&](int p) {
#pragma unroll
      for (int r = 0; r < 2 && Levels > 0; ++r) {
        const Bin w = s.twist(0, 16 * p + k + 8 * r, first >> s.stride(0));
#pragma unroll
        for (int t = 0; t < kCount; ++t) x.turn(p, r, t, {w, w});
      }
    });
  });
}

template <int Radix, int Levels>
MONARCH_DEVICE_CALL void outer_root_and_head_inverse(int turn) {
  const OuterColumns s(turn);
  for_root_pieces<1, Levels>(
      s, [&](const auto& tile, int first) { back_to_reals<Radix, 1>(tile, s.at, first, s.tile.radix); });
}

template <bool Inverse, bool Precise>
MONARCH_DEVICE void outer_root_and_head(int turn) {
  const OuterColumns s(turn);
  const auto run = [&]<int Radix, int Levels>() {
    if constexpr (Inverse) {
      outer_root_and_head_inverse<Radix, Levels>(turn);
    } else {
      outer_root_and_head_forward<Radix, Levels, Precise>(s);
    }
  };
  with_radix(s.tile.radix, [&]<class Head>(Head) {
    if constexpr (Head::kParts <= 6)  // with a level more, no other tile fits into a block
      if (s.tile.levels) return run.template operator()<Head::kParts, 1>();
    run.template operator()<Head::kParts, 0>();
  });
}

// A level of 16, 32 columns of all points of a node at a time: calls store(sums, node, first piece of its columns,
// place of that).
template <bool Inverse, class F>
MONARCH_DEVICE void for_level(const OuterColumns& s, int level, F store) {
  const ComplexFragment f(s.dft_matrix()[s.at.lane], s.dft_matrix()[32 + s.at.lane]);
  const int stride = s.stride(level), groups = stride - 2;  // logarithms
  const int from = s.place(s.at.lane % 16 << stride, s.tile.folded) ^ s.at.lane / 16;
  for (int i = s.thread / 32; i < s.tile.plane >> 6; i += s.tile.threads / 32) {
    const int node = i >> groups, column = (i & ((1 << groups) - 1)) * 4;
    const int place = s.place(node << (stride + 4) | column, s.tile.folded);
    Columns b;
    b.load(s.plane(0), s.plane(1), place ^ from);
    if (Inverse && level + 1 == s.tile.levels) b.rescale(&s.rescaling(8 * node), s.at.q);
    __syncwarp();  // the columns are written where they were read
    LevelSums x;
#pragma unroll
    for (int t = 0; t < 4; ++t) multiply<Inverse>(x.re[t], x.im[t], f, b.re + 2 * t, b.im + 2 * t);
    store(x, node, column, place);
  }
  __syncthreads();
}

// In place, twisted to the level that comes next, whose points these columns are.
template <bool Inverse>
MONARCH_DEVICE_CALL void outer_level(int level) {
  const OuterColumns s(0);
  const int stride = s.stride(level);
  const int to = s.place(s.at.g << stride, s.tile.folded), further = s.place(8 << stride, s.tile.folded);
  for_level<Inverse>(s, level, [&](const LevelSums& x, int node, int column, int place) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = s.at.g + 8 * r, first_word = (place ^ to ^ (r ? further : 0)) * kQuadWords + s.at.q;
      const Bin w =
          Inverse ? s.twist(level, node, row) : s.twist(level + 1, node * kNodePoints + row, column >> (stride - 4));
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const Bin a = twiddle<Inverse>(Bin{x.re[t][2 * r], x.im[t][2 * r]}, w);
        const Bin c = twiddle<Inverse>(Bin{x.re[t][2 * r + 1], x.im[t][2 * r + 1]}, w);
        const int word = first_word ^ t * kQuadWords;
        s.words(0)[word] = pack(a.re, c.re), s.words(1)[word] = pack(a.im, c.im);
      }
    }
  });
}

// To a block of columns of a row of the workspace, from the last level.
template <bool Numbered>
MONARCH_DEVICE void last_level(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) rows.greatest_points(row)[block] = s.greatest_point(turn);
  const int pitch = s.tile.inner / 8, first = (block << s.tile.side) + s.at.q;
  Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  for_level<false>(s, s.tile.levels - 1, [&](const LevelSums& x, int node, int column, int) {
    const int piece = s.node<Numbered>(node * kNodePoints + s.at.g) * pitch + first + column;
#pragma unroll
    for (int r = 0; r < 2; ++r) x.pack_row(r, re[piece + 8 * r * pitch], im[piece + 8 * r * pitch]);
  });
}

}  // namespace monarch
