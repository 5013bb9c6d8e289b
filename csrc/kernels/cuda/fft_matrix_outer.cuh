// Rows that do not fit into a block, on tensor cores: what is between tensors and the workspace (plan/tiles.h:
// MatrixCut). What is between that and the inner nodes is in fft_matrix_inner.cuh.
//
// In the workspace numbers are halves too. What they are scaled by, a power of two, is known piece by piece: on the way
// there of a block of columns, from its points; on the way back of an inner node, from its filter. Who reads a row
// brings all of it to the smallest of its scales.
#pragma once

#include "fft_matrix_head.cuh"

namespace monarch {

// Rows of the workspace: a plane of real parts and one of imaginary parts; then, as bits, the greatest magnitude among
// the points of each block of columns, and among the filter's bins of each inner node.
struct HalfRows {
  Quad* data;
  int points, nodes, blocks, side;  // of the pieces of a block, as in OuterTile

  HalfRows(void* data, const OuterTile& t)
      : data(static_cast<Quad*>(data)), points(t.nodes * t.inner), nodes(t.nodes), blocks(t.blocks()), side(t.side) {}

  MONARCH_HD int64_t pitch() const { return points / 4 + pieces(blocks + nodes, kQuadWords); }
  // Pieces of eight points.
  MONARCH_DEVICE Quad* plane(int row, int part) const { return data + row * pitch() + part * (points / 8); }
  MONARCH_DEVICE uint32_t* greatest_points(int row) const { return reinterpret_cast<uint32_t*>(plane(row, 2)); }
  MONARCH_DEVICE uint32_t* greatest_bins(int row) const { return greatest_points(row) + blocks; }
};

// The greatest of n values of a row, to `greatest`, by the threads first, first + step, ... of whole warps.
MONARCH_DEVICE void find_greatest(const uint32_t* values, int n, int first, int step, int lane, uint32_t& greatest) {
  uint32_t mine = 0;
  for (int i = first; i < n; i += step) mine = values[i] > mine ? values[i] : mine;
  mine = warp_max(mine);
  if (lane == 0) atomicMax(&greatest, mine);
}

// The factor, for both halves of a word, from numbers scaled for one magnitude to those scaled for a greater one.
MONARCH_DEVICE uint32_t rescaling(uint32_t from, uint32_t to) {
  const float ratio = scale_for(to) * inverse_of_power(scale_for(from));
  return pack(ratio, ratio);
}

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
  // the root with another one below it stores. `folded`: the bits of its number that say so.
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
  // Logarithm of the pieces from one point of a node of a level to the next; level -1 is the one at the root.
  MONARCH_DEVICE int stride(int level) const { return tile.side + 4 * (tile.levels - 1 - level); }
};

