// Rows of the tensor-core engine in shared memory (plan/tiles.h: MatrixTile says where), and how they get there from
// tensors and back.
#pragma once

#include "fft_rows.cuh"
#include "ptx.cuh"

namespace monarch {

constexpr int kQuadWords = 4;

// Position of a thread in its warp, as ptx.cuh has it.
struct Lane {
  int lane, q, g;
  MONARCH_DEVICE explicit Lane(int thread) : lane(thread % 32), q(lane % 4), g(lane / 4) {}
};

// Which of the block's rows are in use. Passes take this and find the rest in shared memory.
struct RowsInUse {
  int rows;
  int turn = 0;  // 0 or 1, the other one for the rows that come next
};

// What all threads of a block know, at the start of shared memory: in registers it would take them from every pass.
struct BlockState {
  MatrixTile tile;
  Share share;     // of the launch's tasks
  int bins;        // of a row; more than its points here where the tile is below an inner node
  int first_node;  // of the row's nodes
  float gain;      // as in StagedTransform
};
static_assert(sizeof(BlockState) <= kTileQuads * sizeof(Quad));

// The rows of a block in shared memory, and the tables beside them; MatrixTile says where all that is.
//
// A node has 128 words in each of two planes, which hold the real and the imaginary parts of neighbouring columns; or
// while the numbers are real and float, the even columns and the odd ones.
struct StagedRows {
  MatrixTile tile;
  int rows, turn;
  int thread;
  Lane at;

  MONARCH_DEVICE explicit StagedRows(RowsInUse use)
      : tile(shared_memory<BlockState>()->tile), rows(use.rows), turn(use.turn), thread(own_thread()), at(thread) {}

  template <class T>
  MONARCH_DEVICE T* part(int begin) const {
    return reinterpret_cast<T*>(shared_memory<Quad>() + begin);
  }
  MONARCH_DEVICE Quad* plane(int odd) const { return part<Quad>(kTileQuads + odd * tile.plane); }
  MONARCH_DEVICE BinPair* inner_twiddles() const { return part<BinPair>(tile.inner_twiddles); }
  // Its real parts, its imaginary ones and those negated as a left operand, 32 lanes each, then all three as a right
  // one: pairs of words of a lane.
  MONARCH_DEVICE Fragment* dft_matrix() const { return part<Fragment>(tile.dft_matrix); }
  MONARCH_DEVICE Fragment* level_matrices(int block) const { return part<Fragment>(tile.level_matrices + block * 256); }
  // Per row: the greatest magnitude among its points and among its filter's bins, as bits, and the channel.
  MONARCH_DEVICE uint32_t* state() const { return part<uint32_t>(tile.state); }
  MONARCH_DEVICE uint32_t& greatest_point(int row, int turn) const { return state()[turn * tile.rows + row]; }
  MONARCH_DEVICE uint32_t& greatest_bin(int row) const { return state()[2 * tile.rows + row]; }
  MONARCH_DEVICE uint32_t& channel(int row) const { return state()[3 * tile.rows + row]; }
  // The nodes' numbers in the tree's order, where they are in the row's.
  MONARCH_DEVICE uint32_t& in_tree(int node) const { return part<uint32_t>(tile.state + tile.rows)[node]; }
  // Where a tensor of a row that comes next is, or will be.
  MONARCH_DEVICE Quad* ahead(int row, int stream) const {
    return part<Quad>(tile.ahead) + (stream * tile.rows + row) * tile.nodes * kNodeQuads;
  }
  // Where halves come from the workspace: there, or where they will stay, in the same places as there.
  MONARCH_DEVICE Quad* arrival(int part) const { return tile.streams == kMostStreams ? ahead(0, part) : plane(part); }
  // Of an inner node, what brings its columns 32 `columns` ... to the row's scale: for each 16th of the points, as
  // halves.
  MONARCH_DEVICE uint32_t* rescaling(int row, int columns) const {
    return part<uint32_t>(tile.state + tile.rows) + 64 * row + 8 * columns;
  }
  // Whether there is room, and it comes in pieces of 16 bytes.
  MONARCH_DEVICE bool is_copied(int stream, const void* from) const {
    return stream < tile.streams && reinterpret_cast<uintptr_t>(from) % sizeof(Quad) == 0;
  }
  MONARCH_DEVICE int room() const { return tile.pitch / kNodeQuads; }
  MONARCH_DEVICE int points() const { return tile.nodes * 256; }
  MONARCH_DEVICE const BlockState& block() const { return *shared_memory<BlockState>(); }
  // Read anew: beside the pitch it would take a register from what is done with the nodes.
  MONARCH_DEVICE int nodes() const { return block().tile.nodes; }
  MONARCH_DEVICE int quads_before(int row) const { return row * tile.pitch; }
  // Where in a plane a piece of 8 columns of a node is, piece p of four of part c of the columns: such that none of the
  // passes meets a bank twice.
  MONARCH_DEVICE int place(int row, int node, int c, int p) const {
    return quads_before(row) + node * kNodeQuads + (key(4 * c + p) ^ swizzle(node));
  }
  static MONARCH_DEVICE int key(int piece) { return piece ^ (piece >> 3 & 1); }
  static MONARCH_DEVICE int swizzle(int node) { return (node & 1) << 2 | (node >> 1 & 3); }
  // The same for piece 32 node + 4 c + p of a row, in fewer instructions.
  MONARCH_DEVICE int place(int row, int piece) const {
    return quads_before(row) + (piece ^ (piece >> 3 & 1) ^ (piece >> 3 & 4) ^ (piece >> 6 & 3));
  }
  // Of real points, whose block `head` j + l of 256 lies in place 16 l + j where nodes are numbered.
  template <bool Numbered>
  MONARCH_DEVICE int place_of(int row, int piece) const {
    if (!Numbered) return place(row, piece);
    const int block = piece >> kNodeStride, j = block * tile.reciprocal >> 16, l = block - j * tile.head;
    return place(row, (16 * l + j) << kNodeStride | (piece & (kNodeQuads - 1)));
  }
  // Words of the planes, for two columns.
  MONARCH_DEVICE int word(int row, int node, int pair) const {
    const int piece = pair / kQuadWords;
    return place(row, node, piece >> 2, piece & 3) * kQuadWords + pair % kQuadWords;
  }
  MONARCH_DEVICE uint32_t* words(int odd) const { return reinterpret_cast<uint32_t*>(plane(odd)); }

