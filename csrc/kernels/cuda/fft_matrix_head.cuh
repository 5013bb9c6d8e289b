// The heads of rows on tensor cores: in float registers, before an outer part's levels; or after a level at the root,
// on the sums of its products.
#pragma once

#include "fft_matrix.cuh"

namespace monarch {

// The head of a tree, of Odd << Bits children.
template <int Odd_, int Bits_>
struct HeadShape {
  static constexpr int kOdd = Odd_, kBits = Bits_, kParts = Odd_ << Bits_;
};

// Calls f(HeadShape) for a head that a level fits above.
template <class F>
MONARCH_DEVICE void with_radix(int head, F f) {
  switch (head) {
    case 3: return f(HeadShape<3, 0>());
    case 4: return f(HeadShape<1, 2>());
    case 5: return f(HeadShape<5, 0>());
    case 6: return f(HeadShape<3, 1>());
    case 8: return f(HeadShape<1, 3>());
    default: __trap();
  }
}

// The same for any head.
template <class F>
MONARCH_DEVICE void with_head(int parts, F f) {
  switch (parts) {
    case 2: return f(HeadShape<1, 1>());
    case 10: return f(HeadShape<5, 1>());
    case 12: return f(HeadShape<3, 2>());
    case 20: return f(HeadShape<5, 2>());
    case 24: return f(HeadShape<3, 3>());
    default: return with_radix(parts, f);
  }
}

// How many neighbouring words of each part, of two columns each, a thread takes at a time: as fit into registers.
template <int Parts>
constexpr int kWordsOfHead = Parts <= 4   ? 4
                             : Parts <= 8 ? 2
                                          : 1;
constexpr int kPartsOfTwo = 12;  // of two columns, fit into registers

template <int Count>
MONARCH_DEVICE Words<Count>& words_at(uint32_t* first) {
  return *reinterpret_cast<Words<Count>*>(first);
}

// The head on the columns of `Count` neighbouring words of a row, from float to complex numbers, or back: words
// even[word(q)] ... and odd[word(q)] ... of part q, which hold a column each where numbers are real, else real and
// imaginary parts of two. twisted(z, q, column) is what comes between the head and what is below it.
template <class Head, int Count, bool Inverse, class Word, class Twist>
MONARCH_DEVICE void transform_both(uint32_t* even, uint32_t* odd, float scale, const HeadRoots& roots, Word word,
                                   Twist twisted) {
  Bin x[2 * Count][Head::kParts];
#pragma unroll
  for (int q = 0; q < Head::kParts; ++q) {
    const Words<Count> a = words_at<Count>(even + word(q)), b = words_at<Count>(odd + word(q));
#pragma unroll
    for (int t = 0; t < Count; ++t) {
      const int c = 2 * t;
      const FloatPair re = unpack(a.w[t]), im = unpack(b.w[t]);
      x[c][q] = Inverse ? twisted({re.low, im.low}, q, c) : Bin{float_of(a.w[t]) * scale, 0.f};
      x[c + 1][q] = Inverse ? twisted({re.high, im.high}, q, c + 1) : Bin{float_of(b.w[t]) * scale, 0.f};
    }
  }
#pragma unroll
  for (int c = 0; c < 2 * Count; ++c) head_tree<Head::kOdd, Head::kBits, Inverse, true>(x[c], roots);
#pragma unroll
  for (int q = 0; q < Head::kParts; ++q) {
    Words<Count> a, b;
#pragma unroll
    for (int t = 0; t < Count; ++t) {
      const int c = 2 * t;
      const Bin y = Inverse ? x[c][q] : twisted(x[c][q], q, c);
      const Bin z = Inverse ? x[c + 1][q] : twisted(x[c + 1][q], q, c + 1);
      a.w[t] = Inverse ? bits_of(y.re) : pack(y.re, z.re);
      b.w[t] = Inverse ? bits_of(z.re) : pack(y.im, z.im);
    }
    words_at<Count>(even + word(q)) = a, words_at<Count>(odd + word(q)) = b;
  }
}

// The same of one word, one column after the other, in words of its own.
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
    transform_both<Head, kWordsOfHead<Head::kParts>, Inverse>(even, odd, scale, roots, word, twisted);
  } else {
    transform_each<Head, Inverse>(even, odd, scale, roots, word, twisted);
  }
}

// ---- below a level at the root --------------------------------------------------------------------------------------
//
// A row of 16 R nodes, R the head's children, is split by 16 first, which is a product of real numbers, and by R in the
// registers that hold its sums. Of block b = R j + l of a row and node m = k + 16 p, numbered by their angles, the
// factor is exp(2 pi i (1 + 4 m) b / (64 R)) = exp(2 pi i (1 + 4 k) b / (64 R)) exp(2 pi i p l / R): R products of 16,
// one for each l, then a DFT. Block b lies in slot 16 l + j of a tile, node m in slot m.
//
// A `Tile` here has two planes of pieces of eight columns, place(slot, piece) of which lie apart() further eight slots
// further, and the matrices of a direction, kMatrixPitch fragments one after the other.

