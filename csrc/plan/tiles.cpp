#include "tiles.h"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace monarch {
namespace {

constexpr int kTilePoints = 4096;  // small rows share a block up to so many points
constexpr int kMinTileThreads = 64;
constexpr int64_t kBinBytes = 8;

TileShape make_tile(int head, int levels, int columns, int buffers, int64_t rows, const DeviceInfo& device) {
  TileShape t{.head = head, .top_nodes = std::max(head, 1), .levels = levels, .columns = columns};
  int64_t points = int64_t{t.top_nodes} * columns, nodes = 0;
  for (int level = 0; level < levels; ++level) nodes += points / columns, points *= kNodePoints;
  t.points = static_cast<int>(points);
  const auto shared_bytes = [&](int64_t tile_rows) {
    const int64_t padded = tile_rows * points * (kNodePoints + 1) / kNodePoints;
    return (buffers * padded + nodes * 4 + kRootBins) * kBinBytes;
  };
  // few rows are spread over the machine rather than packed
  const int64_t enough = std::max<int64_t>(1, rows / (4 * std::max(device.multiprocessors, 1)));
  t.rows = static_cast<int>(std::clamp<int64_t>(kTilePoints / points, 1, enough));
  while (t.rows > 1 && shared_bytes(t.rows) > device.shared_memory) t.rows /= 2;
  t.shared_bytes = shared_bytes(t.rows);
  t.threads = static_cast<int>(std::clamp<int64_t>(t.rows * points / kNodePoints, kMinTileThreads, kMaxTileThreads));
  return t;
}

}  // namespace

TilePlan plan_tiles(const TreeShape& tree, int buffers, int64_t rows, const DeviceInfo& device) {
  const auto fits = [&](const TileShape& t) { return t.shared_bytes <= device.shared_memory; };
  const int head = tree.radix[0], levels = tree.depth - 1;
  TilePlan plan{};
  if (levels <= kMaxLevels) {
    plan.row = make_tile(head, levels, 1, buffers, rows, device);
    if (fits(plan.row)) return plan.whole = true, plan;
  }
  for (int inner = std::min(kMaxLevels, levels); inner > 0; --inner) {
    const int outer = levels - inner;
    int64_t nodes = head;
    for (int level = 0; level < outer; ++level) nodes *= kNodePoints;
    plan.inner = make_tile(0, inner, 1, buffers, rows * nodes, device);
    if (!fits(plan.inner) || outer >= kMaxLevels) continue;
    for (int columns : {kColumns, kFewColumns}) {
      if (outer == 0 && columns < kNodePoints) break;  // the head's pass takes no fewer
      plan.outer = make_tile(head, outer, columns, 1, rows * plan.inner.points / columns, device);
      if (fits(plan.outer)) return plan;
    }
  }
  throw std::invalid_argument("transforms of " + std::to_string(tree.points) +
                              " points need more shared memory than the " + std::to_string(device.shared_memory) +
                              " bytes that a block of this device has");
}

}  // namespace monarch
