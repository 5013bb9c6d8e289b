// CUDA: how a transform is spread over thread blocks. A tree is a head (2 .. 24 children), then levels of 16. A block
// holds tiles of rows in shared memory: whole rows where they fit; otherwise the tree is cut in two, an outer part (the
// head and the first levels, on some neighbouring columns of a row) and inner nodes, and rows travel between them
// through a workspace that stays in the L2 cache.
#pragma once

#include <cstdint>
#include <optional>

#include "device.h"
#include "tree_shape.h"

namespace monarch {

constexpr int kNodePoints = 16;  // points below a node of a level: what a thread transforms in registers
// Neighbouring columns in a tile of the outer part: a cache line of complex numbers, or half of one when the tile would
// not fit otherwise.
constexpr int kColumns = 16, kFewColumns = 8;
constexpr int kMaxLevels = 3;  // in one tile
constexpr int kRootBins = 26;  // of shared memory, for the head's twiddles
constexpr int kMaxTileThreads = 512, kMaxGradientThreads = 256;

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

constexpr int kFewNodes = 8;     // real and imaginary parts of all of them are rows of one matrix
constexpr int kNodeQuads = 32;   // of 16 bytes: 256 halves
constexpr int kNodeStride = 5;   // logarithm of these
constexpr int kMostStreams = 2;  // a row and its gate, or real and imaginary parts

// Tensor cores: rows that fit into a block as 16-bit complex numbers. A row is split by a matrix product of real
// numbers, a level, into up to 16 nodes, or 32 out of two parts; a longer one into 16, and each by `head` in registers.
// The nodes have 256 points, two more products. An inner node is a row of complex numbers: it has a level of 16 or
// none.
struct MatrixTile {
  int head = 1;   // 1: no split in registers
  int parts = 1;  // 2: the level makes up to 32 nodes
  bool level = false;
  bool numbered = false;   // nodes are in the row's order rather than in the tree's, whose head comes before the level
  bool inner = false;      // below a node of an outer part
  bool factored = false;   // twiddles of the nodes' points: not all of them, as for a long row, but factors
  int pitch = kNodeQuads;  // of rows, as `plane`: with room for as many nodes as a level can make
  int rows = 1;            // side by side
  int threads = 0;
  int side = 5;        // logarithm of the threads that take the same row between shared memory and tensors
  bool alone = false;  // no other block on the multiprocessor computes while this one waits for memory
  int8_t streams = 0;  // tensors of each of the rows that come next for which there is room beside the rows
  int8_t few = -1;     // logarithm of the room where that is for up to eight nodes, which have a level of their own
  int reciprocal = 0;  // of the head, times 65,536
  int nodes = 1;       // that there are; the others are zero
  int64_t shared_bytes = 0;
  // Shared memory in units of 16 bytes: the size of a plane of real or imaginary parts, two of which come after this
  // struct, then where the tables begin.
  int plane = 0, factors = 0, node_twiddles = 0, inner_twiddles = 0, dft_matrix = 0, level_matrices = 0, state = 0,
      ahead = 0;

  constexpr int room() const { return pitch / kNodeQuads; }
};

constexpr int kTileQuads = 7;
static_assert(sizeof(MatrixTile) <= kTileQuads * 16);

// Null when rows of this tree are too short or do not fit.
std::optional<MatrixTile> plan_matrix_tile(const TreeShape& tree, int64_t rows, const DeviceInfo& device);

// The outer part of longer rows on tensor cores, on some neighbouring columns of a row: a head, in registers or by a
// matrix product, and up to two levels of 16 below it.
struct OuterTile {
  int head = 1, levels = 0;
  int parts = 0;  // 1 or 2: the head is a level at the root, of real numbers, which makes 16 nodes of each
  int radix = 0;  // not 0: the head is such a level and the tree's head, whose nodes are in the row's order
  int nodes = 1;  // of the inner part: head * 16^levels
  int inner = 0;  // points of one of them
  int side = 2;   // logarithm of the pieces of eight columns: 4 to 32
  int threads = 0;
  int64_t shared_bytes = 0;
  // Shared memory in units of 16 bytes: the size of a plane, as above, and the distance of the two, then where the
  // tables begin.
  int plane = 0, pitch = 0, twists = 0, dft_matrix = 0, head_roots = 0, state = 0, in_tree = 0, rescaling = 0;
  int folded = 0;  // the bits of a piece's number that say in which banks it is

  constexpr int columns() const { return 8 << side; }
  constexpr int blocks() const { return inner / columns(); }  // of a row
};

constexpr int kOuterQuads = 6;
// Where a level and a head come before so many levels, tiles have but one width.
constexpr int side_below_head(int levels) { return levels ? 2 : 4; }

// Rows go from tensors through outer tiles to the workspace, through inner tiles in place, and back.
struct MatrixCut {
  OuterTile outer;
  MatrixTile inner;  // below a node of the outer part: 256 or 4,096 points
};

// Null when rows of this tree are too short or too long.
std::optional<MatrixCut> plan_matrix_cut(const TreeShape& tree, int64_t rows, const DeviceInfo& device);
// The same for the way back, where a block has rows of a slice of the batch, each with its gradient.
std::optional<MatrixTile> plan_gradient_tile(const TreeShape& tree, int64_t slice, const DeviceInfo& device);
std::optional<MatrixCut> plan_gradient_cut(const TreeShape& tree, int64_t slice, const DeviceInfo& device);

}  // namespace monarch
