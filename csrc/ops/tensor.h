// The torch side of the border: stable-ABI tensors, the one dtype table, and how a kernel is run over them.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <optional>
#include <vector>

#include "../kernels/args.h"
#include "../kernels/registry.h"
#include "../plan/device.h"

namespace monarch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// The one table between torch's dtypes and ours.
std::optional<Scalar> scalar_of(ScalarType dtype);
ScalarType dtype_of(Scalar s);

// Any aten operator that returns one tensor.
template <class... Args>
Tensor aten(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// out = bias + a @ b for batches of matrices (aten::baddbmm takes Scalars, which the stable dispatcher does not).
void baddbmm_out(const Tensor& bias, const Tensor& a, const Tensor& b, const Tensor& out);

// An uninitialised result; large ones on the CPU lie in huge pages where the system has them.
Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype);
inline Tensor empty(const Tensor& like, const Shape& shape) { return empty(like, shape, like.scalar_type()); }

// Contiguous, in the given dtype: the tensor itself where it is so already.
Tensor contiguous_as(const Tensor& t, ScalarType dtype);
OptTensor contiguous_as(const OptTensor& t, ScalarType dtype);
inline Tensor packed(const Tensor& t) { return contiguous_as(t, t.scalar_type()); }
inline OptTensor packed(const OptTensor& t) { return t ? contiguous_as(t, t->scalar_type()) : t; }
// The tensor itself where its innermost stride is 1, else a contiguous copy.
Tensor innermost_contiguous(const Tensor& t);

// A (B, H, L) view for kernels; of nothing when the tensor is not given.
Rows rows_of(const Tensor& t);
Rows rows_of(const OptTensor& t);

inline void* data_of(const OptTensor& t) { return t ? t->data_ptr() : nullptr; }

// What is known about the device a tensor lives on.
const DeviceInfo& device_of(const Tensor& t);
// The row of a family that computes on tensors like x: the fastest, or the given one.
template <class Family>
const Family& kernel_for(const Tensor& x, Scalar io, int64_t variant) {
  return *kernels<Family>()[choose_variant(variant_infos<Family>(), {io, false, variant}, device_of(x))];
}

void throw_on_error(const char* what);
void* current_stream(const Tensor& t);

// Runs a kernel where `like` lives: on the CPU over [0, tasks) in parallel, on CUDA once on the current stream.
template <class Args>
void run(Kernel<Args> kernel, const Args& args, int64_t tasks, int64_t grain, const Tensor& like,
         int64_t workspace_bytes = 0) {
  if (tasks == 0) return;
  if (like.is_cpu()) {
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      Exec exec;
      exec.begin = begin;
      exec.end = end;
      exec.device = &device_of(like);
      kernel(args, exec);
    });
    return;
  }
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const Tensor workspace = empty(like, {workspace_bytes}, ScalarType::Byte);
  Exec exec;
  exec.end = tasks;
  exec.stream = current_stream(like);
  exec.device = &device_of(like);
  exec.workspace = workspace.data_ptr();
  throw_on_error(kernel(args, exec));
}

}  // namespace monarch
