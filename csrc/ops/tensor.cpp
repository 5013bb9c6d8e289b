#include "tensor.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstdio>
#include <stdexcept>

#include "../kernels/cpu/host.h"
#include "../kernels/cpu/scratch.h"
#include "../kernels/cuda/device.h"

// The first two live in libtorch_cuda, which a CPU-only torch lacks, the third in torch 2.13 and newer. Weak references
// let one library load on all.
extern "C" {
__attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
__attribute__((weak)) AOTITorchError aoti_torch_cuda_baddbmm_out(AtenTensorHandle out, AtenTensorHandle self,
                                                                 AtenTensorHandle batch1, AtenTensorHandle batch2,
                                                                 double beta, double alpha);
__attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
}

namespace monarch {

std::optional<Scalar> scalar_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return Scalar::f32;
    case ScalarType::Double: return Scalar::f64;
    case ScalarType::BFloat16: return Scalar::bf16;
    case ScalarType::Half: return Scalar::f16;
    default: return std::nullopt;
  }
}

ScalarType dtype_of(Scalar s) {
  switch (s) {
    case Scalar::f32: return ScalarType::Float;
    case Scalar::f64: return ScalarType::Double;
    case Scalar::bf16: return ScalarType::BFloat16;
    default: return ScalarType::Half;
  }
}

namespace {

int64_t bytes_of(ScalarType dtype) {
  const auto scalar = scalar_of(dtype);
  return scalar ? scalar_bytes(*scalar) : dtype == ScalarType::Byte ? 1 : 8;
}

// make(), which allocates so many bytes, or a message with PyTorch's own, which on its way through a C interface loses
// its type, and before 2.13 its text; then `otherwise`.
template <class F>
Tensor allocate(double bytes, const char* otherwise, F make) {
  try {
    return make();
  } catch (const std::exception&) {
    char size[32];
    std::snprintf(size, sizeof size, "%.3g GiB", bytes / (1 << 30));
    const auto said = &torch_exception_get_what_without_backtrace;
    throw std::runtime_error("monarch_ops: could not allocate " + std::string(size) + ": " +
                             (said ? said() : otherwise));
  }
}

}  // namespace

Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype) {
  double bytes = double(bytes_of(dtype));
  for (const int64_t size : shape) bytes *= double(size);
  const Tensor t = allocate(bytes, like.is_cpu() ? "probably out of memory." : "probably CUDA out of memory.",
                            [&] { return torch::stable::new_empty(like, shape, dtype); });
  if (t.is_cpu()) prefer_huge_pages(t.data_ptr(), t.numel() * int64_t(t.element_size()));
  return t;
}

Tensor contiguous_as(const Tensor& t, ScalarType dtype) {
  const double bytes = double(bytes_of(dtype)) * double(t.numel());
  return allocate(bytes, "out of memory, or an error of what ran before", [&] {
    return torch::stable::contiguous(t.scalar_type() == dtype ? t : torch::stable::to(t, dtype));
  });
}

OptTensor contiguous_as(const OptTensor& t, ScalarType dtype) {
  OptTensor copy;
  if (t) copy = contiguous_as(*t, dtype);
  return copy;
}

Tensor innermost_contiguous(const Tensor& t) {
  return t.size(t.dim() - 1) <= 1 || t.stride(t.dim() - 1) == 1 ? t : packed(t);
}

void baddbmm_out(const Tensor& bias, const Tensor& a, const Tensor& b, const Tensor& out) {
  const auto call = out.is_cpu() ? &aoti_torch_cpu_baddbmm_out : &aoti_torch_cuda_baddbmm_out;
  TORCH_ERROR_CODE_CHECK(call(out.get(), bias.get(), a.get(), b.get(), 1.0, 1.0));
}

Rows rows_of(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }
Rows rows_of(const OptTensor& t) { return t ? rows_of(*t) : Rows{}; }

const DeviceInfo& device_of(const Tensor& t) { return t.is_cpu() ? host_device() : cuda_device(t.get_device_index()); }

void throw_on_error(const char* what) {
  if (what) throw std::runtime_error(std::string("monarch_ops: CUDA error: ") + what);
}

void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  if (&aoti_torch_get_current_cuda_stream == nullptr)
    throw std::runtime_error("monarch_ops: this PyTorch has no CUDA support");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

}  // namespace monarch
