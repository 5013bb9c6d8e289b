// FFT long convolution: forward, gradients, and the same with a prepared filter spectrum.
#include "check.h"
#include "ops.h"

namespace monarch {
namespace {

const FftConvKernels& kernel_of(const FftConvPlan& plan) { return *kernels<FftConvKernels>()[plan.variant]; }
const FftConvKernels& exact_of(const FftConvPlan& plan) { return *kernels<FftConvKernels>()[plan.exact]; }
const FftConvKernels& gradients_of(const FftConvPlan& plan) { return *kernels<FftConvKernels>()[plan.gradients]; }

FftConvPlan plan_for(const Tensor& u, int64_t batch, int64_t channels, int64_t seqlen, int gates, Request request) {
  constexpr int64_t kMostRows = int64_t{1} << 30;  // CUDA kernels count rows in 32 bits, gates and thirds included
  if (!u.is_cpu() && batch * channels > kMostRows)
    throw std::invalid_argument("CUDA tensors must have at most 2^30 rows, B*H, got " +
                                std::to_string(batch * channels));
  return plan_fft_conv({batch, channels, seqlen, gates, request}, variant_infos<FftConvKernels>(), device_of(u));
}

// The tensors every form of the convolution shares, checked and ready for kernels.
struct Inputs {
  Tensor u;
  OptTensor pre_gate, post_gate, lengths;
  int64_t batch, channels, seqlen;
  Scalar io;

  Inputs(const char* op, const Tensor& u_, const OptTensor& pre, const OptTensor& post, const OptTensor& lens) {
    check_shape(op, "u", u_, {{"B"}, {"H"}, {"L"}});
    io = check_floating(op, "u", u_);
    batch = u_.size(0), channels = u_.size(1), seqlen = u_.size(2);
    if (seqlen < 1) refuse(op, "u", "have a length L of at least 1", shape_text(u_));
    for (const auto& [name, gate] : {std::pair("pre_gate", &pre), std::pair("post_gate", &post)}) {
      check_shape(op, name, *gate, {{"B", batch}, {"H", channels}, {"L", seqlen}});
      check_same_dtype(op, name, *gate, "u", u_);
      check_same_device(op, name, *gate, "u", u_);
    }
    u = innermost_contiguous(u_);
    if (pre) pre_gate = innermost_contiguous(*pre);
    if (post) post_gate = innermost_contiguous(*post);
    lengths = check_lengths(op, lens, u, batch, seqlen);
  }

  int gates() const { return (pre_gate ? 1 : 0) + (post_gate ? 1 : 0); }

  FftConvArgs args(const FftConvPlan& plan) const {
    FftConvArgs a{};
    a.batch = batch, a.channels = channels, a.seqlen = seqlen, a.io = io;
    a.u = rows_of(u), a.pre_gate = rows_of(pre_gate), a.post_gate = rows_of(post_gate);
    a.lengths = static_cast<const int64_t*>(data_of(lengths));
    a.tree = plan.tree;
    a.workspace = plan.workspace;
    a.channel_tile = plan.channel_tile;
    return a;
  }
};

// Filter taps in the compute type; the tensors keep the memory alive.
struct CheckedTaps {
  Tensor k;
  OptTensor k_rev, skip;
  bool circular;

  CheckedTaps(const char* op, const Tensor& k_, const OptTensor& rev, const OptTensor& skip_, const Tensor& like,
              const char* like_name, int64_t channels, int64_t seqlen, bool circular_, Scalar compute)
      : circular(circular_) {
    check_shape(op, "k", k_, {{"H", channels}, {"Lk"}});
    check_shape(op, "k_rev", rev, {{"H", channels}, {"Lr"}});
    check_shape(op, "skip", skip_, {{"H", channels}});
    check_floating(op, "k", k_);
    check_floating(op, "k_rev", rev);
    check_floating(op, "skip", skip_);
    check_same_device(op, "k", k_, like_name, like);
    check_same_device(op, "k_rev", rev, like_name, like);
    check_same_device(op, "skip", skip_, like_name, like);
    if (k_.size(1) < 1) refuse(op, "k", "have at least one tap", shape_text(k_));
    if (circular && rev) refuse(op, "k_rev", "be absent when circular=True", shape_text(*rev));
    if (circular && k_.size(1) > seqlen)
      refuse(op, "k", "have at most L=" + std::to_string(seqlen) + " taps when circular=True", shape_text(k_));
    const ScalarType dtype = dtype_of(compute);
    k = contiguous_as(k_, dtype);
    if (rev) k_rev = contiguous_as(*rev, dtype);
    if (skip_) skip = contiguous_as(*skip_, dtype);
  }

