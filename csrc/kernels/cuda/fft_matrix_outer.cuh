// Rows that do not fit into a block, on tensor cores: what is between tensors and the workspace, and between the
// workspace and the inner nodes (plan/tiles.h: MatrixCut).
//
// In the workspace numbers are halves too. What they are scaled by, a power of two, is known piece by piece: on the way
// there of a block of columns, from its points; on the way back of an inner node, from its filter. Who reads a row
// brings all of it to the smallest of its scales.
#pragma once

#include "fft_matrix.cuh"

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
MONARCH_DEVICE Quad times(Quad x, uint32_t factor) {
  return {times(x.w[0], factor), times(x.w[1], factor), times(x.w[2], factor), times(x.w[3], factor)};
}

// ---- outer tiles ----------------------------------------------------------------------------------------------------

// How many of the numbers of a sum there and back the products of 16, at 1/4 each way, do not account for.
MONARCH_HD int beside_products(const OuterTile& t) { return t.parts ? t.parts : t.head; }

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
  // In their place, of a level at the root: to group `group` of 16 nodes from part `part`, or back.
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
  // the root with another one below it stores.
  static MONARCH_DEVICE int place(int piece) { return piece ^ (piece >> 3 & 7) ^ (piece >> 6 & 7) ^ piece >> 9; }
  // Logarithm of the pieces from one point of a node of a level to the next; level -1 is the one at the root.
  MONARCH_DEVICE int stride(int level) const { return tile.side + 4 * (tile.levels - 1 - level); }
};

MONARCH_DEVICE_CALL void make_outer_tables(bool inverse) {
  const OuterColumns s(0);
  if (s.thread < 2) s.greatest_point(s.thread) = s.greatest_bin(s.thread) = 0;
  for (int level = 0, nodes = s.tile.head; level < s.tile.levels; ++level, nodes *= kNodePoints)
    for (int i = s.thread; i < nodes * kNodePoints; i += s.tile.threads) {
      const int node = i / kNodePoints, j = i % kNodePoints;
      s.twist(level, node, j) = turned(node_angle(s.tile.head, 1 + level, node), j, 16, 1 / kMatrixScale);
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
    const auto entry = [&](int child, int j) {
      return turned(node_angle(s.tile.head, 1, 16 * group + child), 16 * part + j, 1, 0.25f);
    };
    const auto transposed = [&](int r, int c) { return inverse ? entry(c, r) : entry(r, c); };
    make_matrix(s.at, transposed, s.root_matrix(group, part), true);
  }
  __syncthreads();
}

