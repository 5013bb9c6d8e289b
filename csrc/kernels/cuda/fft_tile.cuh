// A tile of rows in shared memory and the passes of the right-angle transform over it (plan/tiles.h says which part of
// the tree a tile is; math/splits.h what happens in registers). One thread transforms one node's 16 points, or a column
// of the head, at a time; between two passes the points change threads through shared memory, 17 places per 16 points
// so that no pass meets a bank twice. The twiddles of the tile's nodes lie beside the data, computed by the block
// itself.
#pragma once

#include "../../plan/tiles.h"
#include "../math/splits.h"
#include "roots.cuh"

namespace monarch {

using Bin = Complex<float>;

struct alignas(16) BinPair {
  Bin first, second;
};

// Runs f(i) for i in [0, n), spread over the block, then waits for all.
template <class F>
MONARCH_DEVICE void for_each(int64_t n, F f) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  __syncthreads();
}

static_assert(sizeof(HeadRoots) <= kRootBins * sizeof(Bin) && kRootBins * sizeof(Bin) % sizeof(BinPair) == 0);

constexpr MONARCH_HD int padded(int p) { return p + p / kNodePoints; }

// The bins of a node of 16 points at the end of the tree lie in memory in pairs, the pairs of all nodes side by side,
// so that neighbouring threads read neighbouring addresses. The pairs, and 16 nodes with a common parent, lie in the
// order of their angles, which is how the tensor cores want them (fft_matrix.cuh).
struct NodeBins {
  BinPair* pairs;
  int64_t nodes;  // of the whole row

  MONARCH_DEVICE NodeBins(Bin* row, int64_t nodes, int64_t node) : nodes(nodes) {
    constexpr int64_t kLow = kNodePoints - 1;
    const bool groups = nodes % kNodePoints == 0;
    const int64_t place = groups ? (node & ~kLow) | reverse_bits(static_cast<int>(node & kLow), 4) : node;
    pairs = reinterpret_cast<BinPair*>(row) + place;
  }
  MONARCH_DEVICE BinPair& operator[](int q) const { return pairs[q * nodes]; }

  // Where in tree order the first and the second bin of pair q are.
  static constexpr MONARCH_HD int first(int q) { return reverse_bits(2 * q, 4); }
  static constexpr MONARCH_HD int second(int q) { return reverse_bits(2 * q + 1, 4); }

  MONARCH_DEVICE void load(Bin (&x)[kNodePoints]) const {
#pragma unroll
    for (int q = 0; q < kNodePoints / 2; ++q) {
      const BinPair pair = (*this)[q];
      x[first(q)] = pair.first, x[second(q)] = pair.second;
    }
  }
  MONARCH_DEVICE void store(const Bin (&x)[kNodePoints]) const {
#pragma unroll
    for (int q = 0; q < kNodePoints / 2; ++q) (*this)[q] = {x[first(q)], x[second(q)]};
  }
};

// reverse_bits(), fast on a GPU for any number of bits.
MONARCH_DEVICE int reversed(int k, int bits) {
#if defined(__CUDACC__)
  return static_cast<int>(__brev(static_cast<unsigned>(k)) >> 1 >> (31 - bits));
#else
  return reverse_bits(k, bits);
#endif
}

// The angle of a node so many passes below the root, in tree order.
MONARCH_DEVICE Angle node_angle(int head, int depth, int node) {
  int below = 1;
  for (int d = 1; d < depth; ++d) below *= kNodePoints;
  const int child = node / below;
  int bits = 0;
  while (head % (2 << bits) == 0) ++bits;
  Angle angle;
  angle = angle.child((child >> bits) + (head >> bits) * reversed(child & ((1 << bits) - 1), bits), head);
  for (int d = 1; d < depth; ++d) {
    below /= kNodePoints;
    angle = angle.child(reversed(node / below % kNodePoints, 4), kNodePoints);
  }
  return angle;
}

// The tile as a thread sees it: sizes, and where in shared memory its parts are. Passes take it by value.
struct Tile {
  int head, top_nodes, levels, columns, points;
  int rows;   // in use: the passes work on these
  int pitch;  // of a row, in bins
  int first;  // bin of shared memory where the data begins

  // Number `buffer` of the block's tiles, which share their twiddles.
  MONARCH_DEVICE explicit Tile(const TileShape& s, int buffer = 0)
      : head(s.head),
        top_nodes(s.top_nodes),
        levels(s.levels),
        columns(s.columns),
        points(s.points),
        rows(s.rows),
        pitch(padded(s.points)),
        first(kRootBins + 4 * nodes_above(s.levels) + buffer * s.rows * padded(s.points)) {}

