// What csrc/kernels/cuda/ptx.cuh offers, a function for each of its instructions, and roots.cuh, for one warp: the
// emulator and a GPU must do the same with the same words. A lane is given eight words and makes eight, word i of lane
// l at 32 i + l.
#pragma once

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/roots.cuh"

namespace monarch::conformance {

struct Words {
  const uint32_t* in;
  uint32_t* out;
  int lane = own_thread() % 32;

  MONARCH_DEVICE uint32_t operator[](int i) const { return in[32 * i + lane]; }
  template <class... Word>
  MONARCH_DEVICE void put(Word... words) const {
    const uint32_t all[8] = {words...};
    for (int i = 0; i < 8; ++i) out[32 * i + lane] = all[i];
  }
};

// Words 0 to 3 times words 4 and 5, added to words 6, 7, 7 and 6.
MONARCH_DEVICE void product(const Words& w) {
  float d[4] = {float_of(w[6]), float_of(w[7]), float_of(w[7]), float_of(w[6])};
  mma(d, {{w[0], w[1], w[2], w[3]}}, w[4], w[5]);
  w.put(bits_of(d[0]), bits_of(d[1]), bits_of(d[2]), bits_of(d[3]));
}

// Words 0 to 3 are row `lane` of shared memory; a lane names row word 4.
MONARCH_DEVICE void matrices(const Words& w) {
  Quad* const rows = shared_memory<Quad>();
  rows[w.lane] = {{w[0], w[1], w[2], w[3]}};
  __syncwarp();
  uint32_t b[4];
  load_matrices(rows + w[4] % 32, b);
  w.put(b[0], b[1], b[2], b[3]);
}

// The greatest of all words 0, then halves: words 0 and 1 as floats, words 2 and 3 as pairs.
MONARCH_DEVICE void words(const Words& w) {
  const uint32_t greatest = warp_max(w[0]);
  const FloatPair pair = unpack(w[2]);
  w.put(greatest, pack(float_of(w[0]), float_of(w[1])), bits_of(pair.low), bits_of(pair.high), lower_halves(w[2], w[3]),
        upper_halves(w[2], w[3]), negated(w[2]), static_cast<uint32_t>(own_thread()));
}

// The halves of words 0 to 3 times those of word 4.
MONARCH_DEVICE void products(const Words& w) {
  w.put(times(w[0], w[4]), times(w[1], w[4]), times(w[2], w[4]), times(w[3], w[4]));
}

// exp(2 pi i times word 0 over word 1), of words 2 and 3, and nearly exactly of words 4 and 5, and 6 and 7.
MONARCH_DEVICE void roots(const Words& w) {
  const auto number = [&](int i) { return static_cast<int>(w[i]); };
  const Complex<float> near[2] = {near_root(number(0), number(1)), near_root(number(2), number(3))};
  const Complex<float> rounded[2] = {rounded_root(number(4), number(5)), rounded_root(number(6), number(7))};
  w.put(bits_of(near[0].re), bits_of(near[0].im), bits_of(near[1].re), bits_of(near[1].im), bits_of(rounded[0].re),
        bits_of(rounded[0].im), bits_of(rounded[1].re), bits_of(rounded[1].im));
}

// Words 0 to 3 of the input, lane after lane, of which so many bytes as word 4 says are copied, less than 17.
MONARCH_DEVICE void copies(const Words& w) {
  Quad* const quads = shared_memory<Quad>();
  prefetch(w.in + 4 * w.lane);
  copy_async(quads + w.lane, w.in + 4 * w.lane, static_cast<int>(w[4] % 17));
  wait_for_copies();
  __syncwarp();
  const Quad other = quads[w.lane ^ 1];  // of a lane that has waited too
  w.put(other.w[0], other.w[1], other.w[2], other.w[3]);
}

}  // namespace monarch::conformance
