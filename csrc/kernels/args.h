// What crosses the border between the torch-facing ops and the kernels: one plain struct per operation.
// Field names are the names of the schema arguments (csrc/schema.cpp). B batch, H channels, L length.
#pragma once

#include <cstdint>

#include "../plan/plan.h"

namespace monarch {

// A (B, H, L) tensor whose innermost stride is 1. A null pointer means: argument not given.
struct Rows {
  void* data = nullptr;
  int64_t batch_stride = 0, channel_stride = 0;
};

// Two-sided filter taps of H channels, in the compute type, contiguous.
struct Taps {
  void* k = nullptr;  // (H, num_k): lags 0, 1, ...
  int64_t num_k = 0;
  void* k_rev = nullptr;  // (H, num_rev): lags -1, -2, ...
  int64_t num_rev = 0;
  void* skip = nullptr;  // (H,)
  bool circular = false;
};

// Taps -> spectra (H, spectrum scalars), or the adjoint of that map.
struct FftFilterArgs {
  int64_t channels, seqlen;
  Taps taps;
  void* spectrum;
  TreeShape tree;
  Workspace workspace;  // CUDA, here and below: how much scratch memory there is
};

struct FftConvArgs {
  int64_t batch, channels, seqlen;
  Scalar io;
  Rows u, pre_gate, post_gate, y;
  const int64_t* lengths = nullptr;  // (B,)
  const void* spectrum = nullptr;    // (H, spectrum scalars), or null: use the taps
  Taps taps;
  TreeShape tree;
  Workspace workspace;
  int64_t channel_tile = 1;  // CPU: channels whose rows are worked on together, batch row after batch row
};

// Gradients of sum(grad * fft_conv(u, ...)); a null output is not wanted. The filter gradient goes to
// spectrum_grad, (H, batch_slices, spectrum scalars), or with one slice straight to the taps. CUDA: rows that do
// not fit into a block have one slice.
struct FftConvGradArgs {
  FftConvArgs forward;  // y unused
  Rows grad;
  Rows grad_u, grad_pre_gate, grad_post_gate;
  void* spectrum_grad = nullptr;
  int64_t batch_slices = 1;
  Taps grad_taps;
};

// y = x2 * conv(x1 * v; spectrum) + conv(u; residual_spectrum), (x1, x2, v) the thirds of the short convolution of a.
struct MixerArgs {
  int64_t batch, channels, seqlen;
  Scalar io;
  Rows a;                    // (B, 3H, L)
  Rows u, y;                 // (B, H, L)
  const void* short_weight;  // (3H, short_taps), compute type
  const void* short_bias;    // (3H,) or null
  int64_t short_taps;
  const int64_t* lengths = nullptr;
  const void* spectrum;
  const void* residual_spectrum = nullptr;
  TreeShape tree;
  Workspace workspace;
  int64_t channel_tile = 1;
};

// y[b,h,t] = act(bias[h] + sum_j weight[h,j] x[b,h,t - pad_left + j]), x zero outside [0, L).
struct DepthwiseArgs {
  int64_t batch, channels, seqlen, out_len, taps, pad_left;
  Scalar io;
  bool channels_last;  // (B, L, H) instead of (B, H, L); then Rows::channel_stride is the stride of L
  bool silu;
  Rows x, y;
  const void* weight;  // (H, taps), compute type
  const void* bias;    // (H,) or null
};

// weight_grad[h,j] = sum_{b,t} grad[b,h,t] x[b,h,t - pad_left + j]
struct DepthwiseWeightGradArgs {
  int64_t batch, channels, seqlen, out_len, taps, pad_left;
  Scalar io;
  bool channels_last;
  Rows x, grad;
  void* weight_grad;   // (H, taps), compute type
  int64_t slices = 1;  // CUDA, channels last: partial sums over positions
};

// h[m, j] = gelu(a[m, j]) * a[m, inner + j]
struct GluArgs {
  int64_t rows, inner;
  Scalar io;
  const void* a;  // (rows, 2 * inner)
  void* h;        // (rows, inner)
};

// Matrices (batch, positions, features); position_stride or feature_stride is 1. In products everything is in the
// compute type.
struct Matrix {
  void* data = nullptr;
  int64_t batch_stride = 0, position_stride = 0, feature_stride = 0;
};

// z[m] = y[m] + bias + residual[m]; out[m] = LayerNorm(z[m]) * norm_weight + norm_bias, or z[m] without a norm_weight.
// In place when out.data == y. On CUDA every feature_stride is 1.
struct ResidualNormArgs {
  int64_t rows, features;
  Scalar io;
  const void* y;            // (rows, features)
  const void* bias;         // (features,) or null
  Matrix residual, out;     // one matrix of `rows` positions each; residual.data may be null
  const void* norm_weight;  // (features,) compute type, or null
  const void* norm_bias;    // null together with norm_weight
  double eps;
};

// Block-diagonal weight (blocks, q, p): p features in, q out, of every block.
struct BlockWeight {
  int64_t blocks, q, p;
  const void* data;
};

// y = weight x + bias
struct BlockMatmulArgs {
  int64_t positions;  // of one matrix of the batch
  Matrix x, y;
  BlockWeight weight;
  const void* bias;  // or null
};

// y = second first x + bias: two block-diagonal factors, the fly permutation between and after them. With l blocks of
// r features in the second, result i of the first is its feature i / l of block i % l, and result i of its block j is
// feature i * l + j of y.
struct MonarchArgs {
  int64_t positions;
  Matrix x, y;
  BlockWeight first, second;
  const void* bias;  // or null
};

// z = w_out glu(w_in x) + bias + residual; y = LayerNorm(z) * norm_weight + norm_bias, or z without a norm_weight.
struct GluMlpArgs {
  int64_t positions;
  Matrix x, residual, y;  // residual.data may be null
  BlockWeight in, out;
  const void* bias;         // or null
  const void* norm_weight;  // or null
  const void* norm_bias;    // null together with norm_weight
  double eps;
};

}  // namespace monarch
