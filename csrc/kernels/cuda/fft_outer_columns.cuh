// Rows that do not fit into a block, on tensor cores: a tile of the outer part in shared memory, some neighbouring
// columns of a row, with its tables (plan/tiles.h: OuterTile), and how it gets there from tensors and from the
// workspace, and back.
#pragma once

#include "fft_workspace_rows.cuh"

namespace monarch {

// How many of the numbers of a sum there and back the products of 16, at 1/4 each way, do not account for.
MONARCH_HD int beside_products(const OuterTile& t) { return t.radix ? t.radix : t.parts ? t.parts : t.head; }

// What all threads of a block know, at the start of shared memory.
struct OuterState {
  OuterTile tile;
  Share share;
};
static_assert(sizeof(OuterState) <= kOuterQuads * sizeof(Quad));

// A tile in shared memory, with its tables. Points are in the order of the row, in two planes as in StagedRows.
struct OuterColumns {
  OuterTile tile;
  int turn;  // 0 or 1, the other one for the tile that comes next
  int thread;
  Lane at;

  MONARCH_DEVICE explicit OuterColumns(int turn)
      : tile(shared_memory<OuterState>()->tile), turn(turn), thread(own_thread()), at(thread) {}

  template <class T>
  MONARCH_DEVICE T* part(int begin) const {
    return reinterpret_cast<T*>(shared_memory<Quad>() + begin);
  }
  MONARCH_DEVICE Quad* plane(int odd) const { return part<Quad>(kOuterQuads + odd * tile.pitch); }
  MONARCH_DEVICE uint32_t* words(int odd) const { return reinterpret_cast<uint32_t*>(plane(odd)); }
  MONARCH_DEVICE Fragment* dft_matrix() const { return part<Fragment>(tile.dft_matrix); }
  MONARCH_DEVICE HeadRoots& head_roots() const { return *part<HeadRoots>(tile.head_roots); }
  // In their place, of a level at the root: to group `group` of 16 nodes from part `part`, or back; or of part `part`.
  MONARCH_DEVICE Fragment* root_matrix(int group, int part) const {
    return this->part<Fragment>(tile.head_roots) + (group * tile.parts + part) * 128;
  }
  MONARCH_DEVICE uint32_t& greatest_point(int turn) const { return part<uint32_t>(tile.state)[turn]; }
  MONARCH_DEVICE uint32_t& greatest_bin(int turn) const { return part<uint32_t>(tile.state)[2 + turn]; }

  // exp(2 pi i theta j / 16) of a node of a level, over what a DFT matrix is multiplied by.
  MONARCH_DEVICE Bin& twist(int level, int node, int j) const {
    return part<Bin>(tile.twists)[(level ? tile.head * kNodePoints : 0) + node * kNodePoints + j];
  }

  // Where in a plane a piece of the tile's is: such that none of the passes meets a bank twice, but where a level at
  // the root with another one below it stores. `folded`: the bits of its number that say so. Places of numbers that
  // have no bit in common can be combined by ^.
  static MONARCH_DEVICE int place(int piece, int folded = ~0) {
    folded &= piece;
    return piece ^ (folded >> 3 & 7) ^ (folded >> 6 & 7) ^ folded >> 9;
  }
  // Which point of a row is point `slot` of the tile, and which node of the workspace is node `slot`. `Numbered`: there
  // is a head below a level at the root.
  template <bool Numbered>
  MONARCH_DEVICE int point(int slot) const {
    if (!Numbered) return slot;
    const int below = 4 * tile.levels, top = slot >> below;
    return (tile.radix * (top & 15) + (top >> 4)) << below | (slot & ((1 << below) - 1));
  }
  template <bool Numbered>
  MONARCH_DEVICE int node(int slot) const {
    if (!Numbered) return slot;
    const int below = 4 * tile.levels;
    return static_cast<int>(in_tree(slot >> below)) << below | (slot & ((1 << below) - 1));
  }
  MONARCH_DEVICE uint32_t& in_tree(int top) const { return part<uint32_t>(tile.in_tree)[top]; }
  // What brings two neighbouring nodes to the row's scale, on the way back.
  MONARCH_DEVICE uint32_t& rescaling(int pair) const { return part<uint32_t>(tile.rescaling)[pair]; }
  // Logarithm of the pieces from one point of a node of a level to the next; level -1 is the one at the root.
  MONARCH_DEVICE int stride(int level) const { return tile.side + 4 * (tile.levels - 1 - level); }
};

// Calls f(place in a plane, piece of the row, its point of the outer part) for this thread's pieces of a block of
// columns, whose points are point_of(slot of the tile). `AtOnce`: how many are on their way together.
template <bool Numbered, int AtOnce = 1, class P, class F>
MONARCH_DEVICE void for_pieces(const OuterColumns& s, int block, P point_of, F f) {
  const int piece = s.thread & ((1 << s.tile.side) - 1), first = (block << s.tile.side) + piece;
  const int pitch = s.tile.inner / 8, folded = Numbered ? s.tile.folded : ~0;
  const int at_piece = opaque(s.place(piece, folded));
#pragma unroll AtOnce
  for (int slot = s.thread >> s.tile.side; slot < s.tile.nodes; slot += s.tile.threads >> s.tile.side) {
    const int point = point_of(slot);
    f(s.place(slot << s.tile.side, folded) ^ at_piece, point * pitch + first, point);
  }
}

// The pieces of a row of fft_rows.cuh in a block of columns: calls eight(place, piece) for those that it has as a
// whole, each(place, piece) for the others.
template <bool Numbered, class Points, class F, class G>
MONARCH_DEVICE void for_pieces_of(const OuterColumns& s, const Points& points, int block, F eight, G each) {
  const int whole = points.eights() / 8;
  const auto point_of = [&](int slot) { return s.point<Numbered>(slot); };
  if (whole == s.tile.nodes * (s.tile.inner / 8))
    return for_pieces<Numbered, 2>(s, block, point_of, [&](int place, int piece, int) { eight(place, piece); });
  for_pieces<Numbered>(s, block, point_of, [&](int place, int piece, int) {
    if (piece < whole) eight(place, piece);
  });
  for_pieces<Numbered>(s, block, point_of, [&](int place, int piece, int) {
    if (piece >= whole) each(place, piece);
  });
}

template <bool Numbered, class Points>
MONARCH_DEVICE void stage_columns(int turn, const Points& points, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) s.greatest_point(turn ^ 1) = 0;  // of the tile before
  float greatest = 0;
  const auto put = [&](int place, const float (&x)[8]) {
    greatest = greatest_of(x, greatest);
    put_piece(x, s.plane(0)[place], s.plane(1)[place]);
  };
  const auto eight = [&](int place, int piece) {
    float x[8];
    points.read(piece * 8, x);
    put(place, x);
  };
  for_pieces_of<Numbered>(s, points, block, eight, [&](int place, int piece) {
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = points(piece * 8 + j);
    put(place, x);
  });
  const uint32_t of_warp = warp_max(bits_of(greatest));
  if (s.at.lane == 0) atomicMax(&s.greatest_point(turn), of_warp);
  __syncthreads();
}