  // exp(2 pi i theta c / 256) of neighbouring columns c = 2 pair, 2 pair + 1 of a node of a row; pairs that differ in
  // bit 2 have indices that do, and 64 pairs or 8 nodes further is as far in memory.
  MONARCH_DEVICE int twiddle_index(int node, int pair) const {
    return node * 128 + (pair ^ (pair >> 3 & 1) * 6 ^ (node & 1));
  }
  MONARCH_DEVICE BinPair* node_twiddles() const { return part<BinPair>(tile.node_twiddles); }
  // In their place, where nodes are numbered, exp(2 pi i p c / (256 head)), p > 0: from node k to node 16 p + k.
  MONARCH_DEVICE BinPair& head_twiddle(int p, int pair) const { return node_twiddles()[(p - 1) * 128 + pair]; }
  // The same as a product: of exp(2 pi i theta i / 16), and of exp(2 pi i theta j / 256).
  MONARCH_DEVICE const Bin& coarse(int node, int i) const { return part<Bin>(tile.factors)[node * 32 + i]; }
  MONARCH_DEVICE const BinPair& fine(int node, int pair) const {
    return part<BinPair>(tile.factors)[node * 16 + 8 + pair];
  }
  MONARCH_DEVICE BinPair factored_twiddle(int node, int pair) const {
    const Bin c = coarse(node, pair >> 3);
    const BinPair f = fine(node, pair & 7);
    return {mul(f.first, c), mul(f.second, c)};
  }

  // Which eighth of a node's columns this warp has in for_columns().
  MONARCH_DEVICE int columns() const { return thread >> 5 & 7; }
};

// Where the bins of the nodes here are in a spectrum, in pairs (fft_tile.cuh). `Part`: they are not all of it.
template <bool Part>
struct NodePairs {
  int first, pitch;