MONARCH_DEVICE_CALL void make_outer_tables(bool inverse) {
  const OuterColumns s(0);
  const int radix = s.tile.radix;
  const auto angle = [&](int level, int node) {
    if (!radix) return node_angle(s.tile.head, 1 + level, node);
    Angle a{node >> 4 * level, s.tile.head};
    while (--level >= 0) a = a.child(reverse_bits(node >> 4 * level & 15, 4), kNodePoints);
    return a;
  };
  if (s.thread < 2) s.greatest_point(s.thread) = s.greatest_bin(s.thread) = 0;
  for (int level = 0, nodes = s.tile.head; level < s.tile.levels; ++level, nodes *= kNodePoints)
    for (int i = s.thread; i < nodes * kNodePoints; i += s.tile.threads) {
      const int node = i / kNodePoints, j = i % kNodePoints;
      s.twist(level, node, j) = turned(angle(level, node), j, 16, 1 / kMatrixScale);
    }
  if (s.tile.levels && s.thread < 32) {  // children are in tree order; the inverse is the conjugate, transposed
    const auto entry = [&](int r, int c) {
      const int turns = inverse ? r * reverse_bits(c, 4) : reverse_bits(r, 4) * c;
      return scaled_root(turns, 16, kMatrixScale / 4);
    };
    make_matrix(s.at, entry, s.dft_matrix(), false);
  }
  for (int i = s.thread / 32; i < s.tile.parts * s.tile.parts; i += s.tile.threads / 32) {
    const int group = i / s.tile.parts, part = i % s.tile.parts;
    const auto entry = [&](int child, int j) { return turned(angle(0, 16 * group + child), 16 * part + j, 1, 0.25f); };
    const auto transposed = [&](int r, int c) { return inverse ? entry(c, r) : entry(r, c); };
    make_matrix(s.at, transposed, s.root_matrix(group, part), true);
  }
  for (int l = s.thread / 32; l < radix; l += s.tile.threads / 32) {
    const auto entry = [&](int k, int j) { return turned(angle(0, k), radix * j + l, 1, 0.25f); };
    const auto transposed = [&](int r, int c) {
      return inverse ? entry(c, r) : entry(slot_of_row(r, s.stride(-1)), c);
    };
    make_matrix(s.at, transposed, s.root_matrix(0, l), true);
  }
  for (int node = s.thread; node < 16 * radix; node += s.tile.threads)
    s.in_tree(static_cast<int>(node_angle(radix, 2, node).m)) = node;
  __syncthreads();
}

template <bool Inverse>
MONARCH_DEVICE_CALL void outer_head(int turn) {
  const OuterColumns s(turn);
  const int below = s.tile.plane / s.tile.head, pairs = below * kQuadWords;
  const float scale = scale_for(s.greatest_point(turn));
  with_head(s.tile.head, [&]<class Head>(Head) {
    for (int i = s.thread; i < pairs; i += s.tile.threads) {
      const int piece = i / kQuadWords;
      transform_columns<Head, Inverse>(
          s.words(0), s.words(1), scale, s.head_roots(),
          [&](int q) { return s.place(piece + q * below) * kQuadWords + i % kQuadWords; },
          [&](Bin z, int q, int) {  // the way back's levels have done it
            return Inverse || s.tile.levels == 0 ? z : mul(z, s.twist(0, q, piece >> s.stride(0)));
          });
    }
  });
  __syncthreads();
}

// Calls f(first piece) for this warp's groups of 32 columns of the level at the root.
template <class F>
MONARCH_DEVICE void for_root_columns(const OuterColumns& s, F f) {
  for (int i = s.thread / 32; i < 1 << (s.stride(-1) - 2); i += s.tile.threads / 32) f(4 * i);
  __syncthreads();
}

// The level at the root, of real numbers in `Parts` parts of 16 points, to as many groups of 16 nodes. The matrix and,
// where `Precise`, the numbers come as halves and their rounding errors.
template <int Parts, bool Precise>
MONARCH_DEVICE void outer_root_forward(const OuterColumns& s) {
  const int stride = s.stride(-1);
  const float scale = scale_for(s.greatest_point(s.turn));
  for_root_columns(s, [&](int first) {
    // products take columns 8 q + 2 t + e to lane q, in place of 8 t + 2 q + e
    const Quad* const plane = s.plane(s.at.g & 1);
    const auto points = [&](int k) -> const Quad& { return plane[s.place(first + (k << stride) + (s.at.g >> 1))]; };
    Columns b[Parts];
#pragma unroll
    for (int part = 0; part < Parts; ++part)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = 16 * part + 8 * half + 2 * s.at.q;
        b[part].set_real(half, points(k), points(k + 1), scale, Precise);
      }
    __syncwarp();  // the columns are written where they were read
#pragma unroll 1
    for (int group = 0; group < Parts; ++group) {
      LevelSums x;
      const auto add = [&](const Fragment* matrix, const uint32_t (&of)[8]) {
        const Fragment a_re = matrix[s.at.lane], a_im = matrix[32 + s.at.lane];
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          mma(x.re[t], a_re, of[2 * t], of[2 * t + 1]);
          mma(x.im[t], a_im, of[2 * t], of[2 * t + 1]);
        }
      };
#pragma unroll
      for (int part = 0; part < Parts; ++part) {
        const Fragment* const matrix = s.root_matrix(group, part);
        add(matrix, b[part].re), add(matrix + 64, b[part].re);
        if (Precise) add(matrix, b[part].im);
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int node = 16 * group + s.at.g + 8 * r, place = s.place(first + (node << stride) + s.at.q);
        if (s.tile.levels) {
          const Bin w = s.twist(0, node, first >> s.stride(0));
#pragma unroll
          for (int t = 0; t < 4; ++t) x.turn(t, 2 * r, w), x.turn(t, 2 * r + 1, w);
        }
        Quad re, im;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          re.w[t] = pack(x.re[t][2 * r], x.re[t][2 * r + 1]);
          im.w[t] = pack(x.im[t][2 * r], x.im[t][2 * r + 1]);
        }
        s.plane(0)[place] = re, s.plane(1)[place] = im;
      }
    }
  });
}

