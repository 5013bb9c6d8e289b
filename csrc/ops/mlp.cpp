// The M2-BERT MLP: block-diagonal GLU, block-diagonal output, residual and LayerNorm. One kernel where there is one,
// else tiles of rows whose hidden features stay in cache go through a matrix library.
#include "blockdiag.h"
#include "check.h"
#include "ops.h"

namespace monarch {
namespace {

using torch::stable::narrow;
using torch::stable::view;

// Rows per tile: the hidden features of a tile take about this many bytes.
constexpr int64_t kTileBytes = int64_t(4) << 20;

}  // namespace

Tensor blockdiag_glu_mlp(Tensor x, Tensor w_in, Tensor w_out, OptTensor b_out, OptTensor residual,
                         OptTensor norm_weight, OptTensor norm_bias, double eps, int64_t variant) {
  const char* op = "blockdiag_glu_mlp";
  const Scalar io = check_floating(op, "x", x);
  check_shape(op, "w_in", w_in, {{"G"}, {"q"}, {"p"}});
  const int64_t G = w_in.size(0), q = w_in.size(1), p = w_in.size(2), hidden = G * q, inner = hidden / 2;
  if (hidden % 2) refuse(op, "w_in", "have an even number G*q of hidden features", shape_text(w_in));
  if (x.dim() < 1 || x.size(x.dim() - 1) != G * p)
    refuse(op, "x", "have shape (..., G*p=" + std::to_string(G * p) + ")", shape_text(x));
  check_shape(op, "w_out", w_out, {{"G'"}, {"q'"}, {"p'"}});
  const int64_t G2 = w_out.size(0), q2 = w_out.size(1), p2 = w_out.size(2), features = G2 * q2;
  if (G2 * p2 != inner)
    refuse(op, "w_out", "take G'*p' = G*q/2 = " + std::to_string(inner) + " features", shape_text(w_out));
  check_shape(op, "b_out", b_out, {{"G'*q'", features}});
  check_shape(op, "norm_weight", norm_weight, {{"G'*q'", features}});
  check_shape(op, "norm_bias", norm_bias, {{"G'*q'", features}});
  if (norm_bias && !norm_weight) refuse(op, "norm_weight", "be given with 'norm_bias'", "None");
  check_floating(op, "norm_weight", norm_weight);
  check_floating(op, "norm_bias", norm_bias);
  for (const auto& [name, t] : {std::pair("w_in", OptTensor(w_in)), std::pair("w_out", OptTensor(w_out)),
                                std::pair("b_out", b_out), std::pair("residual", residual)}) {
    check_same_dtype(op, name, t, "x", x);
    check_same_device(op, name, t, "x", x);
  }
  check_same_device(op, "norm_weight", norm_weight, "x", x);
  check_same_device(op, "norm_bias", norm_bias, "x", x);
  Shape shape(x.sizes().begin(), x.sizes().end());
  shape.back() = features;
  if (residual) {
    const Shape got(residual->sizes().begin(), residual->sizes().end());
    if (got != shape) refuse(op, "residual", "have the shape of the result, (..., G'*q')", shape_text(*residual));
  }

  const Tensor y = empty_result(x, features);
  if (y.numel() == 0) return y;
  const auto& kernel = kernel_for<MlpKernels>(x, io, variant);
  const int64_t rows = y.numel() / features;
  const ScalarType compute = dtype_of(compute_scalar(io));
  OptTensor weight, bias;
  if (norm_weight) {
    weight = contiguous_as(*norm_weight, compute);
    bias = norm_bias ? contiguous_as(*norm_bias, compute) : torch::stable::new_zeros(*weight, Shape{features});
  }
  const bool by_channel = channel_major(x);
  if (G * p > 0 && use_own_products(kernel, io, rows, variant >= 0)) {
    const Matrices in = matrices_of(x, by_channel), out = matrices_of(y, by_channel);
    std::optional<Matrices> rest;
    if (residual) rest = matrices_of(*residual, by_channel);
    const Tensor w1 = torch::stable::contiguous(w_in), w2 = torch::stable::contiguous(w_out);
    const OptTensor b = b_out ? OptTensor(torch::stable::contiguous(*b_out)) : b_out;
    const GluMlpArgs args{.positions = in.positions,
                          .x = in.view,
                          .residual = rest ? rest->view : Matrix{},
                          .y = out.view,
                          .in = {G, q, p, w1.data_ptr()},
                          .out = {G2, q2, p2, w2.data_ptr()},
                          .bias = data_of(b),
                          .norm_weight = data_of(weight),
                          .norm_bias = data_of(bias),
                          .eps = eps};
    run(kernel.whole, args, rows, kFewPositions, x);
    return y;
  }
  const int64_t tile = std::clamp<int64_t>(kTileBytes / (std::max<int64_t>(hidden, 1) * scalar_bytes(io)), 1, rows);
  const Tensor input = torch::stable::reshape(x, Shape{rows, G, p});
  const Tensor result = by_channel ? empty(x, shape) : y;
  Tensor output = view(result, Shape{rows, G2, q2});
  OptTensor rest;
  if (residual) rest = torch::stable::contiguous(torch::stable::reshape(*residual, Shape{rows, G2, q2}));
  const Tensor a = empty(x, {tile, G, q}), h = empty(x, {tile, G2, p2});
  for (int64_t m = 0; m < rows; m += tile) {
    const int64_t n = std::min(tile, rows - m);
    const auto part = [&](const Tensor& t, int64_t begin) {
      Tensor s = t;
      return narrow(s, 0, begin, n);
    };
    block_products(part(input, m), w_in, std::nullopt, part(a, 0));
    run(kernel.glu, GluArgs{n, inner, io, a.data_ptr(), h.data_ptr()}, n, 16, x);
    Tensor out = part(output, m);
    block_products(part(h, 0), w_out, b_out, out);
    if (!weight && !rest) continue;
    const ResidualNormArgs args{.rows = n,
                                .features = features,
                                .io = io,
                                .y = out.data_ptr(),
                                .residual = rest ? part(*rest, m).data_ptr() : nullptr,
                                .out = out.data_ptr(),
                                .norm_weight = data_of(weight),
                                .norm_bias = data_of(bias),
                                .eps = eps};
    run(kernel.residual_norm, args, n, 16, x);
  }
  if (by_channel) {
    Tensor to = y;
    torch::stable::copy_(to, result);
  }
  return y;
}

}  // namespace monarch
