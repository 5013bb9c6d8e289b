// The M2-BERT MLP: block-diagonal GLU, block-diagonal output, residual and LayerNorm. One kernel where there is one,
// else tiles of positions whose hidden features stay in cache go through a matrix library.
#include "blockdiag.h"
#include "check.h"
#include "ops.h"

namespace monarch {
namespace {

using torch::stable::narrow;
using torch::stable::select;
using torch::stable::transpose;
using torch::stable::view;

// The hidden features of a tile of positions take about this many bytes.
constexpr int64_t kTileBytes = int64_t(6) << 20;

// Positions [m, m + n) of a matrix of the batch as (n, blocks, features of a block), in place.
Tensor tile_of(const Matrices& x, bool as_channel_major, int64_t batch, int64_t m, int64_t n, int64_t blocks) {
  Tensor t = x.owner;
  if (!as_channel_major) return view(narrow(t, 0, m, n), Shape{n, blocks, t.size(1) / blocks});
  t = select(t, 0, batch);
  return transpose(transpose(view(narrow(t, 1, m, n), Shape{blocks, t.size(0) / blocks, n}), 0, 2), 1, 2);
}

// The matrix from position m of `batch` on.
Matrix from_position(const Matrix& x, Scalar io, int64_t batch, int64_t m) {
  Matrix part = x;
  if (x.data)
    part.data = static_cast<char*>(x.data) + (batch * x.batch_stride + m * x.position_stride) * scalar_bytes(io);
  return part;
}

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
  if (products_widen(x, io, variant)) {
    return filled(y, blockdiag_glu_mlp(widened(x), widened_weight(w_in), widened_weight(w_out), widened_weight(b_out),
                                       widened(residual), norm_weight, norm_bias, eps, variant));
  }
  const auto& kernel = kernel_for<MlpKernels>(x, io, variant);
  const int64_t rows = y.numel() / features;
  const ScalarType compute = dtype_of(compute_scalar(io));
  OptTensor weight, bias;
  if (norm_weight) {
    weight = contiguous_as(*norm_weight, compute);
    bias = norm_bias ? contiguous_as(*norm_bias, compute) : torch::stable::new_zeros(*weight, Shape{features});
  }
  const bool by_channel = channel_major(x), own = G * p > 0 && use_own_products(kernel, io, rows, variant >= 0);
  // The kernels of the CPU take and give either layout, those of CUDA rows of features.
  const bool in_place = !by_channel || x.is_cpu(), as_channel_major = by_channel && in_place;
  const Tensor result = in_place ? y : empty(x, shape);
  const Matrices in = matrices_of(x, as_channel_major), out = matrices_of(result, as_channel_major);
  std::optional<Matrices> added;
  if (residual) added = matrices_of(*residual, as_channel_major);
  const Matrix rest = added ? added->view : Matrix{};
  const OptTensor b = packed(b_out);
  if (own) {
    const Tensor w1 = packed(w_in), w2 = packed(w_out);
    const GluMlpArgs args{.positions = in.positions,
                          .x = in.view,
                          .residual = rest,
                          .y = out.view,
                          .in = {G, q, p, w1.data_ptr()},
                          .out = {G2, q2, p2, w2.data_ptr()},
                          .bias = data_of(b),
                          .norm_weight = data_of(weight),
                          .norm_bias = data_of(bias),
                          .eps = eps};
    run(kernel.whole, args, rows, kernel.together, x);
    return y;
  }
  const int64_t fit = kTileBytes / (std::max<int64_t>(hidden, 1) * scalar_bytes(io));
  const int64_t tile = std::clamp<int64_t>(fit, 1, in.positions);
  Tensor a = empty(x, {tile, G, q}), h = empty(x, {tile, G2, p2}), z = empty(x, {tile, G2, q2});
  for (int64_t at = 0, n; at < rows; at += n) {
    const int64_t batch = at / in.positions, m = at % in.positions;
    n = std::min(tile, in.positions - m);
    const auto first = [&](Tensor& t) { return narrow(t, 0, 0, n); };
    block_products(tile_of(in, as_channel_major, batch, m, n, G), w_in, std::nullopt, first(a));
    run(kernel.glu, GluArgs{n, inner, io, a.data_ptr(), h.data_ptr()}, n, 16, x);
    block_products(first(h), w_out, std::nullopt, first(z));
    const ResidualNormArgs args{.rows = n,
                                .features = features,
                                .io = io,
                                .y = z.data_ptr(),
                                .bias = data_of(b),
                                .residual = from_position(rest, io, batch, m),
                                .out = from_position(out.view, io, batch, m),
                                .norm_weight = data_of(weight),
                                .norm_bias = data_of(bias),
                                .eps = eps};
    run(kernel.residual_norm, args, n, 16, x);
  }
  if (!in_place) {
    Tensor to = y;
    torch::stable::copy_(to, result);
  }
  return y;
}

}  // namespace monarch