template <int Parts>
MONARCH_DEVICE void outer_root_inverse(const OuterColumns& s) {
  const int stride = s.stride(-1);
  for_root_columns(s, [&](int first) {
    Columns b[Parts];
#pragma unroll
    for (int group = 0; group < Parts; ++group)
      b[group].load(s.plane(0), s.plane(1),
                    s.place(first + ((16 * group + s.at.lane % 16) << stride) + s.at.lane / 16));
    __syncwarp();
#pragma unroll 1
    for (int part = 0; part < Parts; ++part) {
      float x[4][4] = {};
#pragma unroll
      for (int group = 0; group < Parts; ++group) add_real_parts(x, s.at, s.root_matrix(group, part), b[group]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int place = s.place(first + ((16 * part + s.at.g + 8 * r) << stride));
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          const int word = (place ^ t) * kQuadWords + s.at.q;
          s.words(0)[word] = bits_of(x[t][2 * r]), s.words(1)[word] = bits_of(x[t][2 * r + 1]);
        }
      }
    }
  });
}

template <bool Inverse, bool Precise>
MONARCH_DEVICE_CALL void outer_root(int turn) {
  const OuterColumns s(turn);
  if constexpr (Inverse) {
    s.tile.parts == 1 ? outer_root_inverse<1>(s) : outer_root_inverse<2>(s);
  } else {
    s.tile.parts == 1 ? outer_root_forward<1, Precise>(s) : outer_root_forward<2, Precise>(s);
  }
}

// The same with a head below it, on its sums. `Levels`: below both.
template <int Levels>
struct RootColumns {
  static constexpr int kMatrixPitch = 128, kStride = side_below_head(Levels) + 4 * Levels;

  const OuterColumns& s;

  MONARCH_DEVICE Quad* plane(int odd) const { return s.plane(odd); }
  MONARCH_DEVICE int place(int slot, int piece) const { return s.place(piece + (slot << kStride), (8 << kStride) - 1); }
  MONARCH_DEVICE int apart() const { return 8 << kStride; }
  MONARCH_DEVICE const Fragment* matrices() const { return s.root_matrix(0, 0); }
};

// Calls f(tile, first piece) for a warp's pieces, `Count` at a time.
template <int Count, int Levels, class F>
MONARCH_DEVICE void for_root_pieces(const OuterColumns& s, F f) {
  using Tile = RootColumns<Levels>;
  for (int first = s.thread / 32 * Count; first < 1 << Tile::kStride; first += s.tile.threads / 32 * Count)
    f(Tile{s}, first);
  __syncthreads();
}

