// Short depthwise convolution on CUDA: one thread per output; one block per channel for the weight gradient.
#pragma once

#include "launch.cuh"

namespace monarch {

template <class Io>
MONARCH_DEVICE Io* element(const Rows& rows, bool channels_last, int64_t b, int64_t h, int64_t t) {
  Io* p = static_cast<Io*>(rows.data) + b * rows.batch_stride;
  return channels_last ? p + t * rows.channel_stride + h : p + h * rows.channel_stride + t;
}

template <class Io>
MONARCH_KERNEL void depthwise_kernel(DepthwiseArgs a) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= a.batch * a.channels * a.out_len) return;
  // neighbouring threads take neighbouring elements of the innermost axis
  const int64_t inner = a.channels_last ? a.channels : a.out_len, outer = a.channels_last ? a.out_len : a.channels;
  const int64_t b = i / (inner * outer), row = i / inner % outer, col = i % inner;
  const int64_t h = a.channels_last ? col : row, t = a.channels_last ? row : col;
  const float* weight = static_cast<const float*>(a.weight) + h * a.taps;
  float v = a.bias ? static_cast<const float*>(a.bias)[h] : 0.f;
  for (int64_t j = 0; j < a.taps; ++j) {
    const int64_t s = t - a.pad_left + j;
    if (s >= 0 && s < a.seqlen) v += weight[j] * load(element<const Io>(a.x, a.channels_last, b, h, s));
  }
  store(element<Io>(a.y, a.channels_last, b, h, t), a.silu ? v / (1.f + expf(-v)) : v);
}

template <class Io>
MONARCH_KERNEL void depthwise_weight_grad_kernel(DepthwiseWeightGradArgs a) {
  float* const scratch = shared_memory<float>();
  const int64_t h = blockIdx.x;
  for (int64_t j = 0; j < a.taps; ++j) {
    float v = 0;
    for (int64_t i = threadIdx.x; i < a.batch * a.out_len; i += blockDim.x) {
      const int64_t b = i / a.out_len, t = i % a.out_len, s = t - a.pad_left + j;
      if (s >= 0 && s < a.seqlen)
        v += load(element<const Io>(a.grad, a.channels_last, b, h, t)) *
             load(element<const Io>(a.x, a.channels_last, b, h, s));
    }
    const float total = block_sum(v, scratch);
    if (threadIdx.x == 0) static_cast<float*>(a.weight_grad)[h * a.taps + j] = total;
  }
}

inline const char* run_depthwise(const DepthwiseArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    return launch(&depthwise_kernel<typename decltype(io)::type>, blocks_for(a.batch * a.channels * a.out_len), 0, e,
                  a);
  });
}
inline const char* run_depthwise_weight_grad(const DepthwiseWeightGradArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    return launch(&depthwise_weight_grad_kernel<typename decltype(io)::type>, a.channels, kThreads * sizeof(float), e,
                  a);
  });
}

template <class T>
constexpr DepthwiseKernels depthwise_conv1d_kernels(VariantInfo info) {
  return {info, &run_depthwise, &run_depthwise_weight_grad};
}

}  // namespace monarch
