// The kernel table. variants.def lists the rows; CMake compiles one translation unit per row, each of which
// defines one of the structs below. The planner sees VariantInfo, the ops call through the function pointers.
#pragma once

#include <span>

#include "../plan/plan.h"
#include "args.h"

namespace monarch {

// Where and over which tasks a kernel runs.
struct Exec {
  int64_t begin = 0, end = 0;          // CPU: this thread's share of the tasks
  void* stream = nullptr;              // CUDA: the caller's current stream
  const DeviceInfo* device = nullptr;  // where it runs
  void* workspace = nullptr;           // CUDA: device scratch memory of the size the plan asked for
};

// Returns null, or what went wrong.
template <class Args>
using Kernel = const char* (*)(const Args&, const Exec&);

// A row on tensor cores takes prepared filters only, whose spectra are those of FftConvPlan::exact, and gives gradients
// of these.
struct FftConvKernels {
  VariantInfo info;
  Kernel<FftFilterArgs> filter = nullptr, filter_adjoint = nullptr;  // tasks: channels
  Kernel<FftConvArgs> conv;                                          // tasks: rows, h * B + b
  Kernel<FftConvGradArgs> backward;                                  // tasks: h * batch_slices + slice
  Kernel<MixerArgs> mixer;                                           // tasks: rows
};

struct DepthwiseKernels {
  VariantInfo info;
  Kernel<DepthwiseArgs> forward;                // tasks: rows, b * H + h; channels last: positions, b * out_len + t
  Kernel<DepthwiseWeightGradArgs> weight_grad;  // tasks: channels
};

struct MlpKernels {
  VariantInfo info;
  Kernel<GluArgs> glu;                     // tasks: rows
  Kernel<ResidualNormArgs> residual_norm;  // tasks: rows
  // All or none; a matrix library does without. Tasks: positions of the whole batch.
  Kernel<BlockMatmulArgs> block_matmul = nullptr;
  Kernel<MonarchArgs> monarch = nullptr;
  Kernel<GluMlpArgs> whole = nullptr;
  int64_t together = 0;  // positions that these compute together, as fast as one
};

// The C++ type behind a compute type, for the instantiations.
template <Scalar S>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<Scalar::f64> {
  using type = double;
};
template <Scalar S>
using Real = typename RealOf<S>::type;

// variants.def names a family by these.
using fft_conv_family = FftConvKernels;
using depthwise_conv1d_family = DepthwiseKernels;
using mlp_family = MlpKernels;

// The compiled rows of a family, in the order of variants.def.
template <class Family>
std::span<const Family* const> kernels();

template <class Family>
std::span<const VariantInfo> variant_infos();

}  // namespace monarch
