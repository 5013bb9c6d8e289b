// Inner nodes of rows that do not fit into a block, on tensor cores: between the workspace and shared memory, where
// each is as a row would be (plan/tiles.h: MatrixCut).
#pragma once

#include "fft_matrix_outer.cuh"

namespace monarch {

// To and from inner node `node` of the rows from `first` on; row_of(row) is where in the workspace a row of the block's
// is.
template <class RowOf>
MONARCH_DEVICE void fetch_halves(RowsInUse use, const HalfRows& rows, int node, RowOf row_of) {
  const StagedRows s(use);
  for_own_rows(s, 0, [&](int row, int first, int step) {
    const int pieces = s.points() / 8;
    for (int part = 0; s.tile.streams == kMostStreams && part < kMostStreams; ++part)
      copy_pieces(s.ahead(row, part), rows.plane(row_of(row), part) + node * pieces, pieces * int{sizeof(Quad)}, first,
                  step);
  });
}

// `Fetched`: by fetch_halves().
template <bool Fetched = false, class RowOf>
MONARCH_DEVICE void stage_halves(RowsInUse use, const HalfRows& rows, int node, RowOf row_of) {
  const StagedRows s(use);
  if (s.thread < s.tile.rows) s.greatest_point(s.thread, s.turn ^ 1) = 0;
  for_rows(s, 0, [&](int row, int first, int step) {
    find_greatest(rows.greatest_points(row_of(row)), rows.blocks, first, step, s.at.lane,
                  s.greatest_point(row, s.turn));
  });
  for_rows(s, 0, [&](int row, int first, int step) {
    const uint32_t* const greatest = rows.greatest_points(row_of(row));
    const auto plane = [&](int part) -> const Quad* {
      if (Fetched && s.tile.streams == kMostStreams) return s.ahead(row, part);
      return rows.plane(row_of(row), part) + node * (s.points() / 8);
    };
    const Quad *const re = plane(0), *const im = plane(1);
    for (int piece = first; piece < s.points() / 8; piece += step) {
      const uint32_t factor = rescaling(greatest[piece >> rows.side], s.greatest_point(row, s.turn));
      const int place = s.place(row, piece);
      s.plane(0)[place] = times(re[piece], factor), s.plane(1)[place] = times(im[piece], factor);
    }
  });
}

template <class RowOf>
MONARCH_DEVICE void unstage_halves(RowsInUse use, const HalfRows& rows, int node, RowOf row_of) {
  const StagedRows s(use);
  for_rows(s, 0, [&](int row, int first, int step) {
    if (first == 0) rows.greatest_bins(row_of(row))[node] = s.greatest_bin(row);
    Quad* const re = rows.plane(row_of(row), 0) + node * (s.points() / 8);
    Quad* const im = rows.plane(row_of(row), 1) + node * (s.points() / 8);
    for (int piece = first; piece < s.points() / 8; piece += step) {
      const int place = s.place(row, piece);
      re[piece] = s.plane(0)[place], im[piece] = s.plane(1)[place];
    }
  });
}

// To the nodes' own transforms, which no pass has done where they are all of the tile.
template <bool Inverse>
MONARCH_DEVICE void twist_nodes(RowsInUse use) {
  const StagedRows s(use);
  for_each(s.rows * s.tile.nodes * 128, [&](int64_t i) {
    const int node = static_cast<int>(i / 128) % s.tile.nodes, pair = static_cast<int>(i % 128);
    const int word = s.word(static_cast<int>(i / 128) / s.tile.nodes, node, pair);
    const BinPair w = s.node_twiddles()[s.twiddle_index(node, pair)];
    const FloatPair re = unpack(s.words(0)[word]), im = unpack(s.words(1)[word]);
    const Bin a = twiddle<Inverse>(Bin{re.low, im.low}, w.first), b = twiddle<Inverse>(Bin{re.high, im.high}, w.second);
    s.words(0)[word] = pack(a.re, b.re), s.words(1)[word] = pack(a.im, b.im);
  });
}

}  // namespace monarch
