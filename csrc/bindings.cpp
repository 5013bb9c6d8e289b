// monarch_ops._C: what was built, the kernel table, and the planner's decisions. No ops and no torch here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels/cpu/host.h"
#include "kernels/cuda/device.h"
#include "kernels/registry.h"

namespace py = pybind11;

namespace monarch {
namespace {

Scalar scalar_from(const std::string& name) {
  for (Scalar s : {Scalar::f32, Scalar::f64, Scalar::bf16, Scalar::f16})
    if (name == scalar_name(s)) return s;
  throw py::value_error("dtype must be float32, float64, bfloat16 or float16, got '" + name + "'");
}

const DeviceInfo& device_from(const std::string& kind, int index) {
  if (kind == "cpu") return host_device();
  if (kind == "cuda") return cuda_device(index);
  throw py::value_error("device must be cpu or cuda, got '" + kind + "'");
}

void check_there(const DeviceInfo& device, int index) {
  if (device.kind != DeviceKind::cuda) return;  // nor is CUDA begun to be used, after which no child process can
  const int count = cuda_device_count();
  if (index < 0 || index >= count)
    throw py::value_error("device cuda:" + std::to_string(index) + " is not there: the kernels see " +
                          std::to_string(count) + " CUDA devices");
}

template <class Family>
void list_rows(py::list& out, int cuda_devices) {
  int index = 0;
  for (const VariantInfo& row : variant_infos<Family>()) {
    py::dict d;
    d["family"] = row.family;
    d["index"] = index++;
    d["name"] = isa_name(row.isa);
    d["device"] = row.device == DeviceKind::cuda ? "cuda" : "cpu";
    d["compute"] = scalar_name(row.compute);
    d["precise"] = row.precise;
    d["available"] = row.device == DeviceKind::cuda ? cuda_devices > 0 : row.isa <= host_device().isa;
    out.append(d);
  }
}

py::list variants(bool ask_cuda) {
  py::list out;
  const int devices = ask_cuda ? cuda_device_count() : 0;
  list_rows<FftConvKernels>(out, devices);
  list_rows<DepthwiseKernels>(out, devices);
  list_rows<MlpKernels>(out, devices);
  return out;
}

py::dict cost_dict(const Cost& cost) {
  py::dict d;
  d["bytes"] = cost.bytes;
  d["flops"] = cost.flops;
  return d;
}

py::dict explain_fft_conv(int64_t batch, int64_t channels, int64_t seqlen, int gates, const std::string& dtype,
                          const std::string& device, int device_index, bool precise, int64_t variant) {
  if (seqlen < 1) throw py::value_error("seqlen must be at least 1, got " + std::to_string(seqlen));
  const auto rows = variant_infos<FftConvKernels>();
  const DeviceInfo& info = device_from(device, device_index);
  const Request request{scalar_from(dtype), precise, variant};
  choose_variant(rows, {request.io}, info);  // what runs on no device is refused as that, whether or not there is one
  check_there(info, device_index);
  const FftConvPlan plan = plan_fft_conv({batch, channels, seqlen, gates, request}, rows, info);
  py::dict d;
  d["variant"] = plan.variant;
  d["name"] = isa_name(rows[plan.variant].isa);
  d["compute"] = scalar_name(rows[plan.variant].compute);
  d["gradients"] = isa_name(rows[plan.gradients].isa);
  if (info.kind == DeviceKind::cuda) d["launches"] = plan.launches();
  d["points"] = plan.tree.points;
  d["radices"] = std::vector<int>(plan.tree.radix, plan.tree.radix + plan.tree.depth);
  d["codelet_points"] = plan.tree.lanes * plan.tree.codelet_vectors;
  d["spectrum_scalars"] = plan.spectrum_scalars;
  d["batch_slices"] = plan.batch_slices;
  d["prepared"] = cost_dict(plan.cost.prepared);
  d["from_taps"] = cost_dict(plan.cost.from_taps);
  d["backward"] = cost_dict(plan.cost.backward);
  return d;
}

py::dict build_info() {
  py::dict d;
  d["version"] = MONARCH_VERSION;
  d["compiler"] = MONARCH_COMPILER;
  d["torch_target"] = MONARCH_TORCH_TARGET_TEXT;
  d["cuda"] = MONARCH_NVCC;
  d["cuda_archs"] = cuda_built_archs();
  d["cpu_isa"] = isa_name(host_device().isa);
  return d;
}

py::list cuda_devices() {
  py::list out;
  for (int i = 0; i < cuda_device_count(); ++i) out.append(cuda_device_name(i));
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information, kernel table and plans of monarch_ops.";
  m.def("variants", &variants, py::arg("ask_cuda") = true,
        "Every compiled kernel: a list of dicts, in the order of csrc/kernels/variants.def.");
  m.def("explain_fft_conv", &explain_fft_conv, py::arg("batch"), py::arg("channels"), py::arg("seqlen"),
        py::arg("gates") = 0, py::arg("dtype") = "float32", py::arg("device") = "cpu", py::arg("device_index") = 0,
        py::arg("precise") = false, py::arg("variant") = -1, "The plan of one long convolution, as a dict.");
  m.def("build_info", &build_info, "What this build holds.");
  m.def("cuda_devices", &cuda_devices, "Names of the CUDA devices the kernels see.");
}

}  // namespace monarch
