// Every op of the library: its schema, and the one function that implements it on every device.
//
// Tensor arguments have no defaults: PyTorch drops arguments that equal theirs, and autograd then miscounts.
// B batch, H channels, L length, G blocks. `variant` forces a row of the kernel table (-1: the planner chooses).
// Bit i of `output_mask` says whether result i is wanted, and a result nobody wants comes back with no elements.
#include "ops/ops.h"

STABLE_TORCH_LIBRARY(monarch_ops, m) {
  m.def(
      "fft_filter(Tensor k, Tensor? k_rev, Tensor? skip, int seqlen, bool circular, ScalarType dtype, "
      "bool precise=False, int variant=-1) -> Tensor");
  m.def(
      "fft_filter_backward(Tensor grad, int num_k, int num_rev, bool with_skip, int seqlen, bool circular, "
      "ScalarType dtype, bool precise=False, int variant=-1) -> (Tensor, Tensor, Tensor)");
  m.def(
      "fft_conv(Tensor u, Tensor k, Tensor? k_rev, Tensor? skip, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? lengths, bool circular=False, bool precise=False, int variant=-1) -> Tensor");
  m.def(
      "fft_conv_backward(Tensor grad, Tensor u, Tensor k, Tensor? k_rev, Tensor? skip, Tensor? pre_gate, "
      "Tensor? post_gate, Tensor? lengths, bool circular, bool precise, int variant, int output_mask) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fft_conv_spectrum(Tensor u, Tensor spectrum, Tensor? pre_gate, Tensor? post_gate, Tensor? lengths, "
      "int seqlen, bool precise=False, int variant=-1) -> Tensor");
  m.def(
      "fft_conv_spectrum_backward(Tensor grad, Tensor u, Tensor spectrum, Tensor? pre_gate, Tensor? post_gate, "
      "Tensor? lengths, int seqlen, bool precise, int variant, int output_mask) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "m2_mixer(Tensor a, Tensor? u, Tensor short_weight, Tensor? short_bias, Tensor spectrum, "
      "Tensor? residual_spectrum, Tensor? lengths, int seqlen, bool precise=False, int variant=-1) -> Tensor");
  m.def(
      "depthwise_conv1d(Tensor x, Tensor weight, Tensor? bias, SymInt pad_left, SymInt pad_right, "
      "bool channels_last=False, bool silu=False, int variant=-1) -> Tensor");
  m.def(
      "depthwise_conv1d_weight_grad(Tensor grad, Tensor x, SymInt taps, SymInt pad_left, "
      "bool channels_last=False, int variant=-1) -> Tensor");
  m.def("blockdiag_matmul(Tensor x, Tensor weight, Tensor? bias, int variant) -> Tensor");
  m.def("monarch_matmul(Tensor x, Tensor w1, Tensor w2, Tensor? bias, int variant) -> Tensor");
  m.def(
      "blockdiag_glu_mlp(Tensor x, Tensor w_in, Tensor w_out, Tensor? b_out, Tensor? residual, "
      "Tensor? norm_weight, Tensor? norm_bias, float eps=1e-12, int variant=-1) -> Tensor");
}

namespace {

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("fft_filter", TORCH_BOX(&monarch::fft_filter));
  m.impl("fft_filter_backward", TORCH_BOX(&monarch::fft_filter_backward));
  m.impl("fft_conv", TORCH_BOX(&monarch::fft_conv));
  m.impl("fft_conv_backward", TORCH_BOX(&monarch::fft_conv_backward));
  m.impl("fft_conv_spectrum", TORCH_BOX(&monarch::fft_conv_spectrum));
  m.impl("fft_conv_spectrum_backward", TORCH_BOX(&monarch::fft_conv_spectrum_backward));
  m.impl("m2_mixer", TORCH_BOX(&monarch::m2_mixer));
  m.impl("depthwise_conv1d", TORCH_BOX(&monarch::depthwise_conv1d));
  m.impl("depthwise_conv1d_weight_grad", TORCH_BOX(&monarch::depthwise_conv1d_weight_grad));
  m.impl("blockdiag_matmul", TORCH_BOX(&monarch::blockdiag_matmul));
  m.impl("monarch_matmul", TORCH_BOX(&monarch::monarch_matmul));
  m.impl("blockdiag_glu_mlp", TORCH_BOX(&monarch::blockdiag_glu_mlp));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(monarch_ops, CPU, m) { implement(m); }
STABLE_TORCH_LIBRARY_IMPL(monarch_ops, CUDA, m) { implement(m); }