template <int Radix, int Levels, bool Precise>
MONARCH_DEVICE void outer_root_and_head_forward(const OuterColumns& s) {
  constexpr int kCount = kPiecesOfHead<Radix>;
  const float scale = scale_for(s.greatest_point(s.turn));
  for_root_pieces<kCount, Levels>(s, [&](const auto& tile, int first) {
    HeadSums<Radix, kCount, Precise> x(tile, s.at, first, scale);
    x.transform();
    const int k = slot_of_row(s.at.g, tile.kStride);
    x.store(tile, s.at, k, first, [&](int p) {
#pragma unroll
      for (int r = 0; r < 2 && Levels > 0; ++r) {
        const Bin w = s.twist(0, 16 * p + k + 8 * r, first >> s.stride(0));
#pragma unroll
        for (int t = 0; t < kCount; ++t) x.turn(p, r, t, {w, w});
      }
    });
  });
}

template <int Radix, int Levels>
MONARCH_DEVICE_CALL void outer_root_and_head_inverse(int turn) {
  const OuterColumns s(turn);
  for_root_pieces<1, Levels>(
      s, [&](const auto& tile, int first) { back_to_reals<Radix, 1>(tile, s.at, first, s.tile.radix); });
}

template <bool Inverse, bool Precise>
MONARCH_DEVICE void outer_root_and_head(int turn) {
  const OuterColumns s(turn);
  const auto run = [&]<int Radix, int Levels>() {
    if constexpr (Inverse) {
      outer_root_and_head_inverse<Radix, Levels>(turn);
    } else {
      outer_root_and_head_forward<Radix, Levels, Precise>(s);
    }
  };
  with_radix(s.tile.radix, [&]<class Head>(Head) {
    if constexpr (Head::kParts <= 6)  // with a level more, no other tile fits into a block
      if (s.tile.levels) return run.template operator()<Head::kParts, 1>();
    run.template operator()<Head::kParts, 0>();
  });
}

// A level of 16, in place, 32 columns of all points of a node at a time.
template <bool Inverse>
MONARCH_DEVICE_CALL void outer_level(int level) {
  const OuterColumns s(0);
  const ComplexFragment f(s.dft_matrix()[s.at.lane], s.dft_matrix()[32 + s.at.lane]);
  const int stride = s.stride(level), groups = stride - 2;  // logarithms
  for (int i = s.thread / 32; i < s.tile.plane >> 6; i += s.tile.threads / 32) {
    const int node = i >> groups, group = i & ((1 << groups) - 1);
    const int first = (node << (stride + 4)) + group * 4;
    Columns b;
    b.load(s.plane(0), s.plane(1), s.place(first + (s.at.lane % 16 << stride) + s.at.lane / 16, s.tile.folded));
    __syncwarp();  // the columns are written where they were read
    LevelSums x;
#pragma unroll
    for (int t = 0; t < 4; ++t) multiply<Inverse>(x.re[t], x.im[t], f, b.re + 2 * t, b.im + 2 * t);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = s.at.g + 8 * r, place = s.place(first + (row << stride), s.tile.folded);
      // to the level that comes next, whose points these columns are
      const bool twisted = Inverse || level + 1 < s.tile.levels;
      const Bin w = !twisted  ? Bin{1.f, 0.f}
                    : Inverse ? s.twist(level, node, row)
                              : s.twist(level + 1, node * kNodePoints + row, group * 4 >> (stride - 4));
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const Bin a = twiddle<Inverse>(Bin{x.re[t][2 * r], x.im[t][2 * r]}, w);
        const Bin c = twiddle<Inverse>(Bin{x.re[t][2 * r + 1], x.im[t][2 * r + 1]}, w);
        const int word = (place ^ t) * kQuadWords + s.at.q;
        s.words(0)[word] = pack(a.re, c.re), s.words(1)[word] = pack(a.im, c.im);
      }
    }
  }
  __syncthreads();
}

