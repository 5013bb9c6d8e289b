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
};

// The first row that can run, or the forced one. Throws std::invalid_argument when there is none.
int choose_variant(std::span<const VariantInfo> rows, const Request& request, const DeviceInfo& device);

// CPU: part of a core's cache that filters may fill, so that rows can be read in the order in which they lie in memory.
constexpr int64_t kFilterCacheBytes = 128 << 10;

// CUDA: transforms that fit into the scratch memory of one thread block.
constexpr int kSpectraPerBlock = 4;

struct FftConvProblem {
  int64_t batch, channels, seqlen;
  int gates = 0;  // 0, 1 or 2 gate tensors
  Request request;
};

struct FftConvPlan {
  int variant;
  TreeShape tree;
  int64_t spectrum_scalars;  // per channel, of the compute type
  int64_t batch_slices;      // independent partial sums of the filter gradient
  int64_t channel_tile;      // CPU: channels whose prepared filters stay in cache together
  int64_t blocks;            // CUDA: thread blocks in flight, each with its own workspace
  int64_t workspace_bytes;   // CUDA: of all blocks together
  Cost cost;
};

MONARCH_API FftConvPlan plan_fft_conv(const FftConvProblem& problem, std::span<const VariantInfo> rows,
                                      const DeviceInfo& device);

}  // namespace monarch
