// The tables of the tensor-core engine: twiddles, and DFT matrices as a lane holds them.
#pragma once

#include "fft_staged_rows.cuh"
#include "roots.cuh"

namespace monarch {

// The numbers of a DFT matrix are multiplied by this, which makes all of them nearly halves, and the twiddles divided.
constexpr float kMatrixScale = 1.8603515625f;
constexpr int kFragmentWords = 4;

MONARCH_DEVICE Bin scaled(Bin z, float s) { return {z.re * s, z.im * s}; }

// What pack() leaves of two numbers.
MONARCH_DEVICE uint32_t rounding_errors(float a, float b) {
  const FloatPair near = unpack(pack(a, b));
  return pack(a - near.low, b - near.high);
}

// Word `i` of a lane's fragment of the matrix of these entries. A warp for each word: they take long.
template <class Entry>
MONARCH_DEVICE void make_word(const Lane& at, int i, const Entry& entry, Fragment* to) {
  const int row = at.g + 8 * (i & 1), column = 2 * at.q + 8 * (i >> 1);
  to[at.lane].w[i] = pack(entry(row, column), entry(row, column + 1));
}

// The same of a complex matrix: real parts at `to`, imaginary ones 32 lanes after it and, where `with_rest`, the
// rounding errors of both 64 lanes after these.
template <class Entry>
MONARCH_DEVICE void make_matrix(const Lane& at, int i, const Entry& entry, Fragment* to, bool with_rest) {
  to += at.lane;
  const int row = at.g + 8 * (i & 1), column = 2 * at.q + 8 * (i >> 1);
  const Bin first = entry(row, column), second = entry(row, column + 1);
  to[0].w[i] = pack(first.re, second.re), to[32].w[i] = pack(first.im, second.im);
  if (!with_rest) return;
  to[64].w[i] = rounding_errors(first.re, second.re), to[96].w[i] = rounding_errors(first.im, second.im);
}

// scale exp(2 pi i num / den)
MONARCH_DEVICE Bin scaled_root(int num, int den, float scale) { return scaled(near_root(num, den), scale); }

// scale exp(2 pi i angle num / den)
MONARCH_DEVICE Bin turned(const Angle& angle, int num, int den, float scale) {
  return scaled_root(static_cast<int>(1 + 4 * angle.m) * num, static_cast<int>(4 * angle.n) * den, scale);
}

// The slot, of the first 16 of a tile, that has row `row` of the matrices of a level with a head below it; slots are of
// 2^stride pieces. Threads that access shared memory together then meet no bank twice.
MONARCH_DEVICE int slot_of_row(int row, int stride) {
  const int three = row & 7, turn = 2 * (stride + 2) % 3;
  return (row & 8) | ((three << turn | three >> (3 - turn)) & 7);
}

// Row r, column c of matrix `i` of a level of real numbers, or of its way back, the conjugate, transposed: of `parts`
// parts and as many groups of 16 nodes, zero for those that are not there, or where there is a head of `radix` below it
// of slots as above.
template <class AngleOf>
MONARCH_DEVICE Bin level_entry(AngleOf angle, int nodes, int radix, int parts, int i, int stride, bool inverse, int r,
                               int c) {
  int child = inverse ? c : radix ? slot_of_row(r, stride) : r, j = inverse ? r : c;
  if (radix) return turned(angle(child), radix * j + i, 1, 0.25f);
  child += 16 * (i / parts), j += 16 * (i % parts);
  return child < nodes && j < nodes ? turned(angle(child), j, 1, 0.25f) : Bin{};
}

// Row r, column c of the matrix of a level of few nodes, or of its way back: real and imaginary parts of the nodes'
// sums of columns, below each other, and high and low parts of what a node adds to them, side by side. Where there is
// room for fewer than eight nodes, they are those of several groups of columns.
template <class AngleOf>
MONARCH_DEVICE float entry_of_few(const MatrixTile& tile, AngleOf angle, bool inverse, int r, int c) {
  const int sum = inverse ? c : r, term = inverse ? r : c, room = tile.pitch / kNodeQuads;
  const int child = sum % room, j = term % room;
  const bool of_group = (sum % kFewNodes) / room == (term % kFewNodes) / room;
  if (!of_group || child >= tile.nodes || j >= tile.nodes) return 0;
  const Bin w = turned(angle(child), j, 1, 0.25f);
  const float x = sum < kFewNodes ? w.re : w.im;
  return term < kFewNodes ? x : x - unpack(pack(x, 0)).low;
}

// The tables of the nodes from block().first_node on. Also makes the rows' state that of rows which nobody has staged.
MONARCH_DEVICE_CALL void make_node_tables(int head, int depth) {
  const StagedRows s({0});
  const int nodes = s.tile.nodes, room = s.room(), first = s.block().first_node;
  const bool numbered = s.tile.numbered;
  // the nodes' numbers by angle, found once each, where the rows will be
  int* const by_angle = s.part<int>(kTileQuads + s.tile.plane);
  for_each(room, [&](int64_t i) {
    const int node = static_cast<int>(i);
    const int m = depth && node < nodes ? static_cast<int>(node_angle(head, depth, first + node).m) : 0;
    by_angle[node] = numbered ? node : m;
    if (numbered) s.in_tree(m) = node;
  });
  const int all = numbered ? nodes : depth ? head << 4 * (depth - 1) : 1;
  const auto angle = [&](int node) { return Angle{by_angle[node], all}; };
  for_each(s.tile.rows, [&](int64_t row) {
    s.channel(row) = ~0u;
    s.greatest_point(row, 0) = s.greatest_point(row, 1) = 0;
  });
  for_each(room * 32, [&](int64_t i) {
    const int node = static_cast<int>(i / 32), j = static_cast<int>(i % 32);
    s.part<Bin>(s.tile.factors)[i] = turned(angle(node), j % 16, j < 16 ? 16 : 256, j < 16 ? 1.f : 1 / kMatrixScale);
  });
  if (!s.tile.factored)
    for_each(room * 128, [&](int64_t i) {
      const int node = static_cast<int>(i / 128), pair = static_cast<int>(i % 128);
      s.node_twiddles()[s.twiddle_index(node, pair)] = s.factored_twiddle(node, pair);
    });
  if (numbered)
    for_each((s.tile.head - 1) * 128, [&](int64_t i) {
      const int p = 1 + static_cast<int>(i / 128), pair = static_cast<int>(i % 128);
      const auto root = [&](int column) { return scaled_root(p * column, 256 * s.tile.head, 1.f); };
      s.head_twiddle(p, pair) = {root(2 * pair), root(2 * pair + 1)};
    });
  const bool few = s.tile.few >= 0;
  const int matrices = few ? 1 : s.tile.level ? s.tile.head * s.tile.parts * s.tile.parts : 0;
  for_each_warp(s, 2 * kFragmentWords * matrices, [&](int task) {
    const int word = task % kFragmentWords, i = task / kFragmentWords / 2;
    const bool inverse = task / kFragmentWords % 2;
    if (few) {
      const auto of = [&](int r, int c) { return entry_of_few(s.tile, angle, inverse, r, c); };
      make_word(s.at, word, of, s.level_matrices(0) + (inverse ? 32 : 0));
      return;
    }
    const auto of = [&](int r, int c) {
      return level_entry(angle, nodes, numbered ? s.tile.head : 0, s.tile.parts, i, kNodeStride, inverse, r, c);
    };
    make_matrix(s.at, word, of, s.level_matrices(i) + (inverse ? 128 : 0), true);
  });
}

// The tables that are the same for all nodes.
MONARCH_DEVICE_CALL void make_common_tables() {
  const StagedRows s({0});
  for_each(128, [&](int64_t i) {
    const int lane = static_cast<int>(i % 32), row = lane / 4 + 8 * static_cast<int>(i / 32 & 1);
    const int column = 8 * static_cast<int>(i / 64) + 2 * (lane % 4);
    const auto root = [&](int c) { return scaled_root(row * c, 256, 1 / kMatrixScale); };
    s.inner_twiddles()[i] = {root(column), root(column + 1)};
  });
  for_each_warp(s, kFragmentWords, [&](int i) {
    make_matrix(s.at, i, [&](int r, int c) { return scaled_root(r * c, 16, kMatrixScale / 4); }, s.dft_matrix(), false);
    Fragment* const f = s.dft_matrix() + s.at.lane;
    f[64].w[i] = negated(f[32].w[i]);
    const int right = i == 1 ? 2 : i == 2 ? 1 : i;
    for (int part = 0; part < 96; part += 32) f[96 + part].w[right] = f[part].w[i];
  });
}

}  // namespace monarch
