#include "plan.h"

#include <algorithm>
#include <stdexcept>

#include "tiles.h"

namespace monarch {

const char* scalar_name(Scalar s) {
  switch (s) {
    case Scalar::f32: return "float32";
    case Scalar::f64: return "float64";
    case Scalar::bf16: return "bfloat16";
    default: return "float16";
  }
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::cuda: return "cuda";
    default: return "tensor_cores";
  }
}

namespace {

bool can_run(const VariantInfo& row, const Request& request, const DeviceInfo& device) {
  if (row.device != device.kind) return false;
  if (row.isa == Isa::tensor_cores) return !request.precise && request.fits_tensor_cores;
  if (row.compute != compute_scalar(request.io)) return false;
  return device.kind == DeviceKind::cuda || row.isa <= device.isa;
}

}  // namespace

int choose_variant(std::span<const VariantInfo> rows, const Request& request, const DeviceInfo& device) {
  const int64_t count = static_cast<int64_t>(rows.size());
  if (request.forced >= 0) {
    if (request.forced < count && can_run(rows[request.forced], request, device))
      return static_cast<int>(request.forced);
    throw std::invalid_argument(
        "argument 'variant' must be a row of monarch_ops.variants() that runs on this device for " +
        std::string(scalar_name(request.io)) + ", got " + std::to_string(request.forced));
  }
  for (int i = 0; i < count; ++i)
    if (can_run(rows[i], request, device)) return i;
  throw std::invalid_argument("no compiled kernel for " + std::string(scalar_name(request.io)) + " on " +
                              (device.kind == DeviceKind::cuda ? "CUDA" : "the CPU") +
                              "; `python -m monarch_ops info` lists what was built");
}

FftConvPlan plan_fft_conv(const FftConvProblem& p, std::span<const VariantInfo> rows, const DeviceInfo& device) {
  FftConvPlan plan{};
  const bool cuda = device.kind == DeviceKind::cuda;
  Request request = p.request;
  bool whole_on_tensor_cores = false;
  if (cuda && scalar_bytes(request.io) == 2) {
    const TreeShape tree = choose_tree(p.seqlen, 1, Isa::cuda);
    whole_on_tensor_cores = plan_matrix_tile(tree, 1, device).has_value();
    request.fits_tensor_cores = whole_on_tensor_cores || plan_matrix_cut(tree, 1, device);
  }
  plan.variant = plan.exact = choose_variant(rows, request, device);
  if (!rows[plan.variant].precise) plan.exact = choose_variant(rows, {request.io, true}, device);
  plan.tree = choose_tree(p.seqlen, rows[plan.variant].lanes, rows[plan.variant].isa);
  const bool pairs_fit = plan.variant != plan.exact && plan_gradient_tile(plan.tree, 1, device);
  const bool in_three = plan.variant != plan.exact && plan_gradient_cut(plan.tree, 1, device);
  plan.gradients = pairs_fit || in_three ? plan.variant : plan.exact;
  plan.spectrum_scalars = 2 * plan.tree.points;
  // Enough independent sums to keep a machine busy when there are few channels; a function of the sizes alone,
  // so that the filter gradient is the same whatever the number of threads.
  const int64_t wanted = cuda ? 256 : 16, channels = std::max<int64_t>(p.channels, 1);
  plan.batch_slices = std::clamp<int64_t>(wanted / channels, 1, std::max<int64_t>(p.batch, 1));
  const int64_t compute_bytes = scalar_bytes(compute_scalar(p.request.io));
  plan.channel_tile = std::clamp<int64_t>(kFilterCacheBytes / (plan.spectrum_scalars * compute_bytes), 1, channels);
  if (cuda) {
    const int64_t row_bytes = plan.spectrum_scalars * compute_bytes, rows = channels * std::max<int64_t>(p.batch, 1);
    plan.workspace.channels = std::clamp<int64_t>(device.l2_bytes / row_bytes, 1, channels);
    plan.workspace.rows = std::clamp<int64_t>(device.l2_bytes / 2 / row_bytes, 1, rows);
    for (int buffers : {1, 2})
      if (plan_tiles(plan.tree, buffers, rows, device).whole) plan.whole_buffers = buffers;
    plan.whole_rows = plan.variant == plan.exact ? plan.whole_buffers > 0 : whole_on_tensor_cores;
    plan.whole_gradients = plan.gradients == plan.exact ? plan.whole_buffers > 1 : pairs_fit;
    if (!plan.whole_gradients) plan.batch_slices = 1;  // the pieces of longer rows keep it busy
  }
  plan.cost = fft_conv_cost(p.batch, p.channels, p.seqlen, scalar_bytes(p.request.io), compute_bytes, p.gates,
                            plan.tree.points);
  return plan;
}

}  // namespace monarch