  MONARCH_DEVICE NodePairs(const StagedRows& s, int node)
      : first((Part ? s.block().first_node + node : node) * kNodePoints),
        pitch((Part ? s.block().bins : s.points()) / kNodePoints) {}
  MONARCH_DEVICE const BinPair* filter(const StagedRows& s, const Bin* spectra, int row) const {
    return reinterpret_cast<const BinPair*>(spectra + static_cast<int64_t>(s.channel(row)) *
                                                          (Part ? s.block().bins : s.points()));
  }
};

// Runs f(i) for i in [0, n), eight warps each, then waits for all.
template <class F>
MONARCH_DEVICE void for_columns(const StagedRows& s, int n, F f) {
  for (int i = s.thread / 256; i < n; i += s.tile.threads / 256) f(i);
  __syncthreads();
}

// Runs f(i) for i in [0, n), a warp each, then waits for all.
template <class F>
MONARCH_DEVICE void for_each_warp(const StagedRows& s, int n, F f) {
  for (int i = s.thread / 32; i < n; i += s.tile.threads / 32) f(i);
  __syncthreads();
}

// The power of two that brings numbers of at most this magnitude to at most 1; 2^126 at most.
MONARCH_DEVICE float scale_for(uint32_t greatest) {
  const int exponent = 253 - static_cast<int>(greatest >> 23);
  return float_of(static_cast<uint32_t>(exponent > 1 ? exponent : 1) << 23);
}

MONARCH_DEVICE float inverse_of_power(float power_of_two) { return float_of((254u << 23) - bits_of(power_of_two)); }

// ---- between shared memory and tensors ------------------------------------------------------------------------------

// Calls f(row, first, step) for the rows of a thread, from row `begin` on, of which it takes the pieces first, first +
// step, ... of eight points. Whole warps take the same row.
template <class F>
MONARCH_DEVICE void for_own_rows(const StagedRows& s, int begin, F f) {
  const int step = 1 << s.tile.side, abreast = s.tile.threads >> s.tile.side;
  int row = s.thread >> s.tile.side;
  if (row < abreast)
    for (row += begin; row < s.rows; row += abreast) f(row, s.thread & (step - 1), step);
}
// Then waits for all.
template <class F>
MONARCH_DEVICE void for_rows(const StagedRows& s, int begin, F f) {
  for_own_rows(s, begin, f);
  __syncthreads();
}

// A piece of eight real points: even and odd columns apart.
MONARCH_DEVICE void put_piece(const float (&x)[8], Quad& to_even, Quad& to_odd) {
  Quad even, odd;
#pragma unroll
  for (int i = 0; i < 4; ++i) even.w[i] = bits_of(x[2 * i]), odd.w[i] = bits_of(x[2 * i + 1]);
  to_even = even, to_odd = odd;
}
MONARCH_DEVICE void take_piece(Quad even, Quad odd, float scale, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) x[2 * i] = float_of(even.w[i]) * scale, x[2 * i + 1] = float_of(odd.w[i]) * scale;
}
MONARCH_DEVICE float greatest_of(const float (&x)[8], float greatest) {
#pragma unroll
  for (int i = 0; i < 8; ++i) greatest = fmaxf(greatest, fabsf(x[i]));
  return greatest;
}

// Calls f(piece, place) for pieces of a row that its points can read or write eight at a time; of each 512, or of the
// row where nodes are numbered, a thread has some of the first half and, in the same places after them, of the others:
// two loads that are on their way together, and whose addresses differ by a constant. What is left are the pieces from
// the result on, in steps of `step`.
template <bool Numbered, class Points, class F>
MONARCH_DEVICE int for_eights(const StagedRows& s, int row, const Points& points, int first, int step, F f) {
  constexpr int kApart = 256;
  int left = first;
  if constexpr (comes_in_eights<Points> && Numbered) {
    const int end = points.eights() / 8, half = s.points() / 16;
    if constexpr (comes_in_pairs<Points>)
      for (; left < end - half; left += step) {
        const int place = s.place_of<true>(row, left);
        f(left, place), f(left + half, place + 8 * kNodeQuads);
      }
    const int singles = comes_in_pairs<Points> && end > half ? half : end;
    for (; left < singles; left += step) f(left, s.place_of<true>(row, left));
    if (left < end) left = end + ((first - end) & (step - 1));
  } else if constexpr (comes_in_eights<Points>) {
    const int end = points.eights() / 8;
    if constexpr (comes_in_pairs<Points>) {
      const int paired = end & ~(2 * kApart - 1);
      // more than 256 threads begin with as many runs of 512
      const int further = step > kApart ? 2 * step : step;
      for (int piece = first + first / kApart * kApart; piece < paired; piece += further, piece += piece & kApart) {
        const int place = s.place(row, piece);
        f(piece, place), f(piece + kApart, place + kApart);
      }
      left += paired;
    }
    for (; left < end; left += step) f(left, s.place(row, left));
  }
  return left;
}

// Until what all threads have asked for is there.
MONARCH_DEVICE void wait_for_all_copies() {
  wait_for_copies();
  __syncthreads();
}

// Asks for a thread's pieces of so many bytes, to shared memory.
MONARCH_DEVICE void copy_pieces(Quad* to, const void* from, int bytes, int first, int step) {
  const Quad* const pieces = static_cast<const Quad*>(from);
  const int whole = bytes / int{sizeof(Quad)}, rest = bytes % int{sizeof(Quad)};
#pragma unroll 4
  for (int i = first; i < whole; i += step) copy_async(to + i, pieces + i, sizeof(Quad));
  if (rest && first == 0) copy_async(to + whole, pieces + whole, rest);
}

