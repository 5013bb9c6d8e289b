// The one place that launches: on the caller's stream, with the error checked.
#pragma once

#include "platform.cuh"

namespace monarch {

constexpr int kThreads = 256;

template <class... Params, class... Args>
const char* launch(void (*kernel)(Params...), int64_t blocks, int64_t shared_bytes, const Exec& exec, Args... args) {
#if defined(__CUDACC__)
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared_bytes, static_cast<cudaStream_t>(exec.stream)>>>(args...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  return emulator::run(blocks, kThreads, shared_bytes, exec, [&] { kernel(args...); });
#endif
}

// Blocks for one thread per item.
inline int64_t blocks_for(int64_t items) { return (items + kThreads - 1) / kThreads; }

}  // namespace monarch