// How many pieces at a time have their sums in registers.
template <int Radix>
constexpr int kPiecesOfHead = Radix > 4 ? 1 : 2;

// dft() of math/dft.h, and of six by its prime factors.
template <int Radix, bool Inverse>
MONARCH_DEVICE void small_dft(Bin (&x)[Radix]) {
  if constexpr (Radix == 6) {
    Bin even[3] = {x[0], x[2], x[4]}, odd[3] = {x[3], x[5], x[1]};
    dft<3, Inverse>(even), dft<3, Inverse>(odd);
#pragma unroll
    for (int i = 0; i < 3; ++i) x[4 * i % 6] = even[i] + odd[i], x[(4 * i + 3) % 6] = even[i] - odd[i];
  } else {
    dft<Radix, Inverse>(x);
  }
}

// A lane's sums of `Count` pieces: rows g and g + 8 of the matrices, words Count q ... of the columns.
template <int Radix, int Count, bool Precise>
struct HeadSums {
  static constexpr int kLanes = kQuadWords / Count;  // of a piece

  float re[Radix][Count][4] = {}, im[Radix][Count][4] = {};

  // Of real numbers, which are still float. `Precise`: with their rounding errors, as halves too.
  template <class Tile>
  MONARCH_DEVICE HeadSums(const Tile& tile, const Lane& at, int first, float scale) {
    const auto words = [&](int slot) {
      const Quad* const piece = tile.plane(at.g & 1) + tile.place(slot, first + (at.g >> 1) / kLanes);
      return reinterpret_cast<const Words<Count>*>(piece) + (at.g >> 1) % kLanes;
    };
    const Words<Count>*const even = words(2 * at.q), *const odd = words(2 * at.q + 1);
#pragma unroll
    for (int i = 0; i < Radix; ++i) {
      uint32_t b[2][Count], rest[2][Count];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int slots = (2 * i + half) * tile.apart() * kLanes;
        const Words<Count> x = even[slots], y = odd[slots];
#pragma unroll
        for (int t = 0; t < Count; ++t) {
          const float u = float_of(x.w[t]) * scale, v = float_of(y.w[t]) * scale;
          b[half][t] = pack(u, v);
          if (Precise) rest[half][t] = rounding_errors(u, v);
        }
      }
      const auto add = [&](const Fragment& a_re, const Fragment& a_im, const uint32_t (&of)[2][Count]) {
#pragma unroll
        for (int t = 0; t < Count; ++t) {
          mma(re[i][t], a_re, of[0][t], of[1][t]);
          mma(im[i][t], a_im, of[0][t], of[1][t]);
        }
      };
      const Fragment* const matrix = tile.matrices() + i * Tile::kMatrixPitch + at.lane;
      const Fragment a_re = matrix[0], a_im = matrix[32];
      add(a_re, a_im, b), add(matrix[64], matrix[96], b);
      if (Precise) add(a_re, a_im, rest);
    }
    __syncwarp();  // the columns are written where they were read
  }
  MONARCH_DEVICE void turn(int i, int r, int t, const BinPair& by) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float &a = re[i][t][2 * r + e], &b = im[i][t][2 * r + e];
      const Bin z = mul(Bin{a, b}, e ? by.second : by.first);
      a = z.re, b = z.im;
    }
  }
  MONARCH_DEVICE void transform() {
#pragma unroll
    for (int t = 0; t < Count; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Bin x[Radix];
#pragma unroll
        for (int i = 0; i < Radix; ++i) x[i] = {re[i][t][e], im[i][t][e]};
        small_dft<Radix, false>(x);
#pragma unroll
        for (int i = 0; i < Radix; ++i) re[i][t][e] = x[i].re, im[i][t][e] = x[i].im;
      }
  }
  // To nodes k + 16 i, k of row g; calls before(i) first.
  template <class Tile, class F>
  MONARCH_DEVICE void store(const Tile& tile, const Lane& at, int k, int first, F before) {
    const int place = tile.place(k, first + at.q / kLanes);
    auto* const to_re = reinterpret_cast<Words<Count>*>(tile.plane(0) + place) + at.q % kLanes;
    auto* const to_im = reinterpret_cast<Words<Count>*>(tile.plane(1) + place) + at.q % kLanes;
#pragma unroll
    for (int i = 0; i < Radix; ++i) {
      before(i);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Words<Count> x, y;
#pragma unroll
        for (int t = 0; t < Count; ++t) {
          x.w[t] = pack(re[i][t][2 * r], re[i][t][2 * r + 1]);
          y.w[t] = pack(im[i][t][2 * r], im[i][t][2 * r + 1]);
        }
        const int slots = (2 * i + r) * tile.apart() * kLanes;
        to_re[slots] = x, to_im[slots] = y;
      }
    }
  }
};

