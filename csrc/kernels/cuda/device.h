// What a CUDA device can do, queried once per device. Built without CUDA, there are none (no_device.cpp).
#pragma once

#include <string>

#include "../../plan/device.h"

namespace monarch {

// Nothing but its kind where there is no such device. Throws std::runtime_error where there is, but it does not answer.
MONARCH_API const DeviceInfo& cuda_device(int index);

MONARCH_API int cuda_device_count();
MONARCH_API std::string cuda_device_name(int index);
MONARCH_API const char* cuda_built_archs();  // "80,90a", or "" when built without CUDA

// How many blocks of a kernel a multiprocessor of the current device, this one, holds at once; also allows them that
// much shared memory. Asked once for each kernel and size. Returns an error's text, or null. Not in a build without
// CUDA.
const char* blocks_at_once(const void* kernel, int threads, int64_t shared_bytes, const DeviceInfo& device,
                           int64_t* blocks);

}  // namespace monarch
