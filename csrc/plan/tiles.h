// CUDA: how a transform is spread over thread blocks. A tree is a head (2 .. 24 children), then levels of 16. A block
// holds tiles of rows in shared memory: whole rows where they fit; otherwise the tree is cut in two, an outer part (the
// head and the first levels, on some neighbouring columns of a row) and inner nodes, and rows travel between them
// through a workspace that stays in the L2 cache.
#pragma once

#include <cstdint>

#include "device.h"
#include "tree_shape.h"

namespace monarch {

constexpr int kNodePoints = 16;  // points below a node of a level: what a thread transforms in registers
// Neighbouring columns in a tile of the outer part: a cache line of complex numbers, or half of one when the tile would
// not fit otherwise.
constexpr int kColumns = 16, kFewColumns = 8;
constexpr int kMaxLevels = 3;  // in one tile
constexpr int kRootBins = 26;  // of shared memory, for the head's twiddles
constexpr int kMaxTileThreads = 512;

// Points and twiddles of the tiles of one kernel.
struct TileShape {
  int head = 0;       // 0: the tile begins at an inner node
  int top_nodes = 1;  // on the first of its levels
  int levels = 0;     // of 16
  int columns = 1;    // 1: the last level's children are single points
  int rows = 1;       // of `points` each
  int points = 0;
  int threads = 0;
  int64_t shared_bytes = 0;
};

struct TilePlan {
  bool whole;              // rows fit into one block
  TileShape row;           // whole
  TileShape outer, inner;  // not whole
};

// `buffers`: tiles of data that a block holds at once. Throws std::invalid_argument when the device's shared memory is
// too small for any cut.
TilePlan plan_tiles(const TreeShape& tree, int buffers, int64_t rows, const DeviceInfo& device);

}  // namespace monarch
