// Block-diagonal and Monarch matrix products: by a kernel where there is one, else every block is a slice of a strided
// batched product of the BLAS, read and written in place, without copies.
#include "blockdiag.h"

#include "check.h"
#include "ops.h"

namespace monarch {
namespace {

using torch::stable::reshape;
using torch::stable::transpose;
using torch::stable::view;

Shape with_last(const Tensor& x, int64_t last) {
  Shape shape(x.sizes().begin(), x.sizes().end());
  shape.back() = last;
  return shape;
}

}  // namespace

void block_products(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& out) {
  const Tensor a = transpose(x, 0, 1), w = transpose(weight, 1, 2), y = transpose(out, 0, 1);
  if (bias) {
    baddbmm_out(reshape(*bias, Shape{weight.size(0), 1, weight.size(1)}), a, w, y);
  } else {
    aten("aten::bmm", "out", a, w, y);
  }
}

bool channel_major(const Tensor& x) {
  const int64_t d = x.dim();
  return d >= 3 && x.size(d - 2) > 1 && x.size(d - 1) > 1 && x.stride(d - 2) == 1 && x.stride(d - 1) >= x.size(d - 2);
}

Tensor empty_result(const Tensor& x, int64_t features, ScalarType dtype) {
  Shape shape = with_last(x, features);
  const size_t d = shape.size();
  if (!channel_major(x)) return empty(x, shape, dtype);
  std::swap(shape[d - 2], shape[d - 1]);
  return transpose(empty(x, shape, dtype), -2, -1);
}

Tensor widened(const Tensor& x) { return filled(empty_result(x, x.size(x.dim() - 1), ScalarType::Float), x); }
OptTensor widened(const OptTensor& x) {
  OptTensor copy;
  if (x) copy = widened(*x);
  return copy;
}

Matrices matrices_of(const Tensor& x, bool as_channel_major) {
  const int64_t d = x.dim(), F = x.size(d - 1);
  if (as_channel_major) {
    const int64_t L = x.size(d - 2), B = x.numel() / (F * L);
    const Tensor t = innermost_contiguous(reshape(transpose(x, -2, -1), Shape{B, F, L}));
    return {t, {t.data_ptr(), t.stride(0), 1, t.stride(1)}, L};
  }
  int64_t M = 1;
  for (int64_t i = 0; i + 1 < d; ++i) M *= x.size(i);
  const Tensor t = innermost_contiguous(reshape(x, Shape{M, F}));
  return {t, {t.data_ptr(), 0, t.stride(0), 1}, M};
}

namespace {

// With the features of a position far apart: one product per block, batched over the rest.
void channel_major_products(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& y) {
  const int64_t G = weight.size(0), q = weight.size(1), p = weight.size(2);
  const int64_t L = x.size(x.dim() - 2), B = x.numel() / (G * p * L);
  Tensor in = reshape(transpose(x, -2, -1), Shape{B, G * p, L}), out = view(transpose(y, -2, -1), Shape{B, G * q, L});
  Tensor w = weight;
  for (int64_t g = 0; g < G; ++g) {
    const Tensor block = aten("aten::expand", "", torch::stable::narrow(w, 0, g, 1), Shape{B, q, p}, false);
    const Tensor from = torch::stable::narrow(in, 1, g * p, p), to = torch::stable::narrow(out, 1, g * q, q);
    if (bias) {
      Tensor b = reshape(*bias, Shape{1, G * q, 1});
      baddbmm_out(torch::stable::narrow(b, 1, g * q, q), block, from, to);
    } else {
      aten("aten::bmm", "out", block, from, to);
    }
  }
}

}  // namespace

Tensor blockdiag_matmul(Tensor x, Tensor weight, OptTensor bias, int64_t variant) {
  const char* op = "blockdiag_matmul";
  const Scalar io = check_floating(op, "x", x);
  check_shape(op, "weight", weight, {{"G"}, {"q"}, {"p"}});
  const int64_t G = weight.size(0), q = weight.size(1), p = weight.size(2);
  if (x.dim() < 1 || x.size(x.dim() - 1) != G * p)
    refuse(op, "x", "have shape (..., G*p=" + std::to_string(G * p) + ")", shape_text(x));
  check_shape(op, "bias", bias, {{"G*q", G * q}});
  for (const auto& [name, t] : {std::pair("weight", OptTensor(weight)), std::pair("bias", bias)}) {
    check_same_dtype(op, name, t, "x", x);
    check_same_device(op, name, t, "x", x);
  }
  const Tensor y = empty_result(x, G * q);
  if (y.numel() == 0) return y;
  if (products_widen(x, io, variant))
    return filled(y, blockdiag_matmul(widened(x), widened_weight(weight), widened_weight(bias), variant));
  const int64_t M = y.numel() / (G * q);
  const bool by_channel = channel_major(x);
  const auto& kernel = kernel_for<MlpKernels>(x, io, variant);
  if (p > 0 && use_own_products(kernel, io, M, variant >= 0)) {
    const Matrices in = matrices_of(x, by_channel), out = matrices_of(y, by_channel);
    const Tensor w = packed(weight);
    const OptTensor b = packed(bias);
    const BlockMatmulArgs args{in.positions, in.view, out.view, {G, q, p, w.data_ptr()}, data_of(b)};
    run(kernel.block_matmul, args, M, kernel.together, x);
  } else if (by_channel) {
    channel_major_products(x, weight, bias, y);
  } else {
    block_products(reshape(x, Shape{M, G, p}), weight, bias, view(y, Shape{M, G, q}));
  }
  return y;
}

namespace {

// x (M, k, p). Two batched products; the permutations are copies.
void monarch_products(const Tensor& x, const Tensor& w1, const Tensor& w2, const OptTensor& bias, const Tensor& y) {
  const int64_t k = w1.size(0), q = w1.size(1), l = w2.size(0), s = w2.size(1), r = w2.size(2), M = x.size(0);
  const Tensor middle = empty(x, {M, k * q});
  block_products(x, w1, std::nullopt, view(middle, Shape{M, k, q}));
  const Tensor permuted = packed(transpose(view(middle, Shape{M, r, l}), 1, 2));
  OptTensor bias_by_block;
  if (bias) bias_by_block = reshape(transpose(reshape(*bias, Shape{s, l}), 0, 1), Shape{l * s});
  const Tensor blocks = empty(x, {M, l, s});
  block_products(permuted, w2, bias_by_block, blocks);
  Tensor rows = view(y, Shape{M, s, l});
  torch::stable::copy_(rows, transpose(blocks, 1, 2));
}

}  // namespace

Tensor monarch_matmul(Tensor x, Tensor w1, Tensor w2, OptTensor bias, int64_t variant) {
  const char* op = "monarch_matmul";
  const Scalar io = check_floating(op, "x", x);
  check_shape(op, "w1", w1, {{"k"}, {"q"}, {"p"}});
  const int64_t k = w1.size(0), q = w1.size(1), p = w1.size(2);
  check_shape(op, "w2", w2, {{"l"}, {"s"}, {"r"}});
  const int64_t l = w2.size(0), s = w2.size(1), r = w2.size(2);
  if (l * r != k * q) refuse(op, "w2", "have l*r = k*q = " + std::to_string(k * q), shape_text(w2));
  if (x.dim() < 1 || x.size(x.dim() - 1) != k * p)
    refuse(op, "x", "have shape (..., k*p=" + std::to_string(k * p) + ")", shape_text(x));
  check_shape(op, "bias", bias, {{"l*s", l * s}});
  for (const auto& [name, t] :
       {std::pair("w1", OptTensor(w1)), std::pair("w2", OptTensor(w2)), std::pair("bias", bias)}) {
    check_same_dtype(op, name, t, "x", x);
    check_same_device(op, name, t, "x", x);
  }
  const Tensor y = empty(x, with_last(x, l * s));
  if (y.numel() == 0) return y;
  if (products_widen(x, io, variant))
    return filled(y, monarch_matmul(widened(x), widened_weight(w1), widened_weight(w2), widened_weight(bias), variant));
  const auto& kernel = kernel_for<MlpKernels>(x, io, variant);
  const int64_t M = y.numel() / (l * s);
  if (k * p > 0 && use_own_products(kernel, io, M, variant >= 0)) {
    const Matrices in = matrices_of(x, false), out = matrices_of(y, false);
    const Tensor first = packed(w1), second = packed(w2);
    const OptTensor b = packed(bias);
    const MonarchArgs args{in.positions, in.view, out.view, {k, q, p, first.data_ptr()}, {l, s, r, second.data_ptr()},
                           data_of(b)};
    run(kernel.monarch, args, M, kernel.together, x);
  } else {
    monarch_products(reshape(x, Shape{M, k, p}), w1, w2, bias, y);
  }
  return y;
}

}  // namespace monarch
