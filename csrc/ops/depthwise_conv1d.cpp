// Short depthwise convolution: forward, and the gradient of the weight. The gradient of the input is the forward
// op on flipped weights (monarch_ops/ops/depthwise_conv1d.py).
#include "check.h"
#include "ops.h"

namespace monarch {
namespace {

struct Layout {
  int64_t batch, channels, seqlen;
  bool channels_last;

  Layout(const char* op, const char* name, const Tensor& t, bool last) : channels_last(last) {
    if (last) {
      check_shape(op, name, t, {{"B"}, {"L"}, {"H"}});
    } else {
      check_shape(op, name, t, {{"B"}, {"H"}, {"L"}});
    }
    batch = t.size(0), channels = t.size(last ? 2 : 1), seqlen = t.size(last ? 1 : 2);
  }
  Shape shape(int64_t length) const {
    return channels_last ? Shape{batch, length, channels} : Shape{batch, channels, length};
  }
};

}  // namespace

Tensor depthwise_conv1d(Tensor x, Tensor weight, OptTensor bias, int64_t pad_left, int64_t pad_right,
                        bool channels_last, bool silu, int64_t variant) {
  const char* op = "depthwise_conv1d";
  const Layout in(op, "x", x, channels_last);
  const Scalar io = check_floating(op, "x", x);
  check_shape(op, "weight", weight, {{"H", in.channels}, {"K"}});
  check_shape(op, "bias", bias, {{"H", in.channels}});
  check_floating(op, "weight", weight);
  check_floating(op, "bias", bias);
  check_same_device(op, "weight", weight, "x", x);
  check_same_device(op, "bias", bias, "x", x);
  const int64_t taps = weight.size(1), out_len = in.seqlen + pad_left + pad_right - taps + 1;
  if (taps < 1) refuse(op, "weight", "have at least one tap", shape_text(weight));
  if (out_len < 0)
    refuse(op, "padding", "leave an output of length >= 0 for L=" + std::to_string(in.seqlen),
           std::to_string(pad_left) + " + " + std::to_string(pad_right) + " with " + std::to_string(taps) + " taps");
  const ScalarType compute = dtype_of(compute_scalar(io));
  const Tensor w = contiguous_as(weight, compute), input = innermost_contiguous(x);
  OptTensor b;
  if (bias) b = contiguous_as(*bias, compute);
  const Tensor y = empty(x, in.shape(out_len));
  const DepthwiseArgs args{.batch = in.batch,
                           .channels = in.channels,
                           .seqlen = in.seqlen,
                           .out_len = out_len,
                           .taps = taps,
                           .pad_left = pad_left,
                           .io = io,
                           .channels_last = channels_last,
                           .silu = silu,
                           .x = rows_of(input),
                           .y = rows_of(y),
                           .weight = w.data_ptr(),
                           .bias = data_of(b)};
  const int64_t rows = channels_last ? out_len : in.channels, row = channels_last ? in.channels : out_len;
  if (row > 0)
    run(kernel_for<DepthwiseKernels>(x, io, variant).forward, args, in.batch * rows, std::max<int64_t>(1, 16384 / row),
        x);
  return y;
}

Tensor depthwise_conv1d_weight_grad(Tensor grad, Tensor x, int64_t taps, int64_t pad_left, bool channels_last,
                                    int64_t variant) {
  const char* op = "depthwise_conv1d_weight_grad";
  const Layout in(op, "x", x, channels_last), out(op, "grad", grad, channels_last);
  const Scalar io = check_floating(op, "x", x);
  check_same_dtype(op, "grad", grad, "x", x);
  check_same_device(op, "grad", grad, "x", x);
  if (taps < 1) refuse(op, "taps", "be at least 1", std::to_string(taps));
  if (out.batch != in.batch || out.channels != in.channels)
    refuse(op, "grad", "have the batch and channels of 'x', " + shape_text(x), shape_text(grad));
  const Tensor input = innermost_contiguous(x), output = innermost_contiguous(grad);
  const Tensor result = empty(x, {in.channels, taps}, dtype_of(compute_scalar(io)));
  const DepthwiseWeightGradArgs args{.batch = in.batch,
                                     .channels = in.channels,
                                     .seqlen = in.seqlen,
                                     .out_len = out.seqlen,
                                     .taps = taps,
                                     .pad_left = pad_left,
                                     .io = io,
                                     .channels_last = channels_last,
                                     .x = rows_of(input),
                                     .grad = rows_of(output),
                                     .weight_grad = result.data_ptr(),
                                     .slices = depthwise_slices(in.channels, in.batch * out.seqlen)};
  const int64_t grain = channels_last ? 64 : 1;  // a cache line of channels at a time where they are innermost
  const int64_t workspace =
      channels_last && !x.is_cpu() ? args.slices * in.channels * taps * int64_t(sizeof(float)) : 0;
  run(kernel_for<DepthwiseKernels>(x, io, variant).weight_grad, args, in.channels, grain, x, workspace);
  return result;
}

}  // namespace monarch
