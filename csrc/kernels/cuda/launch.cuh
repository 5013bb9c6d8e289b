// The one place that launches: on the caller's stream, with the error checked.
#pragma once

#include "platform.cuh"

namespace monarch {

constexpr int kThreads = 256;

#if defined(__CUDACC__)
inline const char* error_text(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }
#endif

template <class... Params, class... Args>
const char* launch_with(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes, const Exec& exec,
                        const Args&... args) {
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

// With as many blocks as the device holds at once, or fewer when there are fewer tiles: blocks share the tiles.
template <class... Params, class... Args>
const char* launch_resident(void (*kernel)(Params...), int64_t tiles, int threads, int64_t shared_bytes,
                            const Exec& exec, const Args&... args) {
#if defined(__CUDACC__)
  constexpr int64_t kWithoutAsking = 48 << 10;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kWithoutAsking)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  int blocks = 0;
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes);
  if (error != cudaSuccess) return error_text(error);
#else
  constexpr int blocks = 2;
#endif
  const int64_t resident = int64_t{blocks > 0 ? blocks : 1} * exec.device->multiprocessors;
  return launch_with(kernel, tiles < resident ? tiles : resident, threads, shared_bytes, exec, args...);
}

// Blocks for one thread per item.
inline int64_t blocks_for(int64_t items) { return pieces(items, kThreads); }

}  // namespace monarch
