// The nodes of 256 points on tensor cores, a warp each: the last two passes of the right-angle transform, their way
// back and what is between them happen in its registers. The result of a product is, as it lies there, an operand of
// the next.
#pragma once

#include "fft_matrix.cuh"

namespace monarch {

// The 256 complex numbers of a node in a warp's registers: 16 x 16, of which a lane has rows g and g + 8, columns
// 8 j + 2 q and the next.
struct NodeSums {
  float re[2][4] = {}, im[2][4] = {};  // [j][2 * (row of the lane) + (column of the lane)]

  // times w, or its conjugate, for (j, row)
  template <bool Conjugate, class F>
  MONARCH_DEVICE void twist(F w) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const BinPair t = w(j, r);
        const auto turn = [&](int i, Bin by) {
          const Bin z = twiddle<Conjugate>(Bin{re[j][i], im[j][i]}, by);
          re[j][i] = z.re, im[j][i] = z.im;
        };
        turn(2 * r, t.first), turn(2 * r + 1, t.second);
      }
  }
  // Number `i` of pair 2 j + r.
  MONARCH_DEVICE Bin at(int pair, int i) const {
    return {re[pair >> 1][2 * (pair & 1) + i], im[pair >> 1][2 * (pair & 1) + i]};
  }
  // As operands: the left one of a product, word 2 j + r; or the right one of a product with the transpose, words
  // r and r + 2 for its eight columns 8 r ...
  MONARCH_DEVICE void pack_into(Fragment& to_re, Fragment& to_im) const {
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        to_re.w[2 * j + r] = pack(re[j][2 * r], re[j][2 * r + 1]);
        to_im.w[2 * j + r] = pack(im[j][2 * r], im[j][2 * r + 1]);
      }
  }
};

// conj(F) Z^T, Z as pack_into() leaves it.
MONARCH_DEVICE NodeSums transform_transposed(const ComplexFragment& f, const Fragment& z_re, const Fragment& z_im) {
  NodeSums v;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const uint32_t re[2] = {z_re.w[j], z_re.w[j + 2]}, im[2] = {z_im.w[j], z_im.w[j + 2]};
    multiply<true>(v.re[j], v.im[j], f, re, im);
  }
  return v;
}

// Two words of one plane.
struct alignas(8) WordPair {
  uint32_t w[2];
};

// Where a lane finds what it needs of a node of the first row, in units of what it finds there.
struct NodePlace {
  int node, read, twiddle, write;

  MONARCH_DEVICE NodePlace(const StagedRows& s, int node, bool level)
      : node(node),
        // row k of the right operand: columns 16 k ... of the node
        read(s.place(0, node, s.at.lane % 16 / 2, 2 * (s.at.lane & 1) + s.at.lane / 16)),
        twiddle(s.twiddle_index(node, 8 * s.at.g + s.at.q)),
        // in the order of the level's way back; or columns 16 g + 2 q ..., and those 8 further, a piece further
        write(s.place(0, node, s.at.g / 2, level ? s.at.q : 2 * (s.at.g & 1))) {}
};

// The four pairs of a node's bins that a lane has, out of those of a row.
template <bool Part>
struct NodeBinsOfLane : NodePairs<Part> {
  MONARCH_DEVICE NodeBinsOfLane(const StagedRows& s, int node) : NodePairs<Part>(s, node) {
    this->first += s.at.g + s.at.q * this->pitch;
  }
  MONARCH_DEVICE int at(int j) const { return this->first + 4 * (j >> 1) * this->pitch + 8 * (j & 1); }
};

// Those of a row's filter, scaled.
template <bool Part>
MONARCH_DEVICE void load_filter(const StagedRows& s, const Bin* spectra, int row, int node, BinPair (&filter)[4]) {
  const NodeBinsOfLane<Part> places(s, node);
  const BinPair* const from = places.filter(s, spectra, row);
  const float scale = scale_for(s.greatest_bin(row));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const BinPair k = from[places.at(j)];
    filter[j] = {scaled(k.first, scale), scaled(k.second, scale)};
  }
}

// The transform of a node and its way back. `Factored`: node twiddles come as products; `Level`: columns are left in
// the order that the level's way back wants.
template <bool Factored, bool Level>
struct NodeTransform {
  ComplexFragment f, right;  // the DFT matrix as a left and as a right operand

  MONARCH_DEVICE explicit NodeTransform(const StagedRows& s)
      : f(s.dft_matrix() + s.at.lane), right(s.dft_matrix() + 96 + s.at.lane) {}