  MONARCH_DEVICE int nodes_of(int level) const { return top_nodes << 4 * level; }
  MONARCH_DEVICE int nodes_above(int level) const { return top_nodes * (((1 << 4 * level) - 1) / 15); }
  MONARCH_DEVICE int leaf_nodes() const { return nodes_of(levels - 1); }

  MONARCH_DEVICE HeadRoots& head_roots() const { return *shared_memory<HeadRoots>(); }
  // exp(2 pi i theta / 2, 4 and 8, 16) of the nodes of all levels
  MONARCH_DEVICE BinPair* upper() const { return shared_memory<BinPair>() + kRootBins / 2; }
  MONARCH_DEVICE BinPair* lower() const { return upper() + nodes_above(levels); }
  MONARCH_DEVICE Bin* row(int r) const { return shared_memory<Bin>() + first + r * pitch; }
  // The points of a node of the last level, for its own thread.
  MONARCH_DEVICE Bin* leaf(int r, int node) const { return row(r) + node * padded(kNodePoints); }

  // Calls f(row, p) for all points, neighbouring threads at neighbouring points; at(row) is made once for each of a
  // thread's rows.
  template <class At, class F>
  MONARCH_DEVICE void for_points(At at, F f) const {
    const int threads = static_cast<int>(blockDim.x), side = threads < points ? threads : points;
    const int abreast = threads / side;
    int r = static_cast<int>(threadIdx.x) / side;
    if (r < abreast) {
      for (; r < rows; r += abreast) {
        const auto place = at(r);
        Bin* const data = row(r);
#pragma unroll 4
        for (int p = static_cast<int>(threadIdx.x) % side; p < points; p += side) f(place, p, data[padded(p)]);
      }
    }
    __syncthreads();
  }
};

// The twiddles of all nodes of the levels, the first of which is `depth` passes below the root of a tree with this
// head. A tile without a head is below node `inner`.
MONARCH_DEVICE_CALL void make_twiddles(Tile tile, int head, int depth, int inner) {
  for (int level = 0; level < tile.levels; ++level) {
    const int count = tile.nodes_of(level), table = tile.nodes_above(level);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const Angle angle = node_angle(head, depth + level, inner * count + i);
      const auto root = [&](int parts) {  // 32 bits: a fast division, enough for 2^25 points
        return rounded_root(static_cast<int>(1 + 4 * angle.m), static_cast<int>(4 * angle.n * parts));
      };
      tile.upper()[table + i] = {root(2), root(4)};
      tile.lower()[table + i] = {root(8), root(16)};
    }
  }
  __syncthreads();
}

// ---- passes ---------------------------------------------------------------------------------------------------------

// The pass of the head, in place; `Real` as in math/splits.h.
template <int Odd, int Bits, bool Inverse, bool Real>
MONARCH_DEVICE void head_pass_of(const Tile& tile) {
  constexpr int kHead = Odd << Bits;
  const int columns = tile.points / kHead;  // a multiple of 16
  for (int i = threadIdx.x; i < tile.rows * columns; i += blockDim.x) {
    const int r = tile.rows == 1 ? 0 : i / columns;
    Bin* const at = tile.row(r) + padded(i - r * columns);
    Bin x[kHead];
#pragma unroll
    for (int q = 0; q < kHead; ++q) {
      if (Real && !Inverse) {
        x[q] = {at[q * padded(columns)].re, 0.f};
      } else {
        x[q] = at[q * padded(columns)];
      }
    }
    head_tree<Odd, Bits, Inverse, Real>(x, tile.head_roots());
#pragma unroll
    for (int q = 0; q < kHead; ++q) {
      if (Real && Inverse) {
        at[q * padded(columns)].re = x[q].re;
      } else {
        at[q * padded(columns)] = x[q];
      }
    }
  }
}

template <bool Inverse, bool Real>
MONARCH_DEVICE_CALL void head_pass(Tile tile) {
  switch (tile.head) {
    case 2: head_pass_of<1, 1, Inverse, Real>(tile); break;
    case 3: head_pass_of<3, 0, Inverse, Real>(tile); break;
    case 4: head_pass_of<1, 2, Inverse, Real>(tile); break;
    case 5: head_pass_of<5, 0, Inverse, Real>(tile); break;
    case 6: head_pass_of<3, 1, Inverse, Real>(tile); break;
    case 8: head_pass_of<1, 3, Inverse, Real>(tile); break;
    case 10: head_pass_of<5, 1, Inverse, Real>(tile); break;
    case 12: head_pass_of<3, 2, Inverse, Real>(tile); break;
    case 16: head_pass_of<1, 4, Inverse, Real>(tile); break;
    case 20: head_pass_of<5, 2, Inverse, Real>(tile); break;
    case 24: head_pass_of<3, 3, Inverse, Real>(tile); break;
    default: __trap();
  }
  __syncthreads();
}