// Calls f(place in a plane, piece of the row, its point of the outer part) for this thread's pieces of a block of
// columns, whose points are point_of(slot of the tile).
template <bool Numbered, class P, class F>
MONARCH_DEVICE void for_pieces(const OuterColumns& s, int block, P point_of, F f) {
  const int pitch = s.tile.inner / 8, first = block << s.tile.side, last = (1 << s.tile.side) - 1;
  for (int i = s.thread; i < s.tile.plane; i += s.tile.threads) {
    const int point = point_of(i >> s.tile.side);
    f(Numbered ? s.place(i, s.tile.folded) : s.place(i), point * pitch + first + (i & last), point);
  }
}

// The pieces of a row of fft_rows.cuh in a block of columns: calls eight(place, piece) for those that it has as a
// whole, each(place, piece) for the others.
template <bool Numbered, class Points, class F, class G>
MONARCH_DEVICE void for_pieces_of(const OuterColumns& s, const Points& points, int block, F eight, G each) {
  const int whole = points.eights() / 8;
  const auto point_of = [&](int slot) { return s.point<Numbered>(slot); };
  for_pieces<Numbered>(s, block, point_of, [&](int place, int piece, int) {
    if (piece < whole) eight(place, piece);
  });
  if (whole == s.tile.nodes * (s.tile.inner / 8)) return;
  for_pieces<Numbered>(s, block, point_of, [&](int place, int piece, int) {
    if (piece >= whole) each(place, piece);
  });
}

template <bool Numbered, class Points>
MONARCH_DEVICE void stage_columns(int turn, const Points& points, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) s.greatest_point(turn ^ 1) = 0;  // of the tile before
  float greatest = 0, x[8];
  const auto put = [&](int place) {
    greatest = greatest_of(x, greatest);
    put_piece(x, s.plane(0)[place], s.plane(1)[place]);
  };
  const auto eight = [&](int place, int piece) {
    points.read(piece * 8, x);
    put(place);
  };
  for_pieces_of<Numbered>(s, points, block, eight, [&](int place, int piece) {
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = points(piece * 8 + j);
    put(place);
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
  float x[8];
  const auto eight = [&](int place, int piece) {
    take_piece(s.plane(0)[place], s.plane(1)[place], back, x);
    points.write(piece * 8, x);
  };
  for_pieces_of<Numbered>(s, points, block, eight, [&](int place, int piece) {
    take_piece(s.plane(0)[place], s.plane(1)[place], back, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) points(piece * 8 + j, x[j]);
  });
  __syncthreads();
}

// To and from a block of columns of a row of the workspace.
template <bool Numbered>
MONARCH_DEVICE_CALL void put_columns(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) rows.greatest_points(row)[block] = s.greatest_point(turn);
  Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  for_pieces<Numbered>(
      s, block, [&](int slot) { return s.node<Numbered>(slot); },
      [&](int place, int piece, int) { re[piece] = s.plane(0)[place], im[piece] = s.plane(1)[place]; });
  __syncthreads();
}

template <bool Numbered>
MONARCH_DEVICE_CALL void take_columns(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) s.greatest_point(turn ^ 1) = s.greatest_bin(turn ^ 1) = 0;
  const uint32_t* const bins = rows.greatest_bins(row);
  find_greatest(rows.greatest_points(row), rows.blocks, s.thread, s.tile.threads, s.at.lane, s.greatest_point(turn));
  find_greatest(bins, rows.nodes, s.thread, s.tile.threads, s.at.lane, s.greatest_bin(turn));
  __syncthreads();
  const Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  for_pieces<Numbered>(
      s, block, [&](int slot) { return s.node<Numbered>(slot); },
      [&](int place, int piece, int node) {
        const uint32_t factor = rescaling(bins[node], s.greatest_bin(turn));
        s.plane(0)[place] = times(re[piece], factor), s.plane(1)[place] = times(im[piece], factor);
      });
  __syncthreads();
}

}  // namespace monarch
