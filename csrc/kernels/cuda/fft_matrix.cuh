// The right-angle transform on tensor cores: rows lie in shared memory as 16-bit complex numbers, and its passes are
// products with 16 x 16 matrices (plan/tiles.h: MatrixTile). Here: products and levels; heads are in
// fft_matrix_head.cuh, the nodes of 256 points below them in fft_matrix_nodes.cuh.
//
// Halves have 11 bits and little range, so every row is scaled by a power of two to at most 1, and every filter; each
// product is scaled by 1/4, which keeps the energy; sums and twiddles are float. The numbers of a DFT matrix are
// multiplied by 1.86..., which makes all of them nearly halves, and the twiddles divided by it. The matrices of a
// level, whose angles are arbitrary, come in two parts, high and low.
#pragma once

#include "fft_matrix_tables.cuh"

namespace monarch {

// A complex matrix as an operand.
struct ComplexFragment {
  Fragment re, im, minus_im;

  MONARCH_DEVICE ComplexFragment(const Fragment& re, const Fragment& im) : re(re), im(im), minus_im(negated(im)) {}
  // The three of a lane, 32 lanes apart.
  MONARCH_DEVICE explicit ComplexFragment(const Fragment* of_lane)
      : re(of_lane[0]), im(of_lane[32]), minus_im(of_lane[64]) {}
};

// (re, im) += A B, or conj(A) B, of complex matrices.
template <bool Conjugate>
MONARCH_DEVICE void multiply(float (&re)[4], float (&im)[4], const ComplexFragment& a, const uint32_t* b_re,
                             const uint32_t* b_im) {
  mma(re, a.re, b_re[0], b_re[1]);
  mma(im, a.re, b_im[0], b_im[1]);
  mma(re, Conjugate ? a.im : a.minus_im, b_im[0], b_im[1]);
  mma(im, Conjugate ? a.minus_im : a.im, b_re[0], b_re[1]);
}

// The right operands of four products, 2 t and 2 t + 1 of product t: a lane's rows of 32 columns of a plane.
MONARCH_DEVICE void load_columns(const Quad* plane, int place, uint32_t (&b)[8]) {
#pragma unroll
  for (int t = 0; t < 4; t += 2) {
    uint32_t two[4];
    load_matrices(plane + (place ^ t), two);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[2 * t + i] = two[i];
  }
}

// The levels take 32 columns of 16 nodes at a time.
struct Columns {
  uint32_t re[8], im[8];

  MONARCH_DEVICE void load(const StagedRows& s, int row, int first) {
    load(s.plane(0), s.plane(1), s.place(row, first + s.at.lane % 16, s.columns(), s.at.lane / 16));
  }
  MONARCH_DEVICE void load(const Quad* plane_re, const Quad* plane_im, int place) {
    load_columns(plane_re, place, re);
    load_columns(plane_im, place, im);
  }
  // Times factors[q], for rows 2 q and 2 q + 1, and factors[4 + q], for the eight below.
  MONARCH_DEVICE void rescale(const uint32_t* factors, int q) {
    const uint32_t of_half[2] = {factors[q], factors[4 + q]};
#pragma unroll
    for (int i = 0; i < 8; ++i) re[i] = times(re[i], of_half[i & 1]), im[i] = times(im[i], of_half[i & 1]);
  }
  // Of real numbers, which are still float: products take columns 8 q + 2 t + e to lane q, in place of 8 t + 2 q + e.
  MONARCH_DEVICE void load_real(const StagedRows& s, int row, int first, float scale) {
    const int c = s.columns();
    const Quad* const even = s.plane(s.at.g & 1) + s.place(0, first + 2 * s.at.q, c, s.at.g >> 1);
    const Quad* const odd = even + kNodeQuads + 4 * ((c ^ 1) - c);  // the next node
    const int of_row = s.quads_before(row);
#pragma unroll
    for (int half = 0; half < 2; ++half)
      set_real(half, even[of_row + 8 * half * kNodeQuads], odd[of_row + 8 * half * kNodeQuads], scale);
  }
  // Two points of four columns, half of what a lane has of all products; im, if wanted, gets the rounding errors.
  MONARCH_DEVICE void set_real(int half, const Quad& x, const Quad& y, float scale, bool with_rest = false) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float a = float_of(x.w[t]) * scale, b = float_of(y.w[t]) * scale;
      re[2 * t + half] = pack(a, b);
      if (!with_rest) continue;
      im[2 * t + half] = rounding_errors(a, b);
    }
  }
};

struct LevelSums {
  float re[4][4] = {}, im[4][4] = {};  // [t]

  MONARCH_DEVICE void turn(int t, int i, Bin by) {
    const Bin z = mul(Bin{re[t][i], im[t][i]}, by);
    re[t][i] = z.re, im[t][i] = z.im;
  }
  // Of row g + 8 r: word t of product t.
  MONARCH_DEVICE void pack_row(int r, Quad& to_re, Quad& to_im) const {
    Quad x, y;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      x.w[t] = pack(re[t][2 * r], re[t][2 * r + 1]);
      y.w[t] = pack(im[t][2 * r], im[t][2 * r + 1]);
    }
    to_re = x, to_im = y;
  }
};

