#pragma once

#include "tensor.h"

namespace monarch {

// out (M, G, q) = x (M, G, p) times weight (G, q, p) transposed, block by block, plus bias (G*q,) if given.
// One strided batched product of the BLAS; neither operand nor result needs to be contiguous.
void block_products(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& out);

// Whether x (..., L, F) lies in memory as (..., F, L), as the rows of a long convolution do. Results of products with a
// weight keep the layout of x.
bool channel_major(const Tensor& x);
// Uninitialised (..., features) for the result of an op on x, in its layout.
Tensor empty_result(const Tensor& x, int64_t features, ScalarType dtype);
inline Tensor empty_result(const Tensor& x, int64_t features) { return empty_result(x, features, x.scalar_type()); }

// x (..., F) as kernels see it: the matrices of a batch, or one matrix of all positions.
struct Matrices {
  Tensor owner;  // x, or the copy that its strides made necessary
  Matrix view;
  int64_t positions;  // of one matrix
};
Matrices matrices_of(const Tensor& x, bool as_channel_major);

// Whether the products of `kernel` are to be used: they need the compute type in memory. The matrix library is faster
// where the positions do not fill half the vectors of every thread, as it shares features out, and where the vectors
// are the compiler's, without an instruction set of the kernel's own.
inline bool use_own_products(const MlpKernels& kernel, Scalar io, int64_t positions, bool forced) {
  if (!kernel.whole || io != compute_scalar(io)) return false;
  const int64_t threads = torch::stable::get_num_threads();
  return forced || (kernel.info.isa != Isa::generic && 2 * positions > kernel.together * threads);
}

// Whether products of 16-bit tensors are those of float32 copies, but for a forced kernel: without AVX-512 PyTorch
// multiplies such numbers one at a time, which takes ten times as long, or hundreds where the weight is not transposed.
inline bool products_widen(const Tensor& x, Scalar io, int64_t variant) {
  return variant < 0 && io != compute_scalar(io) && device_of(x).isa == Isa::avx2;
}
// Float32 copies, of x in its layout.
Tensor widened(const Tensor& x);
OptTensor widened(const OptTensor& x);
template <class MaybeTensor>
MaybeTensor widened_weight(const MaybeTensor& t) {
  return contiguous_as(t, ScalarType::Float);
}
// y, with the values of a result.
inline Tensor filled(Tensor y, const Tensor& result) { return torch::stable::copy_(y, result); }

}  // namespace monarch
