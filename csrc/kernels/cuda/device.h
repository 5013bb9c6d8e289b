// What a CUDA device can do, queried once per device. Built without CUDA, there are none (no_device.cpp).
#pragma once

#include <string>

#include "../../plan/device.h"

namespace monarch {

MONARCH_API const DeviceInfo& cuda_device(int index);

MONARCH_API int cuda_device_count();
MONARCH_API std::string cuda_device_name(int index);
MONARCH_API const char* cuda_built_archs();  // "80,90a", or "" when built without CUDA

}  // namespace monarch
