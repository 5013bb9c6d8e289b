#include "tree_shape.h"

#include <span>

namespace monarch {

TreeShape choose_tree(int64_t length, int lanes) {
  static constexpr int kOne[] = {1}, kTiles[] = {8, 4};
  TreeShape best;
  for (int vectors : lanes == 1 ? std::span<const int>(kOne) : std::span<const int>(kTiles)) {
    for (int odd : {1, 3, 5}) {
      int64_t rest = odd == 1 && lanes == 1 ? 2 : odd;
      while (rest * lanes * vectors < length) rest *= 2;
      const int64_t points = rest * lanes * vectors;
      if (best.points && points >= best.points) continue;
      best = TreeShape{};
      best.points = points;
      best.lanes = lanes;
      best.codelet_vectors = vectors;
      if (odd > 1) best.radix[best.depth++] = odd, rest /= odd;
      while (rest > 1) {
        const int r = rest % 8 == 0 && rest != 16 ? 8 : rest % 4 == 0 ? 4 : 2;
        best.radix[best.depth++] = r;
        rest /= r;
      }
    }
  }
  const int64_t children = best.points / lanes / (best.depth ? best.radix[0] : 1);
  best.root_pitch = children >= 32 ? children + 2 : children;  // keeps the children off the same cache sets
  best.split_twist = best.points >= (1 << 17);
  return best;
}

}  // namespace monarch