// The high and the low part of a level's matrix: f(real part, imaginary part).
template <class F>
MONARCH_DEVICE void for_parts(const Lane& at, const Fragment* matrix, F f) {
#pragma unroll
  for (int low = 0; low < 2; ++low) f(matrix[64 * low + at.lane], matrix[64 * low + 32 + at.lane]);
}

// x += the real parts of conj(A) B, of a level's matrix A.
MONARCH_DEVICE void add_real_parts(float (&x)[4][4], const Lane& at, const Fragment* matrix, const Columns& b) {
  for_parts(at, matrix, [&](const Fragment& a_re, const Fragment& a_im) {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      mma(x[t], a_re, b.re[2 * t], b.re[2 * t + 1]);
      mma(x[t], a_im, b.im[2 * t], b.im[2 * t + 1]);
    }
  });
}

// To the 16 nodes from `first` on: words(r, t, word of plane 0, word of plane 1) of columns 8 q + 2 t and the next.
template <class F>
MONARCH_DEVICE void store_columns(const StagedRows& s, int row, int first, F words) {
  const int place = s.place(0, first + s.at.g, s.columns(), s.at.q);
  Quad *const to_re = s.plane(0) + place, *const to_im = s.plane(1) + place;
  const int of_row = s.quads_before(row);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    Quad x, y;
#pragma unroll
    for (int t = 0; t < 4; ++t) words(r, t, x.w[t], y.w[t]);
    to_re[of_row + 8 * r * kNodeQuads] = x, to_im[of_row + 8 * r * kNodeQuads] = y;
  }
}

// The sums, twisted to the nodes' own transforms by twiddle(r, t), to the 16 nodes from `first` on.
template <class F>
MONARCH_DEVICE void store_level(const StagedRows& s, const LevelSums& x, int row, int first, F twiddle) {
  store_columns(s, row, first, [&](int r, int t, uint32_t& re, uint32_t& im) {
    const BinPair w = twiddle(r, t);
    const Bin a = mul(Bin{x.re[t][2 * r], x.im[t][2 * r]}, w.first);
    const Bin b = mul(Bin{x.re[t][2 * r + 1], x.im[t][2 * r + 1]}, w.second);
    re = pack(a.re, b.re), im = pack(a.im, b.im);
  });
}

// From real rows in `Parts` parts of 16 nodes to as many groups of 16 nodes. With one part, rows share what is the same
// for all of them.
template <int Parts>
MONARCH_DEVICE void level_forward_real(RowsInUse use) {
  const StagedRows s(use);
  const int pair = 16 * s.columns() + 4 * s.at.q;
  Fragment matrix[4];
  BinPair twiddles[8];
  if (Parts == 1) {
#pragma unroll
    for (int i = 0; i < 4; ++i) matrix[i] = s.level_matrices(0)[32 * i + s.at.lane];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      twiddles[i] = s.node_twiddles()[s.twiddle_index(s.at.g, pair + i % 4) + 8 * (i / 4) * 128];
  }
  for_columns(s, s.rows, [&](int row) {
    const float scale = scale_for(s.greatest_point(row, s.turn));
    Columns b[Parts];
#pragma unroll
    for (int part = 0; part < Parts; ++part) b[part].load_real(s, row, 16 * part, scale);
    __syncwarp();  // the columns are written where they were read
#pragma unroll 1
    for (int group = 0; group < Parts; ++group) {
      LevelSums x;
#pragma unroll
      for (int part = 0; part < Parts; ++part)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const Fragment* const from = s.level_matrices(group * Parts + part) + 32 * i + s.at.lane;
          const Fragment a_re = Parts == 1 ? matrix[i] : from[0], a_im = Parts == 1 ? matrix[i + 1] : from[32];
#pragma unroll
          for (int t = 0; t < 4; ++t) {
            mma(x.re[t], a_re, b[part].re[2 * t], b[part].re[2 * t + 1]);
            mma(x.im[t], a_im, b[part].re[2 * t], b[part].re[2 * t + 1]);
          }
        }
      store_level(s, x, row, 16 * group, [&](int r, int t) {
        return Parts == 1 ? twiddles[4 * r + t] : s.factored_twiddle(16 * group + s.at.g + 8 * r, pair + t);
      });
    }
  });
}

// The way back, from columns in the order in which node_pass() leaves them.
template <int Parts>
MONARCH_DEVICE void level_inverse_real(RowsInUse use) {
  const StagedRows s(use);
  for_columns(s, s.rows, [&](int row) {
    Columns b[Parts];
#pragma unroll
    for (int group = 0; group < Parts; ++group) b[group].load(s, row, 16 * group);
    __syncwarp();
#pragma unroll 1
    for (int part = 0; part < Parts; ++part) {
      float x[4][4] = {};
#pragma unroll
      for (int group = 0; group < Parts; ++group)
        add_real_parts(x, s.at, s.level_matrices(group * Parts + part) + 128, b[group]);
      store_columns(s, row, 16 * part, [&](int r, int t, uint32_t& even, uint32_t& odd) {
        even = bits_of(x[t][2 * r]), odd = bits_of(x[t][2 * r + 1]);
      });
    }
  });
}

