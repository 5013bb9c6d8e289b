#include "tiles.h"

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace monarch {
namespace {

constexpr int kTilePoints = 4096;  // small rows share a block up to so many points
constexpr int kMatrixTilePoints = 8192;
constexpr int kMinTileThreads = 64;
constexpr int kOuterTilePoints = 16384;
constexpr int kWidestSide = 5, kNarrowestSide = 2;  // a warp takes 32 columns of a level
constexpr int kMaxOuterLevels = 2;
constexpr int kMostRadix = 8, kMostRadixAboveLevel = 6;  // of a head on the sums of a level
constexpr int64_t kBinBytes = 8;
constexpr int64_t kReserved = 1024;  // bytes of shared memory that CUDA takes for each block

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

// The kind of tile for this tree, of no rows yet.
std::optional<MatrixTile> matrix_tile_of(const TreeShape& tree) {
  MatrixTile t;
  const bool headless = tree.radix[0] == kNodePoints;
  const int head = headless ? 1 : tree.radix[0], levels = tree.depth - (headless ? 2 : 3);
  if (levels < 0 || levels > 1 || (levels == 1 && head > kMostRadix)) return std::nullopt;
  t.level = true;
  t.nodes = levels ? head * kNodePoints : head;
  t.numbered = t.nodes > 2 * kNodePoints;
  if (t.numbered) t.head = head;
  t.parts = !t.numbered && t.nodes > kNodePoints ? 2 : 1;
  t.factored = t.numbered || t.parts > 1;
  if (t.nodes <= kFewNodes) t.few = static_cast<int8_t>(std::bit_width(unsigned(t.nodes - 1)));
  t.pitch = (t.few >= 0 ? 1 << t.few : t.head * t.parts * kNodePoints) * kNodeQuads;
  t.reciprocal = 65536 / t.head + 1;
  return t;
}

void lay_out(MatrixTile& t) {
  // two planes that are read together have their pieces in different banks
  t.plane = t.rows * t.pitch + (t.level ? 4 : 0);
  // factors that only the making of the twiddles needs lie where the rows will be
  t.factors = kTileQuads + (t.factored ? 2 * t.plane : 0);
  t.node_twiddles = kTileQuads + 2 * t.plane + (t.factored ? t.room() * 16 : 0);
  t.inner_twiddles = t.node_twiddles + (t.numbered ? t.head - 1 : t.factored ? 0 : t.room()) * 128;
  t.dft_matrix = t.inner_twiddles + 128;
  t.level_matrices = t.dft_matrix + 192;
  t.state = t.level_matrices + (t.few >= 0 ? 64 : t.level ? t.head * t.parts * t.parts * 256 : 0);
  t.ahead = t.state + t.rows + (t.inner ? t.rows * 16 : t.numbered ? t.nodes / 4 : 0);
  t.shared_bytes = (t.ahead + t.streams * t.rows * t.nodes * kNodeQuads) * int64_t{16};
}

// `most` groups of `together` rows side by side, or as many as fit, with room for so many tensors of the rows that come
// next, or as many as still fit: false when not even one group does.
bool fit(MatrixTile& t, int64_t most, int together, int streams, const DeviceInfo& device) {
  for (int64_t groups = most; groups > 0; groups /= 2)
    for (int held = streams; held >= 0; --held) {
      t.rows = static_cast<int>(groups * together);
      t.streams = static_cast<int8_t>(held);
      lay_out(t);
      if (t.shared_bytes <= device.shared_memory) return true;
    }
  return false;
}

// Of warps that share the columns of a level.
int threads_of_level(const MatrixTile& t) { return 32 * std::min(t.room(), 8); }

void set_threads(MatrixTile& t, int wanted, int most) {
  t.threads = std::clamp(wanted, kMinTileThreads, most);
  const int abreast = std::min(t.nodes * 8, t.threads);  // four pieces of eight points each
  while (2 << t.side <= abreast) ++t.side;
}

// Two blocks side by side, one of which computes while the other one waits for memory, or one.
int blocks_side_by_side(int64_t shared_bytes, const DeviceInfo& device) {
  return 2 * (shared_bytes + kReserved) <= device.shared_memory + kReserved ? 2 : 1;
}

// `tasks`: of a row each.
bool lay_out_spread(MatrixTile& t, int points, int64_t tasks, const DeviceInfo& device) {
  // few rows are spread over the machine rather than packed
  const int64_t enough = std::max<int64_t>(1, tasks / (4 * std::max(device.multiprocessors, 1)));
  if (!fit(t, std::clamp<int64_t>(kMatrixTilePoints / points, 1, enough), 1, 0, device)) return false;
  const int unit = threads_of_level(t), side_by_side = blocks_side_by_side(t.shared_bytes, device);
  set_threads(t, (t.rows * points / 32 + unit - 1) / unit * unit, kMaxTileThreads / side_by_side);
  t.alone = side_by_side == 1;
  return true;
}

// Rows of a slice of the batch, each with its gradient.
bool lay_out_pairs(MatrixTile& t, int points, int64_t slice, const DeviceInfo& device) {
  // a warp has a node of all rows, whose gradients it sums
  set_threads(t, threads_of_level(t), kMaxGradientThreads);
  t.alone = t.threads >= kMaxGradientThreads / 4 * 3;  // they take the registers
  const int64_t most = std::clamp<int64_t>(kMatrixTilePoints / points, 1, std::max<int64_t>(slice, 1));
  return fit(t, most, 2, t.alone ? kMostStreams : 0, device);
}

bool lay_out_outer(OuterTile& t, const DeviceInfo& device) {
  int tables = 0;  // of twiddles, as bins
  for (int level = 0, nodes = t.head; level < t.levels; ++level, nodes *= kNodePoints) tables += nodes * kNodePoints;
  for (t.side = kWidestSide; t.side >= kNarrowestSide; --t.side) {
    if (t.radix && t.side != side_below_head(t.levels)) continue;
    const int points = t.nodes * t.columns();
    if (points > kOuterTilePoints && t.side > kNarrowestSide) continue;
    t.plane = points / 8;
    // two planes that are read together have their pieces in different banks
    const int stride = t.side + 4 * t.levels;  // as OuterColumns has it
    t.pitch = t.plane + (t.parts || t.radix ? 1 << stride % 3 : 0);
    t.folded = t.radix ? (8 << stride) - 1 : ~0;  // whole multiples of eight nodes are a constant apart
    t.twists = kOuterQuads + t.pitch + t.plane;
    t.dft_matrix = t.twists + tables / 2;
    t.head_roots = t.dft_matrix + (t.levels ? 64 : 0);
    t.state = t.head_roots + (t.radix ? t.radix * 128 : t.parts ? t.parts * t.parts * 128 : kRootBins / 2);
    t.in_tree = t.state + 1;
    t.rescaling = t.in_tree + (t.radix ? t.head / 4 : 0);
    t.shared_bytes = (t.rescaling + (t.nodes + 7) / 8) * int64_t{16};
    if (t.shared_bytes > device.shared_memory) continue;
    const int most = kMaxTileThreads / blocks_side_by_side(t.shared_bytes, device);
    const int columns = points / t.head;  // which the head's pass takes in pairs, or 32 a warp, or as few as it likes
    const int useful = t.radix ? most : t.parts ? columns : columns / 2;
    t.threads = std::max(std::min({points / 32 / 32 * 32, most, useful}), kMinTileThreads);
    return true;
  }
  return false;
}

// With a level at the root where that is better: it takes a head of two with it, or comes before one of up to eight.
void begin_with_level(OuterTile& t) {
  if (t.head == kNodePoints) t.parts = 1;
  if (t.levels == 0 || t.head > (t.levels == 1 ? kMostRadix : kMostRadixAboveLevel)) return;
  (t.head == 2 ? t.parts : t.radix) = t.head;
  t.head *= kNodePoints, --t.levels;
}

// The first cut whose outer tile fits, and whose inner one does once it is laid out.
template <class F>
std::optional<MatrixCut> first_cut(const TreeShape& tree, const DeviceInfo& device, F lay_out_inner) {
  for (const int products : {3, 2}) {
    MatrixCut cut;
    OuterTile& outer = cut.outer;
    outer.head = outer.nodes = tree.radix[0];
    outer.levels = tree.depth - 1 - products;
    if (outer.levels < 0 || outer.levels > kMaxOuterLevels) continue;
    for (int level = 0; level < outer.levels; ++level) outer.nodes *= kNodePoints;
    outer.inner = static_cast<int>(tree.points / outer.nodes);
    cut.inner.inner = true;
    cut.inner.level = cut.inner.factored = products == 3;
    cut.inner.nodes = cut.inner.level ? kNodePoints : 1;
    cut.inner.pitch = cut.inner.nodes * kNodeQuads;
    const OuterTile plain = outer;
    begin_with_level(outer);
    bool fits = lay_out_outer(outer, device);
    if (!fits && outer.radix) outer = plain, fits = lay_out_outer(outer, device);
    if (fits && lay_out_inner(cut.inner, outer)) return cut;
  }
  return std::nullopt;
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

std::optional<MatrixTile> plan_matrix_tile(const TreeShape& tree, int64_t rows, const DeviceInfo& device) {
  std::optional<MatrixTile> t = matrix_tile_of(tree);
  if (!t || !lay_out_spread(*t, static_cast<int>(tree.points), rows, device)) return std::nullopt;
  return t;
}

std::optional<MatrixTile> plan_gradient_tile(const TreeShape& tree, int64_t slice, const DeviceInfo& device) {
  std::optional<MatrixTile> t = matrix_tile_of(tree);
  if (!t || !lay_out_pairs(*t, static_cast<int>(tree.points), slice, device)) return std::nullopt;
  return t;
}

std::optional<MatrixCut> plan_matrix_cut(const TreeShape& tree, int64_t rows, const DeviceInfo& device) {
  return first_cut(tree, device, [&](MatrixTile& inner, const OuterTile& outer) {
    return lay_out_spread(inner, outer.inner, rows * outer.nodes, device);
  });
}

std::optional<MatrixCut> plan_gradient_cut(const TreeShape& tree, int64_t slice, const DeviceInfo& device) {
  return first_cut(tree, device, [&](MatrixTile& inner, const OuterTile& outer) {
    return lay_out_pairs(inner, outer.inner, slice, device);
  });
}

}  // namespace monarch
