#include "tree_shape.h"

#include <algorithm>
#include <initializer_list>

namespace monarch {

namespace {

constexpr int64_t kLongPoints = 1 << 17;

// A head of at most 24 children, then levels of 16 (tiles.h), at least one.
TreeShape choose_cuda_tree(int64_t length) {
  TreeShape best;
  for (int head : {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24}) {
    TreeShape tree;
    tree.lanes = tree.codelet_vectors = 1;
    tree.points = tree.radix[tree.depth++] = head;
    while (tree.depth < 2 || tree.points < length) tree.points *= tree.radix[tree.depth++] = 16;
    if (!best.points || tree.points < best.points) best = tree;
  }
  return best;
}

// Passes of radix `odd`, 8, 4 and 2 down to codelets of so many vectors.
TreeShape cpu_tree(int64_t points, int lanes, int vectors, int odd) {
  TreeShape tree;
  tree.points = points;
  tree.lanes = lanes;
  tree.codelet_vectors = vectors;
  int64_t rest = points / lanes / vectors;
  if (odd > 1) tree.radix[tree.depth++] = odd, rest /= odd;
  while (rest > 1) {
    const int r = rest % 8 == 0 && rest != 16 ? 8 : rest % 4 == 0 ? 4 : 2;
    tree.radix[tree.depth++] = r;
    rest /= r;
  }
  return tree;
}

}  // namespace

TreeShape choose_tree(int64_t length, int lanes, Isa isa) {
  if (lanes == 1) return choose_cuda_tree(length);
  TreeShape best;
  for (int vectors : {8, 4}) {
    for (int odd : {1, 3, 5}) {
      int64_t points = odd * lanes * vectors;
      while (points < length) points *= 2;
      if (best.points && points >= best.points) continue;
      best = cpu_tree(points, lanes, vectors, odd);
      if (vectors == 4 || best.depth == 0 || points >= kLongPoints) continue;
      // Two codelets of four vectors together are faster than one of eight, where the passes before them then have a
      // larger radix and are not more; with AVX2's 16 registers only at 128 points. Not where rows come from memory,
      // for their twists take twice the room.
      const TreeShape small = cpu_tree(points, lanes, 4, odd);
      if (small.depth == best.depth && (isa == Isa::avx512 || (isa == Isa::avx2 && points == 16 * lanes))) best = small;
    }
  }
  const bool is_long = best.points >= kLongPoints;
  // A column of a long row lies on the same cache sets for every child of the root: the fewer children, the fewer lines
  // that push one another out.
  int* const last = best.radix + best.depth;
  if (is_long && best.radix[0] > last[-1]) std::rotate(best.radix, last - 1, last);
  const int64_t children = best.points / lanes / (best.depth ? best.radix[0] : 1);
  best.root_pitch = children >= 32 ? children + 2 : children;  // keeps the children off the same cache sets
  best.split_twist = is_long;
  return best;
}

}  // namespace monarch
