// Block-diagonal and Monarch matrix products. The arithmetic is the BLAS's: every block is a slice of one strided
// batched product, read and written in place, without copies.
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

Tensor blockdiag_matmul(Tensor x, Tensor weight, OptTensor bias) {
  const char* op = "blockdiag_matmul";
  check_floating(op, "x", x);
  check_shape(op, "weight", weight, {{"G"}, {"q"}, {"p"}});
  const int64_t G = weight.size(0), q = weight.size(1), p = weight.size(2);
  if (x.dim() < 1 || x.size(x.dim() - 1) != G * p)
    refuse(op, "x", "have shape (..., G*p=" + std::to_string(G * p) + ")", shape_text(x));
  check_shape(op, "bias", bias, {{"G*q", G * q}});
  for (const auto& [name, t] : {std::pair("weight", OptTensor(weight)), std::pair("bias", bias)}) {
    check_same_dtype(op, name, t, "x", x);
    check_same_device(op, name, t, "x", x);
  }
  const Tensor y = empty(x, with_last(x, G * q));
  if (y.numel() == 0) return y;
  const int64_t M = y.numel() / (G * q);
  block_products(reshape(x, Shape{M, G, p}), weight, bias, view(y, Shape{M, G, q}));
  return y;
}

Tensor monarch_matmul(Tensor x, Tensor w1, Tensor w2, OptTensor bias) {
  const char* op = "monarch_matmul";
  check_floating(op, "x", x);
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
  const int64_t M = y.numel() / (l * s);
  const Tensor middle = empty(x, {M, k * q});
  block_products(reshape(x, Shape{M, k, p}), w1, std::nullopt, view(middle, Shape{M, k, q}));
  // the fly permutation: element i of the first product is input i / l of block i % l of the second, and output
  // j of block i lands at j * l + i
  const Tensor permuted = torch::stable::contiguous(transpose(view(middle, Shape{M, r, l}), 1, 2));
  OptTensor bias_by_block;
  if (bias) bias_by_block = reshape(transpose(reshape(*bias, Shape{s, l}), 0, 1), Shape{l * s});
  const Tensor blocks = empty(x, {M, l, s});
  block_products(permuted, w2, bias_by_block, blocks);
  Tensor rows = view(y, Shape{M, s, l});
  torch::stable::copy_(rows, transpose(blocks, 1, 2));
  return y;
}

}  // namespace monarch
