// The right-angle transform on tensor cores: rows lie in shared memory as 16-bit complex numbers, and two or three of
// its passes are products with 16 x 16 DFT matrices (plan/tiles.h: MatrixTile). Here: products, heads and levels; the
// nodes of 256 points below them are in fft_matrix_nodes.cuh.
//
// Halves have 11 bits and little range, so every row is scaled by a power of two to at most 1, and every filter; each
// product is scaled by 1/4, which keeps the energy; sums and twiddles are float. The numbers of a DFT matrix are
// multiplied by 1.86..., which makes all of them nearly halves, and the twiddles divided by it. The matrices of a
// level, whose angles are arbitrary, come in two parts, high and low.
#pragma once

#include "fft_staged_rows.cuh"

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

// The head of a tree, of Odd << Bits children.
template <int Odd_, int Bits_>
struct HeadShape {
  static constexpr int kOdd = Odd_, kBits = Bits_, kParts = Odd_ << Bits_;
};

// Calls f(HeadShape). Those that a level fits below in a block, or all of them.
template <bool BelowIsLevel, class F>
MONARCH_DEVICE void with_head(int parts, F f) {
  switch (parts) {
    case 3: return f(HeadShape<3, 0>());
    case 4: return f(HeadShape<1, 2>());
    case 5: return f(HeadShape<5, 0>());
    case 6: return f(HeadShape<3, 1>());
    case 8: return f(HeadShape<1, 3>());
    default: break;
  }
  if constexpr (!BelowIsLevel) {
    switch (parts) {
      case 1: return f(HeadShape<1, 0>());
      case 2: return f(HeadShape<1, 1>());
      case 10: return f(HeadShape<5, 1>());
      case 12: return f(HeadShape<3, 2>());
      case 20: return f(HeadShape<5, 2>());
      case 24: return f(HeadShape<3, 3>());
      default: break;
    }
  }
  __trap();
}

constexpr int kPartsOfTwo = 12;  // of two columns, fit into registers

// The head on two neighbouring columns of a row, from float to complex numbers, or back: words even[word(q)] and
// odd[word(q)] of part q, which hold a column each where numbers are real, else real and imaginary parts. twisted(z, q,
// column) is what comes between the head and what is below it.
template <class Head, bool Inverse, class Word, class Twist>
MONARCH_DEVICE void transform_both(uint32_t* even, uint32_t* odd, float scale, const HeadRoots& roots, Word word,
                                   Twist twisted) {
  Bin x[2][Head::kParts];
#pragma unroll
  for (int q = 0; q < Head::kParts; ++q) {
    const uint32_t a = even[word(q)], b = odd[word(q)];
    const FloatPair re = unpack(a), im = unpack(b);
    x[0][q] = Inverse ? twisted({re.low, im.low}, q, 0) : Bin{float_of(a) * scale, 0.f};
    x[1][q] = Inverse ? twisted({re.high, im.high}, q, 1) : Bin{float_of(b) * scale, 0.f};
  }
  head_tree<Head::kOdd, Head::kBits, Inverse, true>(x[0], roots);
  head_tree<Head::kOdd, Head::kBits, Inverse, true>(x[1], roots);
#pragma unroll
  for (int q = 0; q < Head::kParts; ++q) {
    const Bin y = Inverse ? x[0][q] : twisted(x[0][q], q, 0), z = Inverse ? x[1][q] : twisted(x[1][q], q, 1);
    even[word(q)] = Inverse ? bits_of(y.re) : pack(y.re, z.re);
    odd[word(q)] = Inverse ? bits_of(z.re) : pack(y.im, z.im);
  }
}

// The same, one column after the other, in words of its own.
template <class Head, bool Inverse, class Word, class Twist>
MONARCH_DEVICE void transform_each(uint32_t* even, uint32_t* odd, float scale, const HeadRoots& roots, Word word,
                                   Twist twisted) {
  const auto interchange = [&] {  // between words of a column and words of real or imaginary parts
#pragma unroll 4
    for (int q = 0; q < Head::kParts; ++q) {
      const int at = word(q);
      const uint32_t x = even[at], y = odd[at];
      even[at] = lower_halves(x, y), odd[at] = upper_halves(x, y);
    }
  };
  if (Inverse) interchange();
#pragma unroll 1
  for (int c = 0; c < 2; ++c) {
    uint32_t* const own = c ? odd : even;
    Bin x[Head::kParts];
#pragma unroll
    for (int q = 0; q < Head::kParts; ++q) {
      const uint32_t bits = own[word(q)];
      const FloatPair z = unpack(bits);
      x[q] = Inverse ? twisted({z.low, z.high}, q, c) : Bin{float_of(bits) * scale, 0.f};
    }
    head_tree<Head::kOdd, Head::kBits, Inverse, true>(x, roots);
#pragma unroll
    for (int q = 0; q < Head::kParts; ++q) {
      const Bin z = Inverse ? x[q] : twisted(x[q], q, c);
      own[word(q)] = Inverse ? bits_of(z.re) : pack(z.re, z.im);
    }
  }
  if (!Inverse) interchange();
}

template <class Head, bool Inverse, class Word, class Twist>
MONARCH_DEVICE void transform_columns(uint32_t* even, uint32_t* odd, float scale, const HeadRoots& roots, Word word,
                                      Twist twisted) {
  if constexpr (Head::kParts <= kPartsOfTwo) {
    transform_both<Head, Inverse>(even, odd, scale, roots, word, twisted);
  } else {
    transform_each<Head, Inverse>(even, odd, scale, roots, word, twisted);
  }
}

