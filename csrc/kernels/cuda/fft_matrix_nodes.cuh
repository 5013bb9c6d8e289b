// The nodes of 256 points on tensor cores, a warp each: the last two passes of the right-angle transform, their way
// back and what is between them happen in its registers. The result of a product is, as it lies there, an operand of
// the next.
#pragma once

#include "fft_matrix.cuh"

namespace monarch {

// What is above the nodes of a tile, as far as they know it.
struct NodeKind {
  bool level = false;     // which they owe twiddles on the way back
  bool factored = false;  // these come as products
  bool numbered = false;  // a head below the level: nodes are in the row's order
  bool part = false;      // an inner node: the nodes here are not all of the row's
};

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

// Where a lane finds what it needs of a node, of the first row.
template <NodeKind Kind>
struct NodePlace {
  // Columns are left in their order, not in that which the level's way back wants.
  static constexpr bool kInOrder = !Kind.level || Kind.numbered;

  int node;
  const Quad* read;         // row k of the right operand: columns 16 k ... of the node
  uint32_t* write;          // columns 16 g + 2 q ...
  int further;              // words from there to the columns 8 further
  const BinPair* twiddles;  // of these, and of those 8 further; or their factors
  int twiddles_further;
  const Bin* coarse;

  MONARCH_DEVICE NodePlace(const StagedRows& s, int node)
      : node(node), read(s.plane(0) + s.place(0, node, s.at.lane % 16 / 2, 2 * (s.at.lane & 1) + s.at.lane / 16)) {
    const int piece = s.place(0, node, s.at.g / 2, kInOrder ? 2 * (s.at.g & 1) : s.at.q);
    write = s.words(0) + piece * kQuadWords + (kInOrder ? s.at.q : 2 * (s.at.g & 1));
    further = kInOrder ? ((piece ^ 1) - piece) * kQuadWords : 1;
    if (Kind.factored) {
      coarse = &s.coarse(node, s.at.g), twiddles = &s.fine(node, s.at.q), twiddles_further = 4;
    } else if (Kind.level) {
      const int first = s.twiddle_index(node, 8 * s.at.g + s.at.q);
      twiddles = s.node_twiddles() + first, twiddles_further = (first ^ 4) - first;
    }
  }
  // To the node so many further.
  MONARCH_DEVICE void move(const StagedRows& s, int nodes) {
    if (!Kind.level) {
      *this = NodePlace(s, node + nodes);
    } else {  // a multiple of eight, whose pieces are in the same places
      node += nodes;
      read += nodes * kNodeQuads, write += nodes * kNodeQuads * kQuadWords;
      twiddles += nodes * (Kind.factored ? 16 : 128);
      if (Kind.factored) coarse += nodes * 32;
    }
  }
  // What columns 16 (g + 8 r) + 8 j + 2 q ... owe to the level, at 2 j + r.
  MONARCH_DEVICE void owed(BinPair (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4 && Kind.level; ++i) {
      const BinPair* const at = twiddles + (i >> 1 ? twiddles_further : 0);
      if (!Kind.factored) {
        to[i] = at[64 * (i & 1)];
      } else {
        const BinPair fine = *at;
        const Bin by = coarse[8 * (i & 1)];
        to[i] = {mul(fine.first, by), mul(fine.second, by)};
      }
    }
  }
};

// Where in a row of bins the four pairs of a node are that a lane has.
template <NodeKind Kind>
struct NodeBinsOfLane {
  int first, pitch;

  MONARCH_DEVICE explicit NodeBinsOfLane(const StagedRows& s) {
    const NodePairs<Kind.part> first_node(s, 0);
    pitch = first_node.pitch, first = first_node.first + s.at.g + s.at.q * pitch;
  }
  MONARCH_DEVICE int of(const StagedRows& s, int node) const {
    return first + (Kind.numbered ? static_cast<int>(s.in_tree(node)) : node) * kNodePoints;
  }
  MONARCH_DEVICE int of(const StagedRows& s, int node, int j) const {
    return of(s, node) + 4 * (j >> 1) * pitch + 8 * (j & 1);
  }
};

// The filter of a row, scaled.
template <NodeKind Kind>
struct NodeFilter {
  NodeBinsOfLane<Kind> places;
  const BinPair* bins;
  float scale;

