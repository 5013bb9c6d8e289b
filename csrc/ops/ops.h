// The functions behind the schemas of schema.cpp, one per op for every device.
#pragma once

#include <tuple>

#include "tensor.h"

namespace monarch {

Tensor fft_filter(Tensor k, OptTensor k_rev, OptTensor skip, int64_t seqlen, bool circular, ScalarType dtype,
                  bool precise, int64_t variant);
std::tuple<Tensor, Tensor, Tensor> fft_filter_backward(Tensor grad, int64_t num_k, int64_t num_rev, bool with_skip,
                                                       int64_t seqlen, bool circular, ScalarType dtype, bool precise,
                                                       int64_t variant);
Tensor fft_conv(Tensor u, Tensor k, OptTensor k_rev, OptTensor skip, OptTensor pre_gate, OptTensor post_gate,
                OptTensor lengths, bool circular, bool precise, int64_t variant);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fft_conv_backward(
    Tensor grad, Tensor u, Tensor k, OptTensor k_rev, OptTensor skip, OptTensor pre_gate, OptTensor post_gate,
    OptTensor lengths, bool circular, bool precise, int64_t variant, int64_t output_mask);
Tensor fft_conv_spectrum(Tensor u, Tensor spectrum, OptTensor pre_gate, OptTensor post_gate, OptTensor lengths,
                         int64_t seqlen, bool precise, int64_t variant);
std::tuple<Tensor, Tensor, Tensor, Tensor> fft_conv_spectrum_backward(Tensor grad, Tensor u, Tensor spectrum,
                                                                      OptTensor pre_gate, OptTensor post_gate,
                                                                      OptTensor lengths, int64_t seqlen, bool precise,
                                                                      int64_t variant, int64_t output_mask);
Tensor m2_mixer(Tensor a, OptTensor u, Tensor short_weight, OptTensor short_bias, Tensor spectrum,
                OptTensor residual_spectrum, OptTensor lengths, int64_t seqlen, bool precise, int64_t variant);

Tensor depthwise_conv1d(Tensor x, Tensor weight, OptTensor bias, int64_t pad_left, int64_t pad_right,
                        bool channels_last, bool silu, int64_t variant);
Tensor depthwise_conv1d_weight_grad(Tensor grad, Tensor x, int64_t taps, int64_t pad_left, bool channels_last,
                                    int64_t variant);

Tensor blockdiag_matmul(Tensor x, Tensor weight, OptTensor bias, int64_t variant);
Tensor monarch_matmul(Tensor x, Tensor w1, Tensor w2, OptTensor bias, int64_t variant);
Tensor blockdiag_glu_mlp(Tensor x, Tensor w_in, Tensor w_out, OptTensor b_out, OptTensor residual,
                         OptTensor norm_weight, OptTensor norm_bias, double eps, int64_t variant);

}  // namespace monarch
