// The element-wise halves of the M2-BERT MLP on CUDA: gated GELU, and LayerNorm of a sum (one block per row).
#pragma once

#include "launch.cuh"

namespace monarch {

template <class Io>
MONARCH_KERNEL void glu_kernel(GluArgs g) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= g.rows * g.inner) return;
  const Io* a = static_cast<const Io*>(g.a) + i / g.inner * 2 * g.inner + i % g.inner;
  const float gate = load(a), value = load(a + g.inner);
  store(static_cast<Io*>(g.h) + i, gate * 0.5f * (1.f + erff(gate * 0.70710678118654752440f)) * value);
}

template <class Io>
MONARCH_KERNEL void residual_norm_kernel(ResidualNormArgs a) {
  float* const scratch = shared_memory<float>();
  const int64_t m = blockIdx.x, F = a.features;
  const Io* y = static_cast<const Io*>(a.y) + m * F;
  const Io* const bias = static_cast<const Io*>(a.bias);
  const Io* const added = static_cast<const Io*>(a.residual.data);
  const Io* const residual = added ? added + m * a.residual.position_stride : nullptr;
  const auto z = [&](int64_t j) {
    const float biased = bias ? load(y + j) + load(bias + j) : load(y + j);
    return residual ? biased + load(residual + j) : biased;
  };
  Io* const out = static_cast<Io*>(a.out.data) + m * a.out.position_stride;
  if (!a.norm_weight) {
    for (int64_t j = threadIdx.x; j < F; j += blockDim.x) store(out + j, z(j));
    return;
  }
  float sum = 0;
  for (int64_t j = threadIdx.x; j < F; j += blockDim.x) sum += z(j);
  const float mean = block_sum(sum, scratch) / F;
  float squares = 0;
  for (int64_t j = threadIdx.x; j < F; j += blockDim.x) squares += (z(j) - mean) * (z(j) - mean);
  const float scale = 1.f / sqrtf(block_sum(squares, scratch) / F + static_cast<float>(a.eps));
  const float* weight = static_cast<const float*>(a.norm_weight);
  const float* norm_bias = static_cast<const float*>(a.norm_bias);
  for (int64_t j = threadIdx.x; j < F; j += blockDim.x)
    store(out + j, (z(j) - mean) * scale * weight[j] + norm_bias[j]);
}

inline const char* run_glu(const GluArgs& g, const Exec& e) {
  if (g.rows * g.inner == 0) return nullptr;
  return with_io(g.io, [&](auto io) {
    return launch(&glu_kernel<typename decltype(io)::type>, blocks_for(g.rows * g.inner), 0, e, g);
  });
}
inline const char* run_residual_norm(const ResidualNormArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    return launch(&residual_norm_kernel<typename decltype(io)::type>, a.rows, kThreads * sizeof(float), e, a);
  });
}

template <class T>
constexpr MlpKernels mlp_kernels(VariantInfo info) {
  return {info, &run_glu, &run_residual_norm};
}

}  // namespace monarch
