// The one place that launches: on the caller's stream, with the error checked.
#pragma once

#include <algorithm>
#include <limits>

#include "device.h"
#include "platform.cuh"

namespace monarch {

constexpr int kThreads = 256;

#if defined(__CUDACC__)
inline const char* error_text(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }
#endif

template <class... Params, class... Args>
const char* launch_with(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes, const Exec& exec,
                        const Args&... args) {
  if (blocks > std::numeric_limits<int32_t>::max()) return "too many thread blocks for one launch";
#if defined(__CUDACC__)
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(exec.stream)>>>(args...);
  return error_text(cudaGetLastError());
#else
  return emulator::run(blocks, threads, shared_bytes, exec, [&] { kernel(args...); });
#endif
}

template <class... Params, class... Args>
const char* launch(void (*kernel)(Params...), int64_t blocks, int64_t shared_bytes, const Exec& exec,
                   const Args&... args) {
  return launch_with(kernel, blocks, kThreads, shared_bytes, exec, args...);
}

// With as many blocks as the device holds at once, or fewer where none gets more tiles for it: blocks share the tiles,
// and with even shares their boundaries are more often those of what tiles have in common.
template <class... Params, class... Args>
const char* launch_resident(void (*kernel)(Params...), int64_t tiles, int threads, int64_t shared_bytes,
                            const Exec& exec, const Args&... args) {
  int64_t resident = 2 * exec.device->multiprocessors;
#if defined(__CUDACC__)
  const auto* const code = reinterpret_cast<const void*>(kernel);
  if (const char* error = blocks_at_once(code, threads, shared_bytes, *exec.device, &resident)) return error;
#endif
  const int64_t most = std::max<int64_t>(1, pieces(tiles, resident));
  return launch_with(kernel, pieces(tiles, most), threads, shared_bytes, exec, args...);
}

// Blocks for one thread per item.
inline int64_t blocks_for(int64_t items) { return pieces(items, kThreads); }

}  // namespace monarch
