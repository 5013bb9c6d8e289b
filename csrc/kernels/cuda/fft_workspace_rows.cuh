// Rows that do not fit into a block, on tensor cores, in the workspace between launches.
//
// Numbers are halves there too. What they are scaled by, a power of two, is known piece by piece: on the way there of a
// block of columns, from its points; on the way back of an inner node, from its filter. Who reads a row brings all of
// it to the smallest of its scales.
//
// On the way there neighbouring pairs of columns are in another order, in which a lane of a level has them.
#pragma once

#include "fft_staged_rows.cuh"

namespace monarch {

// Rows of the workspace: a plane of real parts and one of imaginary parts; then, as bits, the greatest magnitude among
// the points of each block of columns, and among the filter's bins of each inner node.
struct HalfRows {
  Quad* data;
  int points, nodes, blocks, side;  // of the pieces of a block, as in OuterTile

  HalfRows(void* data, const OuterTile& t)
      : data(static_cast<Quad*>(data)), points(t.nodes * t.inner), nodes(t.nodes), blocks(t.blocks()), side(t.side) {}

  MONARCH_HD int64_t pitch() const { return points / 4 + pieces(blocks + nodes, kQuadWords); }
  // Pieces of eight points.
  MONARCH_DEVICE Quad* plane(int row, int part) const { return data + row * pitch() + part * (points / 8); }
  MONARCH_DEVICE uint32_t* greatest_points(int row) const { return reinterpret_cast<uint32_t*>(plane(row, 2)); }
  MONARCH_DEVICE uint32_t* greatest_bins(int row) const { return greatest_points(row) + blocks; }
};

// Where a pair of neighbouring columns is on the way there, or which one is there: of 16, pair 4 a + b is at 4 b + a.
MONARCH_DEVICE int order_there(int pair) { return (pair & ~15) | (pair & 3) << 2 | (pair >> 2 & 3); }

// The greatest of n values, of those first, first + step, ... of whole warps.
MONARCH_DEVICE uint32_t greatest_of(const uint32_t* values, int n, int first, int step) {
  uint32_t greatest = 0;
  for (int i = first; i < n; i += step) greatest = values[i] > greatest ? values[i] : greatest;
  return warp_max(greatest);
}

// The factor from numbers scaled for one magnitude to those scaled for a greater one.
MONARCH_DEVICE float power_between(uint32_t from, uint32_t to) {
  return scale_for(to) * inverse_of_power(scale_for(from));
}

}  // namespace monarch