// A node's points, `Stride` apart: 1, 8, or a multiple of 16. The first one is less than `Stride` after a multiple
// of 16.
template <int Stride>
MONARCH_DEVICE void read_node(const Bin* at, Bin (&x)[kNodePoints]) {
#pragma unroll
  for (int q = 0; q < kNodePoints; ++q) x[q] = at[padded(q * Stride)];
}
template <int Stride>
MONARCH_DEVICE void write_node(Bin* at, const Bin (&x)[kNodePoints]) {
#pragma unroll
  for (int q = 0; q < kNodePoints; ++q) at[padded(q * Stride)] = x[q];
}

template <bool Inverse>
MONARCH_DEVICE void transform_node(const Tile& tile, int entry, Bin (&x)[kNodePoints]) {
  const BinPair upper = tile.upper()[entry], lower = tile.lower()[entry];
  const Bin roots[4] = {upper.first, upper.second, lower.first, lower.second};
  subtree<4, Inverse, false>(x, roots);
}

// One level whose nodes' points are `Stride` apart.
template <int Stride, bool Inverse>
MONARCH_DEVICE_CALL void level_pass(Tile tile, int level) {
  const int table = tile.nodes_above(level), nodes = tile.nodes_of(level);
  for (int i = threadIdx.x; i < tile.rows * tile.points / kNodePoints; i += blockDim.x) {
    const int group = i / Stride, within = i % Stride;  // rows follow each other without a gap
    const int node = tile.rows == 1 ? group : group % nodes;
    Bin* const at = tile.row(0) + group * padded(kNodePoints * Stride) + padded(within);
    Bin x[kNodePoints];
    read_node<Stride>(at, x);
    transform_node<Inverse>(tile, table + node, x);
    write_node<Stride>(at, x);
  }
  __syncthreads();
}

// All levels between the head and the last one, or all levels of a tile of columns.
template <bool Inverse>
MONARCH_DEVICE void middle_passes(const Tile& tile) {
  const int count = tile.columns == 1 ? tile.levels - 1 : tile.levels;
  for (int step = 0; step < count; ++step) {
    const int level = Inverse ? count - 1 - step : step;
    switch ((tile.columns == 1 ? kNodePoints : tile.columns) << 4 * (count - level - 1)) {
      case 256: level_pass<256, Inverse>(tile, level); break;
      case 128: level_pass<128, Inverse>(tile, level); break;
      case 16: level_pass<16, Inverse>(tile, level); break;
      case 8: level_pass<8, Inverse>(tile, level); break;
      default: __trap();
    }
  }
}

// The last level, in place.
template <bool Inverse>
MONARCH_DEVICE void last_pass(const Tile& tile) {
  level_pass<1, Inverse>(tile, tile.levels - 1);
}

// The last level: f(row, node, x) between the transforms of a node's points; without `Forward` it fills x, without
// `Inverse` it takes x away.
template <bool Forward, bool Inverse, class F>
MONARCH_DEVICE void leaf_pass(const Tile& tile, F f) {
  const int count = tile.leaf_nodes(), table = tile.nodes_above(tile.levels - 1);
  for (int i = threadIdx.x; i < tile.rows * count; i += blockDim.x) {
    const int r = tile.rows == 1 ? 0 : i / count, node = i - r * count;
    Bin* const at = tile.leaf(r, node);
    Bin x[kNodePoints];
    if (Forward) {
      read_node<1>(at, x);
      transform_node<false>(tile, table + node, x);
    }
    f(r, node, x);
    if (Inverse) {
      transform_node<true>(tile, table + node, x);
      write_node<1>(at, x);
    }
  }
  __syncthreads();
}

// ---- between the tile and memory ------------------------------------------------------------------------------------

MONARCH_DEVICE void put(Bin& z, float x) { z.re = x; }
MONARCH_DEVICE void put(Bin& z, Bin x) { z = x; }
MONARCH_DEVICE void take(Bin z, float& x) { x = z.re; }
MONARCH_DEVICE void take(Bin z, Bin& x) { x = z; }

// source(row)(p) is a point, of type T: a float, whose imaginary part is left unwritten, or a Bin.
template <class T, class Source>
MONARCH_DEVICE void fill(const Tile& tile, Source source) {
  tile.for_points(source, [](const auto& point, int p, Bin& z) { put(z, static_cast<T>(point(p))); });
}

// sink(row)(p, value) gets each point, its real part when T is float.
template <class T, class Sink>
MONARCH_DEVICE void drain(const Tile& tile, Sink sink) {
  tile.for_points(sink, [](const auto& point, int p, Bin& z) {
    T value;
    take(z, value);
    point(p, value);
  });
}

}  // namespace monarch
