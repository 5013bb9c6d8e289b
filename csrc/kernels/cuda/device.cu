#include "device.h"

#include <cuda_runtime.h>

#include <deque>
#include <mutex>

namespace monarch {

const DeviceInfo& cuda_device(int index) {
  static std::mutex mutex;
  static std::deque<DeviceInfo> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const DeviceInfo& d : known)
    if (d.index == index) return d;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, index);
    return value;
  };
  DeviceInfo d;
  d.kind = DeviceKind::cuda;
  d.isa = Isa::cuda;
  d.index = index;
  d.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  d.shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  d.l2_bytes = attribute(cudaDevAttrL2CacheSize);
  d.compute_capability =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  return known.emplace_back(d);
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string cuda_device_name(int index) {
  cudaDeviceProp properties;
  return cudaGetDeviceProperties(&properties, index) == cudaSuccess ? properties.name : "";
}

const char* cuda_built_archs() { return MONARCH_CUDA_ARCHS; }

}  // namespace monarch
