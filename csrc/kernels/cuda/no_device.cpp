// Stands in for device.cu in a build without CUDA.
#include "device.h"

namespace monarch {

const DeviceInfo& cuda_device(int) {
  static const DeviceInfo none{DeviceKind::cuda, Isa::cuda};
  return none;
}
int cuda_device_count() { return 0; }
std::string cuda_device_name(int) { return ""; }
const char* cuda_built_archs() { return ""; }

}  // namespace monarch