  Taps taps() const {
    return {k.data_ptr(), k.size(1), data_of(k_rev), k_rev ? k_rev->size(1) : 0, data_of(skip), circular};
  }
};

Tensor check_spectrum(const char* op, const char* name, const Tensor& spectrum, const Tensor& u, int64_t channels,
                      const FftConvPlan& plan, Scalar io) {
  check_shape(op, name, spectrum, {{"H", channels}, {"spectrum", plan.spectrum_scalars}});
  check_same_device(op, name, spectrum, "u", u);
  const ScalarType wanted = dtype_of(compute_scalar(io));
  if (spectrum.scalar_type() != wanted)
    refuse(op, name, std::string("be prepared for the dtype of 'u', ") + scalar_name(io),
           torch::headeronly::toString(spectrum.scalar_type()));
  const Tensor rows = packed(spectrum);
  constexpr uintptr_t kVectorBytes = 16;  // what CUDA kernels read at once
  return reinterpret_cast<uintptr_t>(rows.data_ptr()) % kVectorBytes ? torch::stable::clone(rows) : rows;
}

// Taps at lags beyond a row reach no output, so a filter serves every row that is not longer than it was prepared for.
void check_prepared_length(const char* op, int64_t prepared, int64_t seqlen) {
  if (prepared < seqlen)
    refuse(op, "spectrum", "be prepared for at least the length of 'u', L=" + std::to_string(seqlen),
           "a spectrum prepared for " + std::to_string(prepared));
}

// Sums the slices of a (H, slices, n) tensor of partial spectrum gradients, in order.
Tensor sum_slices(const Tensor& partial) {
  return partial.size(1) == 1 ? torch::stable::view(partial, Shape{partial.size(0), partial.size(2)})
                              : torch::stable::sum(partial, Shape{1});
}

// Bit i of an output_mask: is result i wanted? One that is not has no elements.
bool wanted(int64_t mask, int i) { return mask >> i & 1; }
Tensor output(bool want, const Tensor& like, const Shape& shape, ScalarType dtype) {
  return empty(like, want ? shape : Shape{0}, dtype);
}

// Gradients with respect to u and the gates, allocated and put into the arguments of the kernel.
struct RowGradients {
  Tensor grad, u, pre, post;