// ---- of few nodes ---------------------------------------------------------------------------------------------------

// Where a row has up to eight nodes, real and imaginary parts of their sums are the sixteen rows of one product, and
// the high and the low part of its matrix the terms: a node is a term twice. Of four nodes or less, two or more groups
// of 32 columns are in a product, which have their own rows and terms.
struct FewNodes {
  const StagedRows& s;
  int row, rows_abreast;  // this warp's first one; those of all warps
  int part;               // of the columns: this warp's first group

  MONARCH_DEVICE explicit FewNodes(const StagedRows& s)
      : s(s),
        row(s.thread >> (5 + s.tile.few)),
        rows_abreast(s.tile.threads >> (5 + s.tile.few)),
        part(node(s.thread >> 5)) {}

  // Of row or term i % 8 of a product: its node, its group's columns, and piece p of four of these, of the first row.
  MONARCH_DEVICE int node(int i) const { return i & ((1 << s.tile.few) - 1); }
  MONARCH_DEVICE int columns(int i) const { return part + i - node(i); }
  MONARCH_DEVICE int place(int i, int p) const { return s.place(row, node(i), columns(i), p); }
  MONARCH_DEVICE int quads_to_next() const { return s.quads_before(rows_abreast); }
};

// `Precise`: rows are not exact as halves.
template <bool Precise>
MONARCH_DEVICE void level_of_few_forward(RowsInUse use) {
  const StagedRows s(use);
  const FewNodes few(s);
  const int q = s.at.q, g = s.at.g, step = few.quads_to_next(), other = s.tile.plane;
  const Fragment matrix = s.level_matrices(0)[s.at.lane];
  BinPair twiddles[4];
#pragma unroll
  for (int t = 0; t < 4; ++t)
    twiddles[t] = s.node_twiddles()[s.twiddle_index(few.node(g), 16 * few.columns(g) + 4 * q + t)];
  const Quad *even = s.plane(g & 1) + few.place(2 * q, g >> 1), *odd = s.plane(g & 1) + few.place(2 * q + 1, g >> 1);
  Quad* to = s.plane(0) + few.place(g, q);
  for (int row = few.row; row < s.rows; row += few.rows_abreast, even += step, odd += step, to += step) {
    const float scale = scale_for(s.greatest_point(row, s.turn));
    const Quad x = *even, y = *odd;
    __syncwarp();  // the columns are written where they were read
    Quad re, im;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float u = float_of(x.w[t]) * scale, v = float_of(y.w[t]) * scale;
      float sums[4] = {};
      const uint32_t both = pack(u, v);
      mma(sums, matrix, both, both);
      if constexpr (Precise) {
        const uint32_t rest = rounding_errors(u, v);
        mma(sums, matrix, rest, rest);
      }
      const Bin a = mul(Bin{sums[0], sums[2]}, twiddles[t].first), b = mul(Bin{sums[1], sums[3]}, twiddles[t].second);
      re.w[t] = pack(a.re, b.re), im.w[t] = pack(a.im, b.im);
    }
    to[0] = re, to[other] = im;
  }
  __syncthreads();
}

// From columns in the order in which node_pass() leaves them.
MONARCH_DEVICE void level_of_few_inverse(RowsInUse use) {
  const StagedRows s(use);
  const FewNodes few(s);
  const int lane = s.at.lane, g = s.at.g, step = few.quads_to_next(), other = s.tile.plane;
  const Fragment matrix = s.level_matrices(0)[32 + lane];
  const Quad* const plane = s.plane(lane >> 3 & 1);
  const int from = few.place(lane & 7, lane >> 4);
  Quad* to = s.plane(0) + few.place(g, s.at.q);
  for (int row = few.row, at = from; row < s.rows; row += few.rows_abreast, at += step, to += step) {
    uint32_t b[8];
    load_columns(plane, at, b);
    __syncwarp();
    Quad even, odd;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      float x[4] = {};
      mma(x, matrix, b[2 * t], b[2 * t + 1]);
      even.w[t] = bits_of(x[0] + x[2]), odd.w[t] = bits_of(x[1] + x[3]);
    }
    to[0] = even, to[other] = odd;
  }
  __syncthreads();
}

// The level of an inner node, of complex numbers: load(columns, row), then store(sums, row). The way back's matrices
// lie behind the others.
template <bool Inverse, class L, class F>
MONARCH_DEVICE void inner_level(const StagedRows& s, L load, F store) {
  for_columns(s, s.rows, [&](int row) {
    Columns b;
    load(b, row);
    __syncwarp();  // the columns are written where they were read
    LevelSums x;
    for_parts(s.at, s.level_matrices(0) + (Inverse ? 128 : 0), [&](const Fragment& a_re, const Fragment& a_im) {
      const ComplexFragment a(a_re, a_im);
#pragma unroll
      for (int t = 0; t < 4; ++t) multiply<Inverse>(x.re[t], x.im[t], a, b.re + 2 * t, b.im + 2 * t);
    });
    store(x, row);
  });
}

}  // namespace monarch
