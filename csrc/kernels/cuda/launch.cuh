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

// blockIdx.y is one of so many layers of blocks.
template <class... Params, class... Args>
const char* launch_with(void (*kernel)(Params...), int64_t blocks, int64_t layers, int threads, int64_t shared_bytes,
                        const Exec& exec, const Args&... args) {
  if (blocks > std::numeric_limits<int32_t>::max()) return "too many thread blocks for one launch";
#if defined(__CUDACC__)
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(layers));
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(exec.stream)>>>(args...);
  return error_text(cudaGetLastError());
#else
  return emulator::run(blocks, layers, threads, shared_bytes, exec, [&] { kernel(args...); });
#endif
}

template <class... Params, class... Args>
const char* launch(void (*kernel)(Params...), int64_t blocks, int64_t shared_bytes, const Exec& exec,
                   const Args&... args) {
  return launch_with(kernel, blocks, 1, kThreads, shared_bytes, exec, args...);
}

// With as many blocks as the device holds at once, or fewer when there are fewer tiles: the tiles are cut into as many
// shares as there are multiprocessors, and each of these into layers (Share in fft_rows.cuh). Multiprocessors that come
// to have a block of each layer then have the same number of tiles, however few these are.
template <class... Params, class... Args>
const char* launch_resident(void (*kernel)(Params...), int64_t tiles, int threads, int64_t shared_bytes,
                            const Exec& exec, const Args&... args) {
  int64_t layers = 2;
#if defined(__CUDACC__)
  const auto* const code = reinterpret_cast<const void*>(kernel);
  if (const char* error = blocks_at_once(code, threads, shared_bytes, *exec.device, &layers)) return error;
#endif
  const int64_t each = std::max<int64_t>(1, pieces(tiles, exec.device->multiprocessors));
  return launch_with(kernel, pieces(tiles, each), std::min(layers, each), threads, shared_bytes, exec, args...);
}

// Blocks for one thread per item.
inline int64_t blocks_for(int64_t items) { return pieces(items, kThreads); }

}  // namespace monarch
