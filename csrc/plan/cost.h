// The written cost model: compulsory memory traffic and arithmetic of an operation. The roofline columns of bench/
// divide by it.
#pragma once

#include <cmath>
#include <cstdint>

namespace monarch {

struct Cost {
  double bytes = 0;  // every operand read once, every result written once
  double flops = 0;  // multiplications and additions
};

// Of a long convolution with a prepared filter, with one that is transformed in the call, and of the latter's backward.
struct FftConvCost {
  Cost prepared, from_taps, backward;
};

// `points` is the length of the complex transform; filters have as many taps as rows have points.
inline FftConvCost fft_conv_cost(int64_t batch, int64_t channels, int64_t seqlen, int64_t io_bytes,
                                 int64_t compute_bytes, int gates, int64_t points) {
  const double rows = double(batch) * channels, n = double(points);
  const double transform = 4 * n * std::log2(n) + 6 * n, product = 6 * n, gating = double(gates) * seqlen;
  const double tensor = rows * seqlen * io_bytes, taps = double(channels) * seqlen * compute_bytes;
  const double conv = rows * (2 * transform + product + gating);
  // the input and the gradient there, the input's gradient back; behind a second gate lies the result, made again
  const double result_again = gates > 1 ? transform + product : 0;
  const double gradients = rows * (3 * transform + product + 8 * n + result_again + 3 * gating);
  return {.prepared = {tensor * (2 + gates) + channels * 2 * n * compute_bytes, conv},
          .from_taps = {tensor * (2 + gates) + taps, conv + channels * transform},
          .backward = {tensor * (3 + 2 * gates) + 2 * taps, gradients + channels * 2 * transform}};
}

}  // namespace monarch