// The way back of `Count` pieces, a product whose sums are real. `really`: true, which no compiler knows.
template <int Radix, int Count, class Tile>
MONARCH_DEVICE void back_to_reals(const Tile& tile, const Lane& at, int first, bool really) {
  uint32_t b[Radix][Count][4];  // real parts, then imaginary ones
  const int from = tile.place(at.lane % 16, first), to = tile.place(at.g, first);
  const Quad* const plane = tile.plane(at.lane / 16);
#pragma unroll
  for (int t = 0; t < Count; ++t)
#pragma unroll
    for (int i = 0; i < Radix; ++i) {
      load_matrices(plane + (from ^ t) + 2 * i * tile.apart(), b[i][t]);
      if constexpr (Tile::kRescaled)
        for (int half = 0; half < 2; ++half) {
          const uint32_t factors = tile.rescaling(8 * i + 4 * half + at.q);
          b[i][t][half] = times(b[i][t][half], factors), b[i][t][2 + half] = times(b[i][t][2 + half], factors);
        }
    }
  __syncwarp();
#pragma unroll
  for (int t = 0; t < Count; ++t)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (t + half > 0 && !really) continue;  // two transforms at a time would not fit into registers
      Bin x[Radix], y[Radix];
#pragma unroll
      for (int i = 0; i < Radix; ++i) {
        const FloatPair re = unpack(b[i][t][half]), im = unpack(b[i][t][2 + half]);
        x[i] = {re.low, im.low}, y[i] = {re.high, im.high};
      }
      small_dft<Radix, true>(x), small_dft<Radix, true>(y);
#pragma unroll
      for (int i = 0; i < Radix; ++i) {
        b[i][t][half] = pack(x[i].re, y[i].re);
        b[i][t][2 + half] = pack(x[i].im, y[i].im);
      }
    }
#pragma unroll
  for (int i = 0; i < Radix; ++i) {
    float x[Count][4] = {};
    for_parts(at, tile.matrices() + i * Tile::kMatrixPitch, [&](const Fragment& a_re, const Fragment& a_im) {
#pragma unroll
      for (int t = 0; t < Count; ++t) {
        mma(x[t], a_re, b[i][t][0], b[i][t][1]);
        mma(x[t], a_im, b[i][t][2], b[i][t][3]);
      }
    });
#pragma unroll
    for (int t = 0; t < Count; ++t)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        Quad* const place = tile.plane(odd) + (to ^ t) + 2 * i * tile.apart();
        place->w[at.q] = bits_of(x[t][odd]), place[tile.apart()].w[at.q] = bits_of(x[t][2 + odd]);
      }
  }
}

template <bool Inverse>
struct NumberedRow {
  static constexpr int kMatrixPitch = 256;
  static constexpr bool kRescaled = false;

  const StagedRows& s;
  int row;

  MONARCH_DEVICE Quad* plane(int odd) const { return s.plane(odd); }
  MONARCH_DEVICE int place(int slot, int piece) const { return s.place(row, slot, piece >> 2, piece & 3); }
  MONARCH_DEVICE int apart() const { return 8 * kNodeQuads; }
  MONARCH_DEVICE const Fragment* matrices() const { return s.level_matrices(0) + (Inverse ? 128 : 0); }
};

// Calls f(HeadShape, row, first piece) for a warp's pieces of a block's rows.
template <class F>
MONARCH_DEVICE void for_pieces_of_rows(const StagedRows& s, F f) {
  with_radix(s.tile.head, [&]<class Head>(Head head) {
    constexpr int kCount = kPiecesOfHead<Head::kParts>, kGroups = kNodeQuads / kCount;
    for_each_warp(s, s.rows * kGroups,
                  [&](uint32_t i) { f(head, static_cast<int>(i / kGroups), i % kGroups * kCount); });
  });
}

template <bool Precise>
MONARCH_DEVICE void level_and_head_forward(RowsInUse use) {
  const StagedRows s(use);
  for_pieces_of_rows(s, [&]<class Head>(Head, int row, int first) {
    constexpr int kRadix = Head::kParts, kCount = kPiecesOfHead<kRadix>;
    const NumberedRow<false> tile{s, row};
    HeadSums<kRadix, kCount, Precise> x(tile, s.at, first, scale_for(s.greatest_point(row, s.turn)));
    const int k = slot_of_row(s.at.g, kNodeStride), pair = kQuadWords * first + kCount * s.at.q;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int t = 0; t < kCount; ++t) {
        const BinPair w = s.factored_twiddle(k + 8 * r, pair + t);
#pragma unroll
        for (int l = 0; l < kRadix; ++l) x.turn(l, r, t, w);
      }
    x.transform();
    x.store(tile, s.at, k, first, [&](int p) {
#pragma unroll
      for (int t = 0; t < kCount && p > 0; ++t) {
        const BinPair w = s.head_twiddle(p, pair + t);
        x.turn(p, 0, t, w), x.turn(p, 1, t, w);
      }
    });
  });
}

MONARCH_DEVICE void level_and_head_inverse(RowsInUse use) {
  const StagedRows s(use);
  for_pieces_of_rows(s, [&]<class Head>(Head, int row, int first) {
    constexpr int kRadix = Head::kParts;
    back_to_reals<kRadix, kPiecesOfHead<kRadix>>(NumberedRow<true>{s, row}, s.at, first, s.tile.numbered);
  });
}

}  // namespace monarch
