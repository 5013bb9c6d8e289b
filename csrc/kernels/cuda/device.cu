#include "device.h"

#include <cuda_runtime.h>

#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

namespace monarch {
namespace {

// The error's text, or null. CUDA would report it to whoever asks next, who has nothing to do with it.
const char* cleared(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace

const DeviceInfo& cuda_device(int index) {
  static const DeviceInfo none{DeviceKind::cuda, Isa::cuda};
  static std::mutex mutex;
  static std::deque<DeviceInfo> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const DeviceInfo& d : known)
    if (d.index == index) return d;
  int count = 0, driver = 0;
  const cudaError_t asked = cudaGetDeviceCount(&count);
  const char* const why = cleared(asked);
  // an old driver, or a child process of one that has used CUDA: not the same as a machine without
  if (why && asked != cudaErrorNoDevice && !cleared(cudaDriverGetVersion(&driver)) && driver > 0)
    throw std::runtime_error(std::string("CUDA devices do not answer: ") + why);
  if (index < 0 || index >= count) return none;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    if (const char* error = cleared(cudaDeviceGetAttribute(&value, which, index)))
      throw std::runtime_error("cannot ask CUDA device " + std::to_string(index) + " what it is: " + error);
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
  return cleared(cudaGetDeviceCount(&count)) ? 0 : count;
}

std::string cuda_device_name(int index) {
  cudaDeviceProp properties;
  return cleared(cudaGetDeviceProperties(&properties, index)) ? "" : properties.name;
}

const char* blocks_at_once(const void* kernel, int threads, int64_t shared_bytes, const DeviceInfo& device,
                           int64_t* blocks) {
  constexpr int64_t kWithoutAsking = 48 << 10;
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, int64_t>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& found = known[{kernel, device.index, threads, shared_bytes}];
  if (found == 0) {
    cudaError_t error = cudaSuccess;
    // all that the device has, whoever asks: another thread may be about to launch the same kernel with more
    if (shared_bytes > kWithoutAsking)
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(device.shared_memory));
    int per_multiprocessor = 0;
    if (error == cudaSuccess)
      error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared_bytes);
    if (const char* text = cleared(error)) return text;
    found = per_multiprocessor > 0 ? per_multiprocessor : 1;
  }
  *blocks = found;
  return nullptr;
}

const char* cuda_built_archs() { return MONARCH_CUDA_ARCHS; }

}  // namespace monarch