template <bool Inverse>
MONARCH_DEVICE_CALL void outer_head(int turn) {
  const OuterColumns s(turn);
  const int below = s.tile.plane / s.tile.head, pairs = below * kQuadWords;
  const float scale = scale_for(s.greatest_point(turn));
  with_head<false>(s.tile.head, [&]<class Head>(Head) {
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

// The level at the root, of real numbers in `Parts` parts of 16 points, to as many groups of 16 nodes. Both the
// numbers, which are products of a row and its gate, and the matrix come as halves and their rounding errors.
template <int Parts>
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
        b[part].set_real(half, points(k), points(k + 1), scale, true);
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
        add(matrix, b[part].re), add(matrix, b[part].im), add(matrix + 64, b[part].re);
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

template <bool Inverse>
MONARCH_DEVICE_CALL void outer_root(int turn) {
  const OuterColumns s(turn);
  if constexpr (Inverse) {
    s.tile.parts == 1 ? outer_root_inverse<1>(s) : outer_root_inverse<2>(s);
  } else {
    s.tile.parts == 1 ? outer_root_forward<1>(s) : outer_root_forward<2>(s);
  }
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
    b.load(s.plane(0), s.plane(1), s.place(first + (s.at.lane % 16 << stride) + s.at.lane / 16));
    __syncwarp();  // the columns are written where they were read
    LevelSums x;
#pragma unroll
    for (int t = 0; t < 4; ++t) multiply<Inverse>(x.re[t], x.im[t], f, b.re + 2 * t, b.im + 2 * t);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = s.at.g + 8 * r, place = s.place(first + (row << stride));
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

// Calls f(place in a plane, piece of the row, point of the outer part) for this thread's pieces of a block of columns,
// from piece `i` of the block on up to piece `end` of the row. Returns the first piece that is left.
template <class F>
MONARCH_DEVICE int for_pieces(const OuterColumns& s, int block, int i, int end, F f) {
  const int pitch = s.tile.inner / 8, first = block << s.tile.side, last = (1 << s.tile.side) - 1;
  for (; i < s.tile.plane; i += s.tile.threads) {
    const int point = i >> s.tile.side, piece = point * pitch + first + (i & last);
    if (piece >= end) break;
    f(s.place(i), piece, point);
  }
  return i;
}
template <class F>
MONARCH_DEVICE void for_pieces(const OuterColumns& s, int block, F f) {
  for_pieces(s, block, s.thread, s.tile.nodes * s.tile.inner / 8, f);
}

// A block of columns of a row of fft_rows.cuh.
template <class Points>
MONARCH_DEVICE void stage_columns(int turn, const Points& points, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) s.greatest_point(turn ^ 1) = 0;  // of the tile before
  float greatest = 0, x[8];
  const auto put = [&](int place) {
    greatest = greatest_of(x, greatest);
    put_piece(x, s.plane(0)[place], s.plane(1)[place]);
  };
  const int i = for_pieces(s, block, s.thread, points.eights() / 8, [&](int place, int piece, int) {
    points.read(piece * 8, x);
    put(place);
  });
  for_pieces(s, block, i, s.tile.nodes * s.tile.inner / 8, [&](int place, int piece, int) {
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = points(piece * 8 + j);
    put(place);
  });
  const uint32_t of_warp = warp_max(bits_of(greatest));
  if (s.at.lane == 0) atomicMax(&s.greatest_point(turn), of_warp);
  __syncthreads();
}

template <class Points>
MONARCH_DEVICE void unstage_columns(int turn, const Points& points, int block) {
  const OuterColumns s(turn);
  const float gain = static_cast<float>(s.tile.nodes / beside_products(s.tile) * s.tile.inner);
  const float back =
      gain * inverse_of_power(scale_for(s.greatest_point(turn))) * inverse_of_power(scale_for(s.greatest_bin(turn)));
  float x[8];
  const int i = for_pieces(s, block, s.thread, points.eights() / 8, [&](int place, int piece, int) {
    take_piece(s.plane(0)[place], s.plane(1)[place], back, x);
    points.write(piece * 8, x);
  });
  for_pieces(s, block, i, s.tile.nodes * s.tile.inner / 8, [&](int place, int piece, int) {
    take_piece(s.plane(0)[place], s.plane(1)[place], back, x);
#pragma unroll
    for (int j = 0; j < 8; ++j) points(piece * 8 + j, x[j]);
  });
  __syncthreads();
}

// To and from a block of columns of a row of the workspace.
MONARCH_DEVICE_CALL void put_columns(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) rows.greatest_points(row)[block] = s.greatest_point(turn);
  Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  for_pieces(s, block,
             [&](int place, int piece, int) { re[piece] = s.plane(0)[place], im[piece] = s.plane(1)[place]; });
  __syncthreads();
}

MONARCH_DEVICE_CALL void take_columns(int turn, HalfRows rows, int row, int block) {
  const OuterColumns s(turn);
  if (s.thread == 0) s.greatest_point(turn ^ 1) = s.greatest_bin(turn ^ 1) = 0;
  const uint32_t* const bins = rows.greatest_bins(row);
  find_greatest(rows.greatest_points(row), rows.blocks, s.thread, s.tile.threads, s.at.lane, s.greatest_point(turn));
  find_greatest(bins, rows.nodes, s.thread, s.tile.threads, s.at.lane, s.greatest_bin(turn));
  __syncthreads();
  const Quad *const re = rows.plane(row, 0), *const im = rows.plane(row, 1);
  for_pieces(s, block, [&](int place, int piece, int node) {
    const uint32_t factor = rescaling(bins[node], s.greatest_bin(turn));
    s.plane(0)[place] = times(re[piece], factor), s.plane(1)[place] = times(im[piece], factor);
  });
  __syncthreads();
}

// ---- inner tiles ----------------------------------------------------------------------------------------------------

// To and from inner node `node` of the rows from `first` on; row_of(row) is where in the workspace a row of the block's
// is.
template <class RowOf>
MONARCH_DEVICE void fetch_halves(RowsInUse use, const HalfRows& rows, int node, RowOf row_of) {
  const StagedRows s(use);
  for_own_rows(s, 0, [&](int row, int first, int step) {
    const int pieces = s.points() / 8;
    for (int part = 0; s.tile.streams == kMostStreams && part < kMostStreams; ++part)
      copy_pieces(s.ahead(row, part), rows.plane(row_of(row), part) + node * pieces, pieces * int{sizeof(Quad)}, first,
                  step);
  });
}

// `Fetched`: by fetch_halves().
template <bool Fetched = false, class RowOf>
MONARCH_DEVICE void stage_halves(RowsInUse use, const HalfRows& rows, int node, RowOf row_of) {
  const StagedRows s(use);
  if (s.thread < s.tile.rows) s.greatest_point(s.thread, s.turn ^ 1) = 0;
  for_rows(s, 0, [&](int row, int first, int step) {
    find_greatest(rows.greatest_points(row_of(row)), rows.blocks, first, step, s.at.lane,
                  s.greatest_point(row, s.turn));
  });
  for_rows(s, 0, [&](int row, int first, int step) {
    const uint32_t* const greatest = rows.greatest_points(row_of(row));
    const auto plane = [&](int part) -> const Quad* {
      if (Fetched && s.tile.streams == kMostStreams) return s.ahead(row, part);
      return rows.plane(row_of(row), part) + node * (s.points() / 8);
    };
    const Quad *const re = plane(0), *const im = plane(1);
    for (int piece = first; piece < s.points() / 8; piece += step) {
      const uint32_t factor = rescaling(greatest[piece >> rows.side], s.greatest_point(row, s.turn));
      const int place = s.place(row, piece);
      s.plane(0)[place] = times(re[piece], factor), s.plane(1)[place] = times(im[piece], factor);
    }
  });
}

template <class RowOf>
MONARCH_DEVICE void unstage_halves(RowsInUse use, const HalfRows& rows, int node, RowOf row_of) {
  const StagedRows s(use);
  for_rows(s, 0, [&](int row, int first, int step) {
    if (first == 0) rows.greatest_bins(row_of(row))[node] = s.greatest_bin(row);
    Quad* const re = rows.plane(row_of(row), 0) + node * (s.points() / 8);
    Quad* const im = rows.plane(row_of(row), 1) + node * (s.points() / 8);
    for (int piece = first; piece < s.points() / 8; piece += step) {
      const int place = s.place(row, piece);
      re[piece] = s.plane(0)[place], im[piece] = s.plane(1)[place];
    }
  });
}

// To the nodes' own transforms, which no pass has done where they are all of the tile.
template <bool Inverse>
MONARCH_DEVICE void twist_nodes(RowsInUse use) {
  const StagedRows s(use);
  for_each(s.rows * s.tile.nodes * 128, [&](int64_t i) {
    const int node = static_cast<int>(i / 128) % s.tile.nodes, pair = static_cast<int>(i % 128);
    const int word = s.word(static_cast<int>(i / 128) / s.tile.nodes, node, pair);
    const BinPair w = s.node_twiddles()[s.twiddle_index(node, pair)];
    const FloatPair re = unpack(s.words(0)[word]), im = unpack(s.words(1)[word]);
    const Bin a = twiddle<Inverse>(Bin{re.low, im.low}, w.first), b = twiddle<Inverse>(Bin{re.high, im.high}, w.second);
    s.words(0)[word] = pack(a.re, b.re), s.words(1)[word] = pack(a.im, b.im);
  });
}

}  // namespace monarch