  MONARCH_DEVICE NodeFilter(const StagedRows& s, const Bin* spectra, int row)
      : places(s), bins(NodePairs<Kind.part>(s, 0).filter(s, spectra, row)), scale(scale_for(s.greatest_bin(row))) {}
  MONARCH_DEVICE void load(const StagedRows& s, int node, BinPair (&filter)[4]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) filter[j] = bins[places.of(s, node, j)];
    if (scale == 1) return;
#pragma unroll
    for (int j = 0; j < 4; ++j) filter[j] = {scaled(filter[j].first, scale), scaled(filter[j].second, scale)};
  }
};

// The transform of a node and its way back.
template <NodeKind Kind>
struct NodeTransform {
  ComplexFragment f, right;  // the DFT matrix as a left and as a right operand
  BinPair inner[4];          // twiddles between the two passes, for pair 2 j + r

  MONARCH_DEVICE explicit NodeTransform(const StagedRows& s)
      : f(s.dft_matrix() + s.at.lane), right(s.dft_matrix() + 96 + s.at.lane) {
#pragma unroll
    for (int i = 0; i < 4; ++i) inner[i] = s.inner_twiddles()[32 * i + s.at.lane];
  }

  // Multiplies all bins by a power of two, as far as the matrix stays exact, and it by what that leaves of it.
  MONARCH_DEVICE void scale_bins(float& power) {
    constexpr float kMost = 256;
    const float within = fminf(fmaxf(power, 1 / kMost), kMost);
    const uint32_t both = pack(within, within);
    for (Fragment* part : {&right.re, &right.im, &right.minus_im}) *part = times(*part, both);
    power *= inverse_of_power(within);
  }

