#pragma once

#include "tensor.h"

namespace monarch {

// out (M, G, q) = x (M, G, p) times weight (G, q, p) transposed, block by block, plus bias (G*q,) if given.
// One strided batched product of the BLAS; neither operand nor result needs to be contiguous.
void block_products(const Tensor& x, const Tensor& weight, const OptTensor& bias, const Tensor& out);

}  // namespace monarch