template <bool Numbered, class Points>
MONARCH_DEVICE void unstage_columns(int turn, const Points& points, int block) {
  const OuterColumns s(turn);
  const float gain = static_cast<float>(s.tile.nodes / beside_products(s.tile) * s.tile.inner);
  const float back =
      gain * inverse_of_power(scale_for(s.greatest_point(turn))) * inverse_of_power(scale_for(s.greatest_bin(turn)));
  const auto eight = [&](int place, int piece) {
    float x[8];
    take_piece(s.plane(0)[place], s.plane(1)[place], back, x);
    points.write(piece * 8, x);
  };
  for_pieces_of<Numbered>(s, points, block, eight, [&](int place, int piece) {
    float x[8];
    take_piece(s.plane(0)[place], s.plane(1)[place], back, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) points(piece * 8 + j, x[j]);
  });
  __syncthreads();
}

// To a block of columns of a row of the workspace, when no level has done it.
template <bool Numbered>
MONARCH_DEVICE void put_columns(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) rows.greatest_points(row)[block] = s.greatest_point(turn);
  Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  const int b = s.thread & 3;  // the piece's number of four: it has word b of each
  for_pieces<Numbered>(
      s, block, [&](int slot) { return s.node<Numbered>(slot); },
      [&](int place, int piece, int) {
        const int first_word = (place ^ b) * kQuadWords + b;
        Quad to_re, to_im;
#pragma unroll
        for (int a = 0; a < 4; ++a) {
          const int word = first_word ^ a * kQuadWords;
          to_re.w[a] = s.words(0)[word], to_im.w[a] = s.words(1)[word];
        }
        re[piece] = to_re, im[piece] = to_im;
      });
  __syncthreads();
}

// From a block of columns, with what brings them to the row's scale, by which the pass that comes next multiplies them.
template <bool Numbered>
MONARCH_DEVICE void take_columns(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  const auto node_of = [&](int slot) { return s.node<Numbered>(slot); };
  const Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  for_pieces<Numbered>(s, block, node_of, [&](int place, int piece, int) {
    copy_async(s.plane(0) + place, re + piece, sizeof(Quad));
    copy_async(s.plane(1) + place, im + piece, sizeof(Quad));
  });
  if (s.thread == 0) s.greatest_point(turn ^ 1) = s.greatest_bin(turn ^ 1) = 0;
  const uint32_t* const bins = rows.greatest_bins(row);
  const uint32_t points_of_warp = greatest_of(rows.greatest_points(row), rows.blocks, s.thread, s.tile.threads);
  const uint32_t bins_of_warp = greatest_of(bins, rows.nodes, s.thread, s.tile.threads);
  if (s.at.lane == 0)
    atomicMax(&s.greatest_point(turn), points_of_warp), atomicMax(&s.greatest_bin(turn), bins_of_warp);
  __syncthreads();
  const auto factor = [&](int slot) { return power_between(bins[node_of(slot)], s.greatest_bin(turn)); };
  for (int node = 2 * s.thread; node < s.tile.nodes; node += 2 * s.tile.threads)
    s.rescaling(node / 2) = pack(factor(node), node + 1 < s.tile.nodes ? factor(node + 1) : 1.f);
  wait_for_all_copies();
  if (s.tile.parts || s.tile.radix || s.tile.levels) return;
  for_pieces<false>(
      s, block, [](int slot) { return slot; }, [&](int place, int, int node) {  // but not a head
        const FloatPair of_both = unpack(s.rescaling(node / 2));
        const float own = node % 2 ? of_both.high : of_both.low;
        for (int part = 0; part < 2; ++part) s.plane(part)[place] = times(s.plane(part)[place], pack(own, own));
      });
  __syncthreads();
}

}  // namespace monarch
