// Inner nodes of rows that do not fit into a block, on tensor cores (plan/tiles.h: MatrixCut): they come from the
// workspace into shared memory, where each is as a row would be, and the last pass on the way back writes there.
#pragma once

#include "fft_matrix_nodes.cuh"
#include "fft_workspace_rows.cuh"

namespace monarch {

// An inner node of a block's rows, row_of(row) of the workspace.
template <class RowOf>
struct InnerRows {
  const HalfRows& halves;
  int node;
  RowOf row_of;

  MONARCH_DEVICE Quad* plane(const StagedRows& s, int row, int part) const {
    return halves.plane(row_of(row), part) + node * (s.points() / 8);
  }
};
template <class RowOf>
InnerRows(const HalfRows&, int, RowOf) -> InnerRows<RowOf>;

// Asks for them.
template <class RowOf>
MONARCH_DEVICE void fetch_halves(RowsInUse use, const InnerRows<RowOf>& from) {
  const StagedRows s(use);
  for_own_rows(s, 0, [&](int row, int first, int step) {
    const Quad *const re = from.plane(s, row, 0), *const im = from.plane(s, row, 1);
    for (int piece = first; piece < s.points() / 8; piece += step) {
      const int place = s.place(row, piece);
      copy_async(s.arrival(0) + place, re + piece, sizeof(Quad));
      copy_async(s.arrival(1) + place, im + piece, sizeof(Quad));
    }
  });
}

// Waits for them, and finds what brings each of their columns to the row's scale.
template <class RowOf>
MONARCH_DEVICE void wait_for_halves(RowsInUse use, const InnerRows<RowOf>& from) {
  const StagedRows s(use);
  for (int row = s.thread / 32; row < s.rows; row += s.tile.threads / 32) {
    const uint32_t* const of_blocks = from.halves.greatest_points(from.row_of(row));
    const uint32_t greatest = greatest_of(of_blocks, from.halves.blocks, s.at.lane, 32);
    if (s.at.lane == 0) s.greatest_point(row, s.turn) = greatest;
    const auto factor = [&](int k, int columns) {
      const int piece = 32 * k + 4 * columns;
      return k < s.tile.nodes ? power_between(of_blocks[piece >> from.halves.side], greatest) : 1.f;
    };
    for (int i = s.at.lane; i < 64; i += 32) {
      const int k = 2 * (i & 7), columns = i >> 3;
      s.rescaling(row, columns)[i & 7] = pack(factor(k, columns), factor(k + 1, columns));
    }
  }
  wait_for_all_copies();
}

// What whoever reads the results needs to know of them.
template <class RowOf>
MONARCH_DEVICE void put_scales(const StagedRows& s, const InnerRows<RowOf>& to) {
  if (s.thread < s.rows) to.halves.greatest_bins(to.row_of(s.thread))[to.node] = s.greatest_bin(s.thread);
}

// The level below an inner node and its way back, and its matrices and twiddles.
struct InnerLevel : PassesOf<NodeKind{.level = true, .factored = true, .part = true}> {
  static MONARCH_DEVICE void forward(RowsInUse use) {
    const StagedRows s(use);
    const int first = opaque(s.place(0, s.at.lane % 16, s.columns(), s.at.lane / 16));
    const auto load = [&](Columns& b, int row) {
      b.load(s.arrival(0), s.arrival(1), s.quads_before(row) + first);
      b.rescale(s.rescaling(row, s.columns()), s.at.q);
    };
    BinPair twiddles[8];  // for all rows
#pragma unroll
    for (int i = 0; i < 8; ++i)
      twiddles[i] = s.factored_twiddle(s.at.g + 8 * (i / 4), 16 * s.columns() + 4 * s.at.q + i % 4);
    inner_level<false>(s, load, [&](const LevelSums& x, int row) {
      store_level(s, x, row, 0, [&](int r, int t) { return twiddles[4 * r + t]; });
    });
  }
  template <class RowOf>
  static MONARCH_DEVICE void inverse(RowsInUse use, const InnerRows<RowOf>& to) {
    const StagedRows s(use);
    put_scales(s, to);
    const auto load = [&](Columns& b, int row) { b.load(s, row, 0); };
    inner_level<true>(s, load, [&](const LevelSums& x, int row) {
      const int first = kNodeQuads * s.at.g + 4 * s.columns() + s.at.q;
      Quad *const to_re = to.plane(s, row, 0) + first, *const to_im = to.plane(s, row, 1) + first;
#pragma unroll
      for (int r = 0; r < 2; ++r) x.pack_row(r, to_re[8 * r * kNodeQuads], to_im[8 * r * kNodeQuads]);
    });
  }
};

// An inner node of 256 points, all of a tile, for devices with little shared memory: to its own transform and back.
struct InnerNode : PassesOf<NodeKind{.part = true}> {
  static MONARCH_DEVICE void forward(RowsInUse use) {
    const StagedRows s(use);
    for_pairs(s, [&](int row, int pair) {
      const int arrived = order_there(pair), word = s.word(row, 0, arrived);
      const auto number = [&](int part) { return reinterpret_cast<uint32_t*>(s.arrival(part))[word]; };
      const uint32_t factors = s.rescaling(row, arrived / 16)[0], factor = lower_halves(factors, factors);
      const Bin2 z = twisted<false>(s, pair, times(number(0), factor), times(number(1), factor));
      __syncwarp();  // they are in another order now
      const int to = s.word(row, 0, pair);
      s.words(0)[to] = z.re, s.words(1)[to] = z.im;
    });
  }
  template <class RowOf>
  static MONARCH_DEVICE void inverse(RowsInUse use, const InnerRows<RowOf>& to) {
    const StagedRows s(use);
    put_scales(s, to);
    for_pairs(s, [&](int row, int pair) {
      const int word = s.word(row, 0, pair);
      const Bin2 z = twisted<true>(s, pair, s.words(0)[word], s.words(1)[word]);
      reinterpret_cast<uint32_t*>(to.plane(s, row, 0))[pair] = z.re;
      reinterpret_cast<uint32_t*>(to.plane(s, row, 1))[pair] = z.im;
    });
  }

 private:
  struct Bin2 {
    uint32_t re, im;
  };
  // Calls f(row, pair) for neighbouring columns of all rows, a warp for 64 columns.
  template <class F>
  static MONARCH_DEVICE void for_pairs(const StagedRows& s, F f) {
    for_each(s.rows * 128, [&](int64_t i) { f(static_cast<int>(i / 128), static_cast<int>(i % 128)); });
  }
  template <bool Inverse>
  static MONARCH_DEVICE Bin2 twisted(const StagedRows& s, int pair, uint32_t re, uint32_t im) {
    const BinPair w = s.node_twiddles()[s.twiddle_index(0, pair)];
    const FloatPair x = unpack(re), y = unpack(im);
    const Bin a = twiddle<Inverse>(Bin{x.low, y.low}, w.first), b = twiddle<Inverse>(Bin{x.high, y.high}, w.second);
    return {pack(a.re, b.re), pack(a.im, b.im)};
  }
};

}  // namespace monarch