template <bool Inverse, bool Level>
MONARCH_DEVICE_CALL void staged_head(RowsInUse use) {
  const StagedRows s(use);
  constexpr int kBelow = Level ? 16 : 1, kPairs = kBelow * 128, kPartWords = kBelow * kNodeQuads * kQuadWords;
  with_head<Level>(s.tile.head, [&]<class Head>(Head) {
    for (uint32_t i = s.thread, end = s.rows * kPairs; i < end; i += s.tile.threads) {
      const int row = i / kPairs, first = i % kPairs / 128, pair = i % 128;
      const int word = s.word(row, first, pair);
      transform_columns<Head, Inverse>(
          s.words(0), s.words(1), scale_for(s.greatest_point(row, s.turn)), s.head_roots(),
          [&](int q) {  // nodes 16 apart have their pieces in the same places
            return Level ? word + q * kPartWords : s.word(row, first + q * kBelow, pair);
          },
          [&](Bin z, int q, int c) {  // to the nodes' own transforms, if they come next
            if constexpr (Level) return z;
            return twiddle<Inverse>(z, reinterpret_cast<const Bin*>(s.node_twiddles() + s.twiddle_index(q, pair))[c]);
          });
    }
  });
  __syncthreads();
}

// The levels take 32 columns of 16 nodes at a time, as the right operands of four products: operands 2 t and 2 t + 1
// of product t.
struct Columns {
  uint32_t re[8], im[8];

  MONARCH_DEVICE void load(const StagedRows& s, int row, int first) {
    const int place = s.place(0, first + s.at.lane % 16, s.columns(), s.at.lane / 16);
    load(s.plane(0) + s.quads_before(row), s.plane(1) + s.quads_before(row), place);
  }
  MONARCH_DEVICE void load(const Quad* plane_re, const Quad* plane_im, int place) {
    load_plane(plane_re, place, re);
    load_plane(plane_im, place, im);
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
      const FloatPair near = unpack(re[2 * t + half]);
      im[2 * t + half] = pack(a - near.low, b - near.high);
    }
  }

 private:
  static MONARCH_DEVICE void load_plane(const Quad* plane, int place, uint32_t (&b)[8]) {
#pragma unroll
    for (int t = 0; t < 4; t += 2) {
      uint32_t two[4];
      load_matrices(plane + (place ^ t), two);
#pragma unroll
      for (int i = 0; i < 4; ++i) b[2 * t + i] = two[i];
    }
  }
};

struct LevelSums {
  float re[4][4] = {}, im[4][4] = {};  // [t]

  MONARCH_DEVICE void turn(int t, int i, Bin by) {
    const Bin z = mul(Bin{re[t][i], im[t][i]}, by);
    re[t][i] = z.re, im[t][i] = z.im;
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
template <bool Real, class F>
MONARCH_DEVICE void store_level(const StagedRows& s, const LevelSums& x, int row, int first, F twiddle) {
  const auto twisted = [&](int r, int t, uint32_t& re, uint32_t& im) {
    const BinPair w = twiddle(r, t);
    const Bin a = mul(Bin{x.re[t][2 * r], x.im[t][2 * r]}, w.first);
    const Bin b = mul(Bin{x.re[t][2 * r + 1], x.im[t][2 * r + 1]}, w.second);
    re = pack(a.re, b.re), im = pack(a.im, b.im);
  };
  if (Real) return store_columns(s, row, first, twisted);
  const int place = s.place(row, first + s.at.g, s.columns(), 0);
#pragma unroll
  for (int r = 0; r < 2; ++r)
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int word = ((place ^ t) + 8 * r * kNodeQuads) * kQuadWords + s.at.q;
      twisted(r, t, s.words(0)[word], s.words(1)[word]);
    }
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
      store_level<true>(s, x, row, 16 * group, [&](int r, int t) {
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

// The level below a head, of complex numbers: calls store(sums, row, first node) for the 16 nodes of each child. The
// way back's matrices lie behind the others.
template <bool Inverse, class F>
MONARCH_DEVICE void level_below_head(const StagedRows& s, F store) {
  for_columns(s, s.rows * s.tile.head, [&](int i) {
    const int row = i / s.tile.head, child = i % s.tile.head;
    Columns b;
    b.load(s, row, 16 * child);
    __syncwarp();
    LevelSums x;
    for_parts(s.at, s.level_matrices(child) + (Inverse ? 128 : 0), [&](const Fragment& a_re, const Fragment& a_im) {
      const ComplexFragment a(a_re, a_im);
#pragma unroll
      for (int t = 0; t < 4; ++t) multiply<Inverse>(x.re[t], x.im[t], a, b.re + 2 * t, b.im + 2 * t);
    });
    store(x, row, 16 * child);
  });
}

MONARCH_DEVICE void level_forward(RowsInUse use) {
  const StagedRows s(use);
  level_below_head<false>(s, [&](const LevelSums& x, int row, int first) {
    store_level<false>(s, x, row, first, [&](int r, int t) {
      return s.factored_twiddle(first + s.at.g + 8 * r, 16 * s.columns() + 4 * t + s.at.q);
    });
  });
}

MONARCH_DEVICE void level_inverse(RowsInUse use) {
  const StagedRows s(use);
  level_below_head<true>(s, [&](const LevelSums& x, int row, int first) {
    store_columns(s, row, first, [&](int r, int t, uint32_t& re, uint32_t& im) {
      re = pack(x.re[t][2 * r], x.re[t][2 * r + 1]), im = pack(x.im[t][2 * r], x.im[t][2 * r + 1]);
    });
  });
}

}  // namespace monarch
