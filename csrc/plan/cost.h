// The written cost model: compulsory memory traffic and arithmetic of an operation. The planner chooses by it
// and the roofline columns of bench/ divide by it.
#pragma once

#include <cmath>
#include <cstdint>

namespace monarch {

struct Cost {
  double bytes = 0;  // every operand read once, every result written once
  double flops = 0;
};

// `spectrum_bytes` is the filter as it lies in memory; `points` the complex transform length.
inline Cost fft_conv_cost(int64_t batch, int64_t channels, int64_t seqlen, int64_t io_bytes, int gates, int64_t points,
                          int64_t spectrum_bytes) {
  const double rows = double(batch) * channels, n = double(points);
  // forward and inverse complex transform at 4 n log2 n + twiddles, the product, the gates
  const double flops = rows * (2 * (4 * n * std::log2(n) + 6 * n) + 6 * n + gates * double(seqlen));
  return {rows * seqlen * io_bytes * (2 + gates) + double(channels) * spectrum_bytes, flops};
}

}  // namespace monarch