// Asks for a thread's cache lines of `count` elements.
template <class T>
MONARCH_DEVICE void prefetch_lines(const T* from, int count, int first, int step) {
  constexpr int kLine = 128 / sizeof(T);
  for (int i = first * kLine; i < count; i += step * kLine) prefetch(from + i);
}

// To the L2 cache; rows as in stage().
template <class Place>
MONARCH_DEVICE void prefetch_rows(RowsInUse use, Place place) {
  const StagedRows s(use);
  for_own_rows(s, 0, [&](int row, int first, int step) {
    place(s, row).streams([&](const auto* from, int count) { prefetch_lines(from, count, first, step); });
  });
}

// To where stage() looks for them, once all threads have waited for their copies, or to the L2 cache what there is no
// room for. Nobody may still read the rows before.
template <class Source>
MONARCH_DEVICE void fetch(RowsInUse use, Source source, int begin = 0) {
  const StagedRows s(use);
  for_own_rows(s, begin, [&](int row, int first, int step) {
    int stream = 0;
    source(s, row).streams([&]<class Io>(const Io* from, int count) {
      Quad* const to = s.ahead(row, stream);
      if (s.is_copied(stream++, from)) {
        copy_pieces(to, from, count * int{sizeof(Io)}, first, step);
      } else {
        prefetch_lines(from, count, first, step);
      }
    });
  });
}

// Makes the nodes that are not there zero, of rows from `begin` on: the rows before may have left what is not finite.
MONARCH_DEVICE void clear_spare_nodes(const StagedRows& s, int begin) {
  for (int row = begin; row < s.rows; ++row)
    for (int i = s.quads_before(row) + s.tile.nodes * kNodeQuads + s.thread; i < s.quads_before(row + 1);
         i += s.tile.threads)
      s.plane(0)[i] = s.plane(1)[i] = Quad{};
}

// source(s, row) gives a row of fft_rows.cuh, for rows from `begin` on. `Fetched`: by fetch().
template <bool Numbered, bool Fetched = false, class Source>
MONARCH_DEVICE void stage(RowsInUse use, Source source, int begin = 0) {
  const StagedRows s(use);
  if (s.thread < s.tile.rows) s.greatest_point(s.thread, s.turn ^ 1) = 0;  // those before are no longer needed
  if (!Numbered && s.room() > s.tile.nodes) clear_spare_nodes(s, begin);
  for_rows(s, begin, [&](int row, int first, int step) {
    auto points = source(s, row);
    if constexpr (Fetched) {
      int stream = 0;
      points = points.moved([&]<class Io>(const Io* from) {
        const Io* const copy = reinterpret_cast<const Io*>(s.ahead(row, stream));
        return s.is_copied(stream++, from) ? copy : from;
      });
    }
    float greatest = 0;
    const auto put = [&](int place, const float (&x)[8]) {
      greatest = greatest_of(x, greatest);
      put_piece(x, s.plane(0)[place], s.plane(1)[place]);
    };
    int piece = for_eights<Numbered>(s, row, points, first, step, [&](int piece, int place) {
      float x[8];
      points.read(piece * 8, x);
      put(place, x);
    });
    for (; piece < s.points() / 8; piece += step) {
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = points(piece * 8 + i);
      put(s.place_of<Numbered>(row, piece), x);
    }
    const uint32_t of_warp = warp_max(bits_of(greatest));
    if (s.at.lane == 0) atomicMax(&s.greatest_point(row, s.turn), of_warp);
  });
}

// sink(s, row) gets the results of rows from `begin` on.
template <bool Numbered, class Sink>
MONARCH_DEVICE void unstage(RowsInUse use, Sink sink, int begin = 0) {
  const StagedRows s(use);
  for_rows(s, begin, [&](int row, int first, int step) {
    const auto points = sink(s, row);
    const float back = s.block().gain * inverse_of_power(scale_for(s.greatest_point(row, s.turn))) *
                       inverse_of_power(scale_for(s.greatest_bin(row)));
    const auto take = [&](int place, float (&x)[8]) { take_piece(s.plane(0)[place], s.plane(1)[place], back, x); };
    int piece = for_eights<Numbered>(s, row, points, first, step, [&](int piece, int place) {
      float x[8];
      take(place, x);
      points.write(piece * 8, x);
    });
    for (; piece < s.points() / 8; piece += step) {
      float x[8];
      take(s.place_of<Numbered>(row, piece), x);
#pragma unroll
      for (int i = 0; i < 8; ++i) points(piece * 8 + i, x[i]);
    }
  });
}

}  // namespace monarch
