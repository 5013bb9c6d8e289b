// monarch_emulator: every function of the CUDA kernel table on numpy arrays, run by the emulator. The kernels come
// from csrc/kernels/cuda as csrc/kernels/instantiate.in takes them; the plans from the library's planner. Arguments
// and outputs are named as the fields of csrc/kernels/args.h.
#include <pybind11/stl.h>

#include "call.h"
#include "kernels/cuda/depthwise_conv1d.cuh"
#include "kernels/cuda/fft_conv.cuh"
#include "kernels/cuda/fft_conv_tensor_cores.cuh"
#include "kernels/cuda/mlp.cuh"

namespace monarch {
namespace {

using emulator::Call;
namespace py = pybind11;

constexpr VariantInfo row_of_table(const char* family) {
  return {.family = family,
          .device = DeviceKind::cuda,
          .isa = Isa::cuda,
          .compute = Scalar::f32,
          .lanes = kLanes<float>,
          .precise = true};
}
constexpr FftConvKernels fft_conv = fft_conv_kernels<float>(row_of_table("fft_conv"));
constexpr FftConvKernels on_tensor_cores = fft_conv_tensor_cores_kernels<float>({.family = "fft_conv",
                                                                                 .device = DeviceKind::cuda,
                                                                                 .isa = Isa::tensor_cores,
                                                                                 .compute = Scalar::f16,
                                                                                 .lanes = kLanes<float>,
                                                                                 .precise = false});
constexpr DepthwiseKernels depthwise_conv1d = depthwise_conv1d_kernels<float>(row_of_table("depthwise_conv1d"));
constexpr MlpKernels mlp = mlp_kernels<float>(row_of_table("mlp"));

// Where the call has these arguments: for a filter of `prepared` points; on tensor cores, or not at all.
FftConvPlan plan_for(Call& c, int64_t batch, int64_t channels, int64_t seqlen) {
  if (c.has("prepared")) seqlen = c.integer("prepared");
  const VariantInfo rows[] = {fft_conv.info, on_tensor_cores.info};
  const Request request{.io = c.io(), .forced = c.flag("tensor_cores")};
  return plan_fft_conv({.batch = batch, .channels = channels, .seqlen = seqlen, .request = request}, rows, c.device());
}

Taps taps_in(Call& c) {
  const auto count = [&](const char* name) { return c.has(name) ? c.shape(name)[1] : 0; };
  return {.k = c.array("k"),
          .num_k = count("k"),
          .k_rev = c.array("k_rev"),
          .num_rev = count("k_rev"),
          .skip = c.array("skip"),
          .circular = c.flag("circular")};
}

Taps taps_out(Call& c, int64_t channels, int64_t num_k, int64_t num_rev) {
  return {.k = c.array_out("grad_k", {channels, num_k}),
          .num_k = num_k,
          .k_rev = c.array_out("grad_k_rev", {channels, num_rev}),
          .num_rev = num_rev,
          .skip = c.array_out("grad_skip", {channels}),
          .circular = c.flag("circular")};
}

py::dict filter(Call& c) {
  const int64_t channels = c.shape("k")[0], seqlen = c.integer("seqlen");
  const FftConvPlan plan = plan_for(c, 1, channels, seqlen);
  const FftFilterArgs args{.channels = channels,
                           .seqlen = seqlen,
                           .taps = taps_in(c),
                           .spectrum = c.array_out("spectrum", {channels, plan.spectrum_scalars}),
                           .tree = plan.tree,
                           .workspace = plan.workspace};
  return c.run(fft_conv.filter, args, plan.filter_bytes());
}

py::dict filter_adjoint(Call& c) {
  const int64_t channels = c.shape("spectrum")[0], seqlen = c.integer("seqlen");
  const FftConvPlan plan = plan_for(c, 1, channels, seqlen);
  const FftFilterArgs args{.channels = channels,
                           .seqlen = seqlen,
                           .taps = taps_out(c, channels, c.integer("num_k"), c.integer("num_rev")),
                           .spectrum = c.array("spectrum"),
                           .tree = plan.tree,
                           .workspace = plan.workspace};
  return c.run(fft_conv.filter_adjoint, args, plan.filter_adjoint_bytes());
}

// What conv and backward share.
FftConvArgs conv_args(Call& c, const FftConvPlan& plan) {
  const auto shape = c.shape("u");
  return {.batch = shape[0],
          .channels = shape[1],
          .seqlen = shape[2],
          .io = c.io(),
          .u = c.rows("u"),
          .pre_gate = c.rows("pre_gate"),
          .post_gate = c.rows("post_gate"),
          .y = {},
          .lengths = c.lengths("lengths"),
          .spectrum = c.array("spectrum"),
          .taps = taps_in(c),
          .tree = plan.tree,
          .workspace = plan.workspace};
}

py::dict conv(Call& c) {
  const auto shape = c.shape("u");
  const FftConvPlan plan = plan_for(c, shape[0], shape[1], shape[2]);
  FftConvArgs args = conv_args(c, plan);
  args.y = c.rows_out("y", shape);
  return c.run((c.flag("tensor_cores") ? on_tensor_cores : fft_conv).conv, args, plan.conv_bytes(args.spectrum));
}

py::dict backward(Call& c) {
  const auto shape = c.shape("u");
  const FftConvPlan plan = plan_for(c, shape[0], shape[1], shape[2]);
  const int64_t slices = c.integer("batch_slices");
  FftConvGradArgs args{.forward = conv_args(c, plan),
                       .grad = c.rows("grad"),
                       .grad_u = c.rows_out("grad_u", shape),
                       .grad_pre_gate = c.rows_out("grad_pre_gate", shape),
                       .grad_post_gate = c.rows_out("grad_post_gate", shape),
                       .spectrum_grad = c.array_out("spectrum_grad", {shape[1], slices, plan.spectrum_scalars}),
                       .batch_slices = slices,
                       .grad_taps = {}};
  args.grad_taps = taps_out(c, shape[1], args.forward.taps.num_k, args.forward.taps.num_rev);
  return c.run((c.flag("tensor_cores") ? on_tensor_cores : fft_conv).backward, args,
               plan.backward_bytes(args.forward.spectrum));
}

py::dict mixer(Call& c) {
  const auto shape = c.shape("a");
  const int64_t channels = shape[1] / 3;
  const FftConvPlan plan = plan_for(c, shape[0], channels, shape[2]);
  const MixerArgs args{.batch = shape[0],
                       .channels = channels,
                       .seqlen = shape[2],
                       .io = c.io(),
                       .a = c.rows("a"),
                       .u = c.rows("u"),
                       .y = c.rows_out("y", {shape[0], channels, shape[2]}),
                       .short_weight = c.array("short_weight"),
                       .short_bias = c.array("short_bias"),
                       .short_taps = c.shape("short_weight")[1],
                       .lengths = c.lengths("lengths"),
                       .spectrum = c.array("spectrum"),
                       .residual_spectrum = c.array("residual_spectrum"),
                       .tree = plan.tree,
                       .workspace = plan.workspace};
  return c.run((c.flag("tensor_cores") ? on_tensor_cores : fft_conv).mixer, args,
               plan.mixer_bytes(args.residual_spectrum));
}

py::dict depthwise(Call& c) {
  const auto in = c.shape("x");
  const bool last = c.flag("channels_last");
  const int64_t channels = in[last ? 2 : 1], out_len = c.integer("out_len");
  const emulator::Shape out =
      last ? emulator::Shape{in[0], out_len, channels} : emulator::Shape{in[0], channels, out_len};
  const DepthwiseArgs args{.batch = in[0],
                           .channels = channels,
                           .seqlen = in[last ? 1 : 2],
                           .out_len = out_len,
                           .taps = c.shape("weight")[1],
                           .pad_left = c.integer("pad_left"),
                           .io = c.io(),
                           .channels_last = last,
                           .silu = c.flag("silu"),
                           .x = c.rows("x"),
                           .y = c.rows_out("y", out),
                           .weight = c.array("weight"),
                           .bias = c.array("bias")};
  return c.run(depthwise_conv1d.forward, args);
}

py::dict depthwise_weight_grad(Call& c) {
  const auto in = c.shape("x"), out = c.shape("grad");
  const bool last = c.flag("channels_last");
  const int64_t channels = in[last ? 2 : 1], taps = c.integer("taps");
  const DepthwiseWeightGradArgs args{.batch = in[0],
                                     .channels = channels,
                                     .seqlen = in[last ? 1 : 2],
                                     .out_len = out[last ? 1 : 2],
                                     .taps = taps,
                                     .pad_left = c.integer("pad_left"),
                                     .io = c.io(),
                                     .channels_last = last,
                                     .x = c.rows("x"),
                                     .grad = c.rows("grad"),
                                     .weight_grad = c.array_out("weight_grad", {channels, taps}),
                                     .slices = c.has("slices") ? c.integer("slices") : 1};
  return c.run(depthwise_conv1d.weight_grad, args, args.slices * channels * taps * int64_t(sizeof(float)));
}

py::dict glu(Call& c) {
  const auto shape = c.shape("a");
  const GluArgs args{.rows = shape[0],
                     .inner = shape[1] / 2,
                     .io = c.io(),
                     .a = c.io_array("a"),
                     .h = c.io_array_out("h", {shape[0], shape[1] / 2})};
  return c.run(mlp.glu, args);
}

py::dict residual_norm(Call& c) {
  const auto shape = c.shape("y");
  const bool in_place = c.flag("in_place");
  void* const y = in_place ? c.io_array_in_place("y") : c.io_array("y");
  const ResidualNormArgs args{.rows = shape[0],
                              .features = shape[1],
                              .io = c.io(),
                              .y = y,
                              .bias = c.io_array("bias"),
                              .residual = {c.io_array("residual"), 0, shape[1], 1},
                              .out = {in_place ? y : c.io_array_out("out", shape), 0, shape[1], 1},
                              .norm_weight = c.array("norm_weight"),
                              .norm_bias = c.array("norm_bias"),
                              .eps = c.real("eps")};
  return c.run(mlp.residual_norm, args);
}

py::dict describe(const MatrixTile& tile) {
  using namespace py::literals;
  return py::dict("head"_a = tile.head, "nodes"_a = tile.nodes, "room"_a = tile.room(), "rows"_a = tile.rows,
                  "threads"_a = tile.threads, "alone"_a = tile.alone, "streams"_a = tile.streams,
                  "shared_bytes"_a = tile.shared_bytes);
}
py::dict describe(const MatrixCut& cut) {
  using namespace py::literals;
  return py::dict("head"_a = cut.outer.head, "levels"_a = cut.outer.levels, "inner"_a = cut.outer.inner,
                  "columns"_a = cut.outer.columns(), "rows"_a = cut.inner.rows, "streams"_a = cut.inner.streams,
                  "shared_bytes"_a = std::max(cut.outer.shared_bytes, cut.inner.shared_bytes));
}

// How a transform of this length is cut into passes, how often its row fits into a block, and how many rows of `rows`
// a block on tensor cores takes, in which passes, or of a slice of so many, each with its gradient; which engine is
// chosen for rows of this dtype and for their gradients, in how many launches.
py::dict plan(Call& c) {
  const FftConvPlan plan = plan_for(c, 1, 1, c.integer("seqlen"));
  py::dict d;
  d["points"] = plan.tree.points;
  d["radices"] = std::vector<int>(plan.tree.radix, plan.tree.radix + plan.tree.depth);
  d["whole_buffers"] = plan.whole_buffers;
  d["workspace_rows"] = plan.workspace.rows;
  const VariantInfo rows[] = {on_tensor_cores.info, fft_conv.info};  // as in the table
  const Request request{.io = c.io(), .precise = c.flag("precise")};
  const FftConvPlan chosen =
      plan_fft_conv({.batch = 64, .channels = 2, .seqlen = c.integer("seqlen"), .request = request}, rows, c.device());
  d["engine"] = isa_name(rows[chosen.variant].isa);
  d["gradients"] = isa_name(rows[chosen.gradients].isa);
  d["launches"] = chosen.launches();
  d["whole_gradients"] = chosen.whole_gradients;
  d["batch_slices"] = chosen.batch_slices;
  const auto put = [&](const char* name, const auto& planned) {
    d[name] = planned ? py::object(describe(*planned)) : py::none();
  };
  const int64_t rows_of_launch = c.has("rows") ? c.integer("rows") : 1;
  put("matrix_tile", plan_matrix_tile(plan.tree, rows_of_launch, c.device()));
  put("matrix_cut", plan_matrix_cut(plan.tree, rows_of_launch, c.device()));
  put("gradient_tile", plan_gradient_tile(plan.tree, rows_of_launch, c.device()));
  put("gradient_cut", plan_gradient_cut(plan.tree, rows_of_launch, c.device()));
  return d;
}

}  // namespace

PYBIND11_MODULE(monarch_emulator, m) {
  emulator::define_schedule(m);
  const std::pair<const char*, py::dict (*)(Call&)> functions[] = {
      {"plan", &plan},
      {"filter", &filter},
      {"filter_adjoint", &filter_adjoint},
      {"conv", &conv},
      {"backward", &backward},
      {"mixer", &mixer},
      {"depthwise", &depthwise},
      {"depthwise_weight_grad", &depthwise_weight_grad},
      {"glu", &glu},
      {"residual_norm", &residual_norm},
  };
  for (const auto& [name, function] : functions)
    m.def(name, [function](const py::kwargs& arguments) {
      Call call(arguments);
      return function(call);
    });
}

}  // namespace monarch