  // Of row `row`.
  MONARCH_DEVICE NodeSums bins(const StagedRows& s, const NodePlace<Kind>& at, int row) const {
    const Quad* const from = at.read + s.quads_before(row);
    uint32_t b_re[4], b_im[4];
    load_matrices(from, b_re);
    load_matrices(from + s.tile.plane, b_im);
    NodeSums x;
#pragma unroll
    for (int j = 0; j < 2; ++j) multiply<false>(x.re[j], x.im[j], f, b_re + 2 * j, b_im + 2 * j);
    x.twist<false>([&](int j, int r) { return inner[2 * j + r]; });
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

  // Back to columns, of row `row`, which owe so much to the level.
  MONARCH_DEVICE void store(const StagedRows& s, const NodeSums& bins, const NodePlace<Kind>& at, int row,
                            const BinPair (&owed)[4]) const {
    Fragment a_re, a_im;
    bins.pack_into(a_re, a_im);
    NodeSums v = transform_transposed(f, a_re, a_im);
    v.twist<true>([&](int j, int r) { return inner[2 * j + r]; });
    v.pack_into(a_re, a_im);
    NodeSums y = transform_transposed(f, a_re, a_im);
    if (Kind.level) y.twist<true>([&](int j, int r) { return owed[2 * j + r]; });
    y.pack_into(a_re, a_im);
    __syncwarp();  // the node is written where it was read
    uint32_t* const to = at.write + s.quads_before(row) * kQuadWords;
    const auto put = [&](uint32_t* to, const Fragment& a) {
#pragma unroll
      for (int r = 0; r < 2; ++r, to += 16 * kQuadWords)
        if (NodePlace<Kind>::kInOrder) {
          to[0] = a.w[r], to[at.further] = a.w[2 + r];
        } else {
          reinterpret_cast<Words<2>&>(*to) = {a.w[r], a.w[2 + r]};
        }
    };
    put(to, a_re), put(to + s.tile.plane * kQuadWords, a_im);
  }
};

// The nodes' own transforms, the product with the filter, of spectra (H, points), and the way back. A warp takes a node
// of some rows, one after the other.
template <NodeKind Kind>
MONARCH_DEVICE void node_pass(RowsInUse use, const Bin* spectra) {
  const StagedRows s(use);
  NodeTransform<Kind> transform(s);
  const int warps = s.tile.threads / 32;
  const auto product = [&](const NodePlace<Kind>& at, int row, const BinPair(&filter)[4]) {
    NodeSums z = transform.bins(s, at, row);
    z.template twist<false>([&](int j, int r) { return filter[2 * j + r]; });
    return z;
  };
  if constexpr (Kind.numbered) {  // a block has one row, of more nodes than warps
    NodeFilter<Kind> of_row(s, spectra, 0);
    transform.scale_bins(of_row.scale);
    for (NodePlace<Kind> at(s, s.thread / 32); at.node < s.tile.nodes; at.move(s, warps)) {
      BinPair filter[4], owed[4];
      of_row.load(s, at.node, filter);
      const NodeSums z = product(at, 0, filter);
      at.owed(owed);
      transform.store(s, z, at, 0, owed);
    }
    return __syncthreads();
  }
  // more warps than nodes: rows side by side, counted without a division, which takes registers
  int node = s.thread / 32, first_row = 0, rows_abreast = 1;
  for (; node >= s.nodes(); node -= s.nodes()) ++first_row;
  for (int spare = warps - 2 * s.nodes(); spare >= 0; spare -= s.nodes()) ++rows_abreast;
  if (first_row >= rows_abreast) node = s.nodes();  // nothing left for this warp
  for (NodePlace<Kind> at(s, node); at.node < s.nodes(); at.move(s, warps)) {
    BinPair filter[4], owed[4];
    if (Kind.factored) at.owed(owed);  // from a table they come as fast as from registers, which are few
    uint32_t channel = ~0u;
    for (int row = first_row; row < s.rows; row += rows_abreast) {
      if (s.channel(row) != channel) {
        channel = s.channel(row);
        NodeFilter<Kind>(s, spectra, row).load(s, at.node, filter);
      }
      const NodeSums z = product(at, row, filter);
      if (!Kind.factored) at.owed(owed);
      transform.store(s, z, at, row, owed);
    }
  }
  __syncthreads();
}

// Rows [0, n) are gradients, rows [n, 2 n) the inputs that go with them, all of one channel. For each pair, in order:
// adds gradient * conj(input) to `total`, a row of bins that starts as it is where `add`, else from zero; gradient *=
// conj(filter); and, where `inputs_too`, input *= filter.
template <NodeKind Kind>
MONARCH_DEVICE void node_gradients(RowsInUse use, const Bin* spectra, Bin* total, bool add, bool inputs_too) {
  const StagedRows s(use);
  const NodeTransform<Kind> transform(s);
  const NodeFilter<Kind> of_rows(s, spectra, 0);
  const NodeBinsOfLane<Kind>& places = of_rows.places;
  BinPair* const to = reinterpret_cast<BinPair*>(total);
  const int pairs = s.rows / 2;
  for (NodePlace<Kind> at(s, s.thread / 32); at.node < s.nodes(); at.move(s, s.tile.threads / 32)) {
    BinPair filter[4], sums[4], owed[4];
    of_rows.load(s, at.node, filter);
    at.owed(owed);
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[j] = total && add ? to[places.of(s, at.node, j)] : BinPair{};
    for (int i = 0; i < pairs; ++i) {
      NodeSums g = transform.bins(s, at, i);
      NodeSums x = transform.bins(s, at, pairs + i);
      const float back = s.block().gain * inverse_of_power(scale_for(s.greatest_point(i, s.turn))) *
                         inverse_of_power(scale_for(s.greatest_point(pairs + i, s.turn)));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[j].first = sums[j].first + scaled(mul_conj(g.at(j, 0), x.at(j, 0)), back);
        sums[j].second = sums[j].second + scaled(mul_conj(g.at(j, 1), x.at(j, 1)), back);
      }
      g.twist<true>([&](int j, int r) { return filter[2 * j + r]; });
      transform.store(s, g, at, i, owed);
      if (!inputs_too) continue;
      x.twist<false>([&](int j, int r) { return filter[2 * j + r]; });
      transform.store(s, x, at, pairs + i, owed);
    }
    if (!total) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) to[places.of(s, at.node, j)] = sums[j];
  }
  __syncthreads();
}

// The passes of a MatrixTile around its nodes, a type for each kind, so that there is a kernel for each: all that a
// thread has then fits into its registers.
template <NodeKind Kind>
struct PassesOf {
  static constexpr bool kNumbered = Kind.numbered;

  static MONARCH_DEVICE void multiply(RowsInUse rows, const Bin* spectra) { node_pass<Kind>(rows, spectra); }
  static MONARCH_DEVICE void gradients(RowsInUse rows, const Bin* spectra, Bin* total, bool add, bool inputs_too) {
    node_gradients<Kind>(rows, spectra, total, add, inputs_too);
  }
};

}  // namespace monarch
