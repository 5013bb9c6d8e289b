// Twiddle tables of one TreeShape, built once per process in double precision and kept.
#pragma once

#include "../../plan/tree_shape.h"
#include "../math/complex.h"

namespace monarch {

template <class T>
struct Level {
  int radix;
  int64_t stride;              // distance of a node's children, in vectors
  const Complex<T>* twiddles;  // [node][radix - 1]: c^(q/radix)
};

template <class T>
struct Tree {
  int64_t points;
  int depth;
  int codelet_vectors;
  int64_t root_pitch;
  Level<T> levels[kMaxTreeDepth];
  const T* lane_twiddles;         // the codelet's lane stages, the same for every block
  bool twist_is_split;            // full twist: [block][vector] complex vectors in twist_lanes,
  const T* twist_lanes;           // split: one complex vector per block here, times
  const Complex<T>* twist_steps;  // [block][codelet_vectors - 1] scalars here
};

// Radix of the lane stage (fft_tree.h) that splits groups of so many lanes. Four saves twiddles, but is taken late
// enough that its numbers move between vectors by 4 or 16 bytes, where every shuffle is one instruction.
template <class T>
constexpr int lane_radix(int group) {
  const int moved = group / 4 * int(sizeof(T));
  return moved == 4 || moved == 16 || group == 4 ? 4 : 2;
}

template <class T>
const Tree<T>& tree_tables(const TreeShape& shape);

}  // namespace monarch