  // Of the columns at `place`.
  MONARCH_DEVICE NodeSums bins(const StagedRows& s, int place) const {
    uint32_t b_re[4], b_im[4];
    load_matrices(s.plane(0) + place, b_re);
    load_matrices(s.plane(1) + place, b_im);
    NodeSums x;
#pragma unroll
    for (int j = 0; j < 2; ++j) multiply<false>(x.re[j], x.im[j], f, b_re + 2 * j, b_im + 2 * j);
    x.twist<false>([&](int j, int r) { return inner(s, j, r); });
    Fragment a_re, a_im;
    x.pack_into(a_re, a_im);
    NodeSums z;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      mma(z.re[j], a_re, right.re.w[2 * j], right.re.w[2 * j + 1]);
      mma(z.im[j], a_re, right.im.w[2 * j], right.im.w[2 * j + 1]);
      mma(z.re[j], a_im, right.minus_im.w[2 * j], right.minus_im.w[2 * j + 1]);
      mma(z.im[j], a_im, right.re.w[2 * j], right.re.w[2 * j + 1]);
    }
    return z;
  }

  // Back to columns, of row `row`.
  MONARCH_DEVICE void store(const StagedRows& s, const NodeSums& bins, const NodePlace& at, int row) const {
    Fragment a_re, a_im;
    bins.pack_into(a_re, a_im);
    NodeSums v = transform_transposed(f, a_re, a_im);
    v.twist<true>([&](int j, int r) { return inner(s, j, r); });
    v.pack_into(a_re, a_im);
    NodeSums y = transform_transposed(f, a_re, a_im);
    if (Level)
      y.twist<true>([&](int j, int r) {
        if (Factored) return s.factored_twiddle(at.node, 8 * s.at.g + 64 * r + 4 * j + s.at.q);
        return s.node_twiddles()[(at.twiddle ^ 4 * j) + 64 * r];
      });
    y.pack_into(a_re, a_im);
    __syncwarp();  // the node is written where it was read
    const int of_row = s.quads_before(row);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (Level) {
        const int to = 2 * (at.write + 16 * r + of_row) + (s.at.g & 1);
        reinterpret_cast<WordPair*>(s.plane(0))[to] = {a_re.w[r], a_re.w[2 + r]};
        reinterpret_cast<WordPair*>(s.plane(1))[to] = {a_im.w[r], a_im.w[2 + r]};
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int word = kQuadWords * ((at.write ^ j) + 16 * r + of_row) + s.at.q;
          s.words(0)[word] = a_re.w[2 * j + r], s.words(1)[word] = a_im.w[2 * j + r];
        }
      }
    }
  }

 private:
  static MONARCH_DEVICE BinPair inner(const StagedRows& s, int j, int r) {
    return s.inner_twiddles()[32 * (2 * j + r) + s.at.lane];
  }
};

// The nodes' own transforms, the product with the filter, of spectra (H, points), and the way back. A warp takes a node
// of some rows, one after the other.
template <bool Factored, bool Level, bool Part>
MONARCH_DEVICE void node_pass(RowsInUse use, const Bin* spectra) {
  const StagedRows s(use);
  const NodeTransform<Factored, Level> transform(s);
  const int warps = s.tile.threads / 32;
  // more warps than nodes: rows side by side, counted without a division, which takes registers
  int node = s.thread / 32, first_row = 0, rows_abreast = 1;
  for (; node >= s.tile.nodes; node -= s.tile.nodes) ++first_row;
  for (int spare = warps - 2 * s.tile.nodes; spare >= 0; spare -= s.tile.nodes) ++rows_abreast;
  if (first_row >= rows_abreast) node = s.tile.nodes;  // nothing left for this warp
  for (; node < s.tile.nodes; node += warps) {
    const NodePlace at(s, node, Level);
    BinPair filter[4];
    uint32_t channel = ~0u;
    for (int row = first_row; row < s.rows; row += rows_abreast) {
      if (s.channel(row) != channel) {
        channel = s.channel(row);
        load_filter<Part>(s, spectra, row, node, filter);
      }
      NodeSums z = transform.bins(s, at.read + s.quads_before(row));
      z.twist<false>([&](int j, int r) { return filter[2 * j + r]; });
      transform.store(s, z, at, row);
    }
  }
  __syncthreads();
}

// Rows [0, n) are gradients, rows [n, 2 n) the inputs that go with them, all of one channel. For each pair, in order:
// adds gradient * conj(input) to `total`, a row of bins that starts as it is where `add`, else from zero; gradient *=
// conj(filter); and, where `inputs_too`, input *= filter.
template <bool Factored, bool Level, bool Part>
MONARCH_DEVICE void node_gradients(RowsInUse use, const Bin* spectra, Bin* total, bool add, bool inputs_too) {
  const StagedRows s(use);
  const NodeTransform<Factored, Level> transform(s);
  const int pairs = s.rows / 2;
  for (int node = s.thread / 32; node < s.tile.nodes; node += s.tile.threads / 32) {
    const NodePlace at(s, node, Level);
    const NodeBinsOfLane<Part> places(s, node);
    BinPair* const to = reinterpret_cast<BinPair*>(total);
    BinPair filter[4], sums[4];
    load_filter<Part>(s, spectra, 0, node, filter);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = total && add ? to[places.at(j)] : BinPair{};
    for (int i = 0; i < pairs; ++i) {
      NodeSums g = transform.bins(s, at.read + s.quads_before(i));
      NodeSums x = transform.bins(s, at.read + s.quads_before(pairs + i));
      const float back = s.block().gain * inverse_of_power(scale_for(s.greatest_point(i, s.turn))) *
                         inverse_of_power(scale_for(s.greatest_point(pairs + i, s.turn)));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[j].first = sums[j].first + scaled(mul_conj(g.at(j, 0), x.at(j, 0)), back);
        sums[j].second = sums[j].second + scaled(mul_conj(g.at(j, 1), x.at(j, 1)), back);
      }
      g.twist<true>([&](int j, int r) { return filter[2 * j + r]; });
      transform.store(s, g, at, i);
      if (!inputs_too) continue;
      x.twist<false>([&](int j, int r) { return filter[2 * j + r]; });
      transform.store(s, x, at, pairs + i);
    }
    if (!total) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) to[places.at(j)] = sums[j];
  }
  __syncthreads();
}

}  // namespace monarch
