// What this CPU can do, queried once.
#pragma once

#include "../../plan/device.h"

namespace monarch {

MONARCH_API const DeviceInfo& host_device();

}  // namespace monarch