  RowGradients(const char* op, const Tensor& grad_, const Inputs& in, bool want_u, bool want_pre, bool want_post,
               FftConvGradArgs& args) {
    check_shape(op, "grad", grad_, {{"B", in.batch}, {"H", in.channels}, {"L", in.seqlen}});
    check_same_dtype(op, "grad", grad_, "u", in.u);
    check_same_device(op, "grad", grad_, "u", in.u);
    grad = innermost_contiguous(grad_);
    args.grad = rows_of(grad);
    const Shape shape{in.batch, in.channels, in.seqlen};
    const auto make = [&](bool want, Tensor& t, Rows& rows) {
      t = output(want, in.u, shape, in.u.scalar_type());
      if (want) rows = rows_of(t);
    };
    make(want_u, u, args.grad_u);
    make(want_pre, pre, args.grad_pre_gate);
    make(want_post, post, args.grad_post_gate);
  }
};

// Rows one thread should take at least: enough work to be worth a thread.
int64_t row_grain(int64_t seqlen) { return std::max<int64_t>(1, 4096 / seqlen); }

}  // namespace

Tensor fft_filter(Tensor k, OptTensor k_rev, OptTensor skip, int64_t seqlen, bool circular, ScalarType dtype,
                  bool precise, int64_t variant) {
  const char* op = "fft_filter";
  const auto io = scalar_of(dtype);
  if (!io) refuse(op, "dtype", "be float32, float64, bfloat16 or float16", torch::headeronly::toString(dtype));
  if (seqlen < 1) refuse(op, "seqlen", "be at least 1", std::to_string(seqlen));
  check_shape(op, "k", k, {{"H"}, {"Lk"}});
  const int64_t channels = k.size(0);
  const FftConvPlan plan = plan_for(k, 1, channels, seqlen, 0, {*io, precise, variant});
  const CheckedTaps taps(op, k, k_rev, skip, k, "k", channels, seqlen, circular, compute_scalar(*io));
  const Tensor spectrum = empty(k, {channels, plan.spectrum_scalars}, dtype_of(compute_scalar(*io)));
  FftFilterArgs args{channels, seqlen, taps.taps(), spectrum.data_ptr(), plan.tree, plan.workspace};
  run(exact_of(plan).filter, args, channels, row_grain(seqlen), k, plan.filter_bytes());
  return spectrum;
}

std::tuple<Tensor, Tensor, Tensor> fft_filter_backward(Tensor grad, int64_t num_k, int64_t num_rev, bool with_skip,
                                                       int64_t seqlen, bool circular, ScalarType dtype, bool precise,
                                                       int64_t variant) {
  const char* op = "fft_filter_backward";
  check_shape(op, "grad", grad, {{"H"}, {"spectrum"}});
  const auto io = scalar_of(dtype);
  if (!io) refuse(op, "dtype", "be float32, float64, bfloat16 or float16", torch::headeronly::toString(dtype));
  const int64_t channels = grad.size(0);
  const FftConvPlan plan = plan_for(grad, 1, channels, seqlen, 0, {*io, precise, variant});
  const Tensor spectrum = check_spectrum(op, "grad", grad, grad, channels, plan, *io);
  const ScalarType compute = spectrum.scalar_type();
  const Tensor k = empty(grad, {channels, num_k}, compute);
  const Tensor k_rev = empty(grad, num_rev ? Shape{channels, num_rev} : Shape{0}, compute);
  const Tensor skip = empty(grad, with_skip ? Shape{channels} : Shape{0}, compute);
  const Taps taps{.k = k.data_ptr(),
                  .num_k = num_k,
                  .k_rev = num_rev ? k_rev.data_ptr() : nullptr,
                  .num_rev = num_rev,
                  .skip = with_skip ? skip.data_ptr() : nullptr,
                  .circular = circular};
  FftFilterArgs args{channels, seqlen, taps, spectrum.data_ptr(), plan.tree, plan.workspace};
  run(exact_of(plan).filter_adjoint, args, channels, row_grain(seqlen), grad, plan.filter_adjoint_bytes());
  return {k, k_rev, skip};
}

Tensor fft_conv(Tensor u, Tensor k, OptTensor k_rev, OptTensor skip, OptTensor pre_gate, OptTensor post_gate,
                OptTensor lengths, bool circular, bool precise, int64_t variant) {
  const char* op = "fft_conv";
  const Inputs in(op, u, pre_gate, post_gate, lengths);
  const FftConvPlan plan = plan_for(in.u, in.batch, in.channels, in.seqlen, in.gates(), {in.io, precise, variant});
  const CheckedTaps taps(op, k, k_rev, skip, in.u, "u", in.channels, in.seqlen, circular, compute_scalar(in.io));
  if (plan.exact != plan.variant) {  // takes prepared filters
    const Tensor spectrum = fft_filter(k, k_rev, skip, in.seqlen, circular, u.scalar_type(), precise, variant);
    return fft_conv_spectrum(u, spectrum, pre_gate, post_gate, lengths, in.seqlen, precise, variant);
  }
  const Tensor y = empty(in.u, {in.batch, in.channels, in.seqlen});
  FftConvArgs args = in.args(plan);
  args.taps = taps.taps();
  args.channel_tile = 1;  // a thread keeps one filter at a time
  args.y = rows_of(y);
  run(kernel_of(plan).conv, args, in.batch * in.channels, row_grain(in.seqlen), in.u, plan.conv_bytes(false));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fft_conv_backward(
    Tensor grad, Tensor u, Tensor k, OptTensor k_rev, OptTensor skip, OptTensor pre_gate, OptTensor post_gate,
    OptTensor lengths, bool circular, bool precise, int64_t variant, int64_t output_mask) {
  const char* op = "fft_conv_backward";
  const Inputs in(op, u, pre_gate, post_gate, lengths);
  const Scalar compute = compute_scalar(in.io);
  const FftConvPlan plan = plan_for(in.u, in.batch, in.channels, in.seqlen, in.gates(), {in.io, precise, variant});
  const CheckedTaps taps(op, k, k_rev, skip, in.u, "u", in.channels, in.seqlen, circular, compute);
  const ScalarType dtype = dtype_of(compute);
  const int64_t H = in.channels, num_rev = k_rev ? k_rev->size(1) : 0;
  const bool want_k = wanted(output_mask, 1), want_rev = wanted(output_mask, 2), want_skip = wanted(output_mask, 3);
  const bool filter_wanted = want_k || want_rev || want_skip;
  if (plan.gradients != plan.exact) {  // takes prepared filters
    const ScalarType io = u.scalar_type();
    const Tensor spectrum = fft_filter(k, k_rev, skip, in.seqlen, circular, io, precise, variant);
    const int64_t rows_wanted = (output_mask & 1) | filter_wanted << 1 | (output_mask >> 4 & 3) << 2;
    const auto [du, dspectrum, dpre, dpost] = fft_conv_spectrum_backward(
        grad, u, spectrum, pre_gate, post_gate, lengths, in.seqlen, precise, variant, rows_wanted);
    const Tensor none = output(false, u, {}, dtype);
    if (!filter_wanted) return {du, none, none, none, dpre, dpost};
    const auto [dk, drev, dskip] =
        fft_filter_backward(dspectrum, k.size(1), num_rev, skip.has_value(), in.seqlen, circular, io, precise, variant);
    return {du, want_k ? dk : none, want_rev ? drev : none, want_skip ? dskip : none, dpre, dpost};
  }
  const Tensor dk = output(want_k, u, {H, k.size(1)}, dtype);
  const Tensor drev = output(want_rev, u, {H, num_rev}, dtype);
  const Tensor dskip = output(want_skip, u, {H}, dtype);

  FftConvGradArgs args{};
  args.forward = in.args(plan);
  args.forward.taps = taps.taps();
  args.batch_slices = plan.batch_slices;
  const RowGradients rows(op, grad, in, wanted(output_mask, 0), wanted(output_mask, 4), wanted(output_mask, 5), args);
  Taps grads{};
  grads.circular = circular;
  if (want_k) grads.k = dk.data_ptr(), grads.num_k = k.size(1);
  if (want_rev) grads.k_rev = drev.data_ptr(), grads.num_rev = num_rev;
  if (want_skip) grads.skip = dskip.data_ptr();
  Tensor partial;
  // one slice goes straight to the taps, several through a tensor of partial sums
  const bool direct = plan.batch_slices == 1;
  if (filter_wanted && direct) args.grad_taps = grads;
  if (filter_wanted && !direct) {
    partial = empty(u, {H, plan.batch_slices, plan.spectrum_scalars}, dtype);
    args.spectrum_grad = partial.data_ptr();
  }
  run(exact_of(plan).backward, args, H * plan.batch_slices, 1, in.u, plan.backward_bytes(false));
  if (filter_wanted && !direct) {
    const Tensor total = sum_slices(partial);
    FftFilterArgs adjoint{H, in.seqlen, grads, total.data_ptr(), plan.tree, plan.workspace};
    run(exact_of(plan).filter_adjoint, adjoint, H, row_grain(in.seqlen), in.u, plan.filter_adjoint_bytes());
  }
  return {rows.u, dk, drev, dskip, rows.pre, rows.post};
}

Tensor fft_conv_spectrum(Tensor u, Tensor spectrum, OptTensor pre_gate, OptTensor post_gate, OptTensor lengths,
                         int64_t seqlen, bool precise, int64_t variant) {
  const char* op = "fft_conv";
  const Inputs in(op, u, pre_gate, post_gate, lengths);
  check_prepared_length(op, seqlen, in.seqlen);
  const FftConvPlan plan = plan_for(in.u, in.batch, in.channels, seqlen, in.gates(), {in.io, precise, variant});
  const Tensor filter = check_spectrum(op, "spectrum", spectrum, in.u, in.channels, plan, in.io);
  const Tensor y = empty(in.u, {in.batch, in.channels, in.seqlen});
  FftConvArgs args = in.args(plan);
  args.spectrum = filter.data_ptr();
  args.y = rows_of(y);
  run(kernel_of(plan).conv, args, in.batch * in.channels, row_grain(in.seqlen), in.u, plan.conv_bytes(true));
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fft_conv_spectrum_backward(Tensor grad, Tensor u, Tensor spectrum,
                                                                      OptTensor pre_gate, OptTensor post_gate,
                                                                      OptTensor lengths, int64_t seqlen, bool precise,
                                                                      int64_t variant, int64_t output_mask) {
  const char* op = "fft_conv_spectrum_backward";
  const Inputs in(op, u, pre_gate, post_gate, lengths);
  check_prepared_length(op, seqlen, in.seqlen);
  const FftConvPlan plan = plan_for(in.u, in.batch, in.channels, seqlen, in.gates(), {in.io, precise, variant});
  const Tensor filter = check_spectrum(op, "spectrum", spectrum, in.u, in.channels, plan, in.io);
  FftConvGradArgs args{};
  args.forward = in.args(plan);
  args.forward.spectrum = filter.data_ptr();
  args.batch_slices = plan.batch_slices;
  const RowGradients rows(op, grad, in, wanted(output_mask, 0), wanted(output_mask, 2), wanted(output_mask, 3), args);
  const bool want_filter = wanted(output_mask, 1);
  const Tensor partial =
      output(want_filter, u, {in.channels, plan.batch_slices, plan.spectrum_scalars}, filter.scalar_type());
  if (want_filter) args.spectrum_grad = partial.data_ptr();
  run(gradients_of(plan).backward, args, in.channels * plan.batch_slices, 1, in.u, plan.backward_bytes(true));
  return {rows.u, want_filter ? sum_slices(partial) : partial, rows.pre, rows.post};
}

Tensor m2_mixer(Tensor a, OptTensor u, Tensor short_weight, OptTensor short_bias, Tensor spectrum,
                OptTensor residual_spectrum, OptTensor lengths, int64_t seqlen, bool precise, int64_t variant) {
  const char* op = "m2_mixer";
  check_shape(op, "a", a, {{"B"}, {"3H"}, {"L"}});
  const Scalar io = check_floating(op, "a", a);
  const int64_t batch = a.size(0), channels = a.size(1) / 3, L = a.size(2);
  if (a.size(1) % 3) refuse(op, "a", "have shape (B, 3H, L)", shape_text(a));
  if (L < 1) refuse(op, "a", "have a length L of at least 1", shape_text(a));
  if (residual_spectrum && !u) refuse(op, "u", "be given with 'residual_spectrum'", "None");
  check_shape(op, "u", u, {{"B", batch}, {"H", channels}, {"L", L}});
  check_same_dtype(op, "u", u, "a", a);
  check_same_device(op, "u", u, "a", a);
  check_shape(op, "short_weight", short_weight, {{"3H", 3 * channels}, {"K"}});
  check_shape(op, "short_bias", short_bias, {{"3H", 3 * channels}});
  check_floating(op, "short_weight", short_weight);
  check_floating(op, "short_bias", short_bias);
  check_same_device(op, "short_weight", short_weight, "a", a);
  check_same_device(op, "short_bias", short_bias, "a", a);
  if (short_weight.size(1) < 1) refuse(op, "short_weight", "have at least one tap", shape_text(short_weight));
  check_prepared_length(op, seqlen, L);
  const OptTensor valid = check_lengths(op, lengths, a, batch, L);

  const FftConvPlan plan = plan_for(a, batch, channels, seqlen, 0, {io, precise, variant});
  const ScalarType compute = dtype_of(compute_scalar(io));
  const Tensor main = check_spectrum(op, "spectrum", spectrum, a, channels, plan, io);
  OptTensor residual;
  if (residual_spectrum) residual = check_spectrum(op, "residual_spectrum", *residual_spectrum, a, channels, plan, io);
  const Tensor weight = contiguous_as(short_weight, compute), rows = innermost_contiguous(a);
  OptTensor bias, input;
  if (short_bias) bias = contiguous_as(*short_bias, compute);
  if (residual) input = innermost_contiguous(*u);
  const Tensor y = empty(a, {batch, channels, L});

  MixerArgs args{};
  args.batch = batch, args.channels = channels, args.seqlen = L, args.io = io;
  args.a = rows_of(rows), args.u = rows_of(input), args.y = rows_of(y);
  args.short_weight = weight.data_ptr(), args.short_bias = data_of(bias), args.short_taps = weight.size(1);
  args.lengths = static_cast<const int64_t*>(data_of(valid));
  args.spectrum = main.data_ptr(), args.residual_spectrum = data_of(residual);
  args.tree = plan.tree;
  args.workspace = plan.workspace;
  args.channel_tile = std::max<int64_t>(1, plan.channel_tile / (residual ? 2 : 1));
  run(kernel_of(plan).mixer, args, batch * channels, row_grain(L), a, plan.mixer_bytes(residual.has_value()));
  return y;
}

}  // namespace monarch
