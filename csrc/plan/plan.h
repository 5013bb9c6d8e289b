// Problem -> plan: which kernel runs and how the transform is cut. Plain data and pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "cost.h"
#include "device.h"
#include "tree_shape.h"

namespace monarch {

enum class Scalar : int8_t { f32, f64, bf16, f16 };

constexpr Scalar compute_scalar(Scalar io) { return io == Scalar::f64 ? Scalar::f64 : Scalar::f32; }
constexpr int64_t scalar_bytes(Scalar s) { return s == Scalar::f64 ? 8 : s == Scalar::f32 ? 4 : 2; }
MONARCH_API const char* scalar_name(Scalar s);
MONARCH_API const char* isa_name(Isa isa);

// One row of kernels/variants.def, as the planner sees it.
struct VariantInfo {
  const char* family;
  DeviceKind device;
  Isa isa;
  Scalar compute;
  int lanes;     // complex numbers per SIMD vector; 1 on CUDA
  bool precise;  // computes in full precision of its compute type, whatever the tensors' dtype
};

// What the caller asks of a kernel besides its family.
struct Request {
  Scalar io;
  bool precise = false;
  int64_t forced = -1;  // a row of the table, or -1: the planner chooses
  bool fits_tensor_cores = false;
};

// The first row that can run, or the forced one. Throws std::invalid_argument when there is none.
MONARCH_API int choose_variant(std::span<const VariantInfo> rows, const Request& request, const DeviceInfo& device);

// CPU: part of a core's cache that filters may fill, so that rows can be read in the order in which they lie in memory.
constexpr int64_t kFilterCacheBytes = 128 << 10;

// CUDA: device memory between the launches of one call comes in parts of two sizes, for the spectra of so many channels
// or for so many rows of complex numbers: few enough to stay in the L2 cache, which rows share with tensors.
struct Workspace {
  int64_t channels = 0, rows = 0;
};

struct FftConvProblem {
  int64_t batch, channels, seqlen;
  int gates = 0;  // 0, 1 or 2 gate tensors
  Request request;
};

struct FftConvPlan {
  int variant;
  int exact;      // row of the kernels that `variant` has not: another one on tensor cores
  int gradients;  // row of the backward kernel: either
  TreeShape tree;
  int64_t spectrum_scalars;  // per channel, of the compute type
  int64_t batch_slices;      // independent partial sums of the filter gradient
  int64_t channel_tile;      // CPU: channels whose prepared filters stay in cache together
  Workspace workspace;       // CUDA
  int whole_buffers;         // CUDA, row `exact`: so many rows fit into a thread block side by side: 0, 1 or 2
  bool whole_rows;           // CUDA: a row fits into a thread block of `variant`
  bool whole_gradients;      // CUDA: a row fits, with its gradient, into a thread block of `gradients`
  FftConvCost cost;

  // CUDA: kernel launches that rows take, chunk by chunk, when their filters are prepared.
  int launches() const { return whole_rows ? 1 : 3; }

  // Bytes of workspace for the kernels of registry.h; none on the CPU.
  int64_t filter_bytes() const { return parts(0, row_parts(1)); }
  int64_t filter_adjoint_bytes() const { return parts(0, 1); }
  int64_t conv_bytes(bool prepared) const { return parts(prepared ? 0 : 1, whole_rows ? 0 : 1); }
  int64_t backward_bytes(bool prepared) const {
    // halves of a row and of its gradient take as much as a row of floats, and little more where there is but one
    if (gradients != exact) return parts(0, whole_gradients ? 0 : workspace.rows > 1 ? 1 : 2);
    // a filter given as taps gets its gradient as such, which takes what filter_adjoint takes
    return prepared ? parts(0, row_parts(2)) : parts(2, row_parts(2) ? row_parts(2) : 1);
  }
  int64_t mixer_bytes(bool residual) const { return parts(0, (whole_rows ? 0 : 1) + (residual ? 1 : 0)); }

 private:
  int64_t parts(int channels, int rows) const {
    return (channels * workspace.channels + rows * workspace.rows) * spectrum_scalars * int64_t(sizeof(float));
  }
  // For rows that do not fit into a block `buffers` times.
  int row_parts(int buffers) const { return whole_buffers < buffers ? buffers : 0; }
};

// CUDA: partial sums of the weight gradient of a short convolution whose channels are innermost. Enough to keep a
// machine busy; a function of the sizes alone, so that the result does not depend on the machine.
constexpr int64_t depthwise_slices(int64_t channels, int64_t positions) {
  const int64_t wanted = 32768 / (channels > 0 ? channels : 1), most = (positions + 255) / 256;
  const int64_t slices = wanted < most ? wanted : most;
  return slices > 1 ? slices : 1;
}

MONARCH_API FftConvPlan plan_fft_conv(const FftConvProblem& problem, std::span<const VariantInfo> rows,
                                      const DeviceInfo& device);

}  // namespace monarch
