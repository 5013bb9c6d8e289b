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

}  // namespace

TreeShape choose_tree(int64_t length, int lanes, Isa isa) {
  if (lanes == 1) return choose_cuda_tree(length);
  TreeShape best;
  for (int vectors : {8, 4}) {
    for (int odd : {1, 3, 5}) {
      int64_t rest = odd;
      while (rest * lanes * vectors < length) rest *= 2;
      const int64_t points = rest * lanes * vectors;
      if (best.points && points >= best.points) continue;
      best = TreeShape{};
      best.points = points;
      best.lanes = lanes;
      // rather a level of four and a small codelet than a level of two, where eight complex vectors are all registers
      best.codelet_vectors = rest == 2 && isa == Isa::avx2 && vectors == 8 ? 4 : vectors;
      rest = points / lanes / best.codelet_vectors;
      if (odd > 1) best.radix[best.depth++] = odd, rest /= odd;
      while (rest > 1) {
        const int r = rest % 8 == 0 && rest != 16 ? 8 : rest % 4 == 0 ? 4 : 2;
        best.radix[best.depth++] = r;
        rest /= r;
      }
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
