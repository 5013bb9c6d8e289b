// What the design of the CUDA kernels takes for granted of a GPU, measured: the rates of what they are made of. A
// program, `probes NAME`, that prints what a probe reaches per second; built and run by probes.py.
#include <cooperative_groups.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "kernels/cuda/fft_matrix_nodes.cuh"

namespace monarch {
namespace {

constexpr int kProbeThreads = 256, kRounds = 1 << 18, kBlocksPerMultiprocessor = 2;  // a launch takes milliseconds
constexpr std::chrono::milliseconds kWarmUp{300};                                    // in which clocks rise
constexpr int64_t kL2Bytes = 24 << 20;  // about what rows between launches take on an H100
constexpr int kExchanged = 32 << 10;    // bytes of shared memory that a block of a cluster gives and gets

// Transforms of a node's way back, one after the other: a matrix of 16 x 16 complex numbers times another one.
constexpr int kTransforms = kRounds / 8;
__global__ void products(uint32_t* out) {
  const Fragment f{{threadIdx.x, 1, 2, 3}};
  const ComplexFragment matrix(f, f);
  Fragment re = f, im = f;
  for (int round = 0; round < kTransforms; ++round) transform_transposed(matrix, re, im).pack_into(re, im);
  out[blockIdx.x * blockDim.x + threadIdx.x] = re.w[0] ^ re.w[1] ^ im.w[2] ^ im.w[3];
}

// Floats to pairs of halves, whose bits are the next floats.
__global__ void packs(uint32_t* out) {
  uint32_t x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = threadIdx.x * (i + 1);
  for (int round = 0; round < kRounds / 8; ++round)
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = pack(float_of(x[i]), float_of(x[(i + 1) % 8]));
  uint32_t all = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) all ^= x[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = all;
}

// Reads and writes all of the buffer, again and again, each time another part of it by another block.
__global__ void through_l2(uint4* data, int64_t count, int rounds) {
  const int64_t all = int64_t{gridDim.x} * blockDim.x, mine = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round)
    for (int64_t i = mine; i < count; i += all) {
      const int64_t shifted = i + round * (count / rounds), at = shifted < count ? shifted : shifted - count;
      uint4 x = __ldcg(data + at);
      x.x += 1;
      __stcg(data + at, x);
    }
}

// All blocks of a cluster write to all others' shared memory.
__global__ void exchange(uint32_t* out) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  namespace cg = cooperative_groups;
  const cg::cluster_group cluster = cg::this_cluster();
  uint4* const own = shared_memory<uint4>();
  const int quads = kExchanged / sizeof(uint4), blocks = static_cast<int>(cluster.num_blocks());
  for (int i = threadIdx.x; i < quads; i += blockDim.x) own[i] = {threadIdx.x, 0, 0, 0};
  cluster.sync();
  for (int round = 0; round < kRounds / 64; ++round) {
    for (int other = 1; other < blocks; ++other) {
      uint4* const to = cluster.map_shared_rank(own, (cluster.block_rank() + other) % blocks);
      const int part = quads / (blocks - 1), first = (other - 1) * part;
      for (int i = threadIdx.x; i < part; i += blockDim.x) to[first + i] = {static_cast<uint32_t>(round), 0, 0, 0};
    }
    cluster.sync();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = own[threadIdx.x].x;
#endif
}

struct Device {
  int index, multiprocessors, major;
  uint32_t* out;
  uint4* buffer;
  cudaEvent_t before, after;

  int blocks() const { return kBlocksPerMultiprocessor * multiprocessors; }
};

// Seconds of the fastest of several launches, on a GPU that is warm.
template <class F>
cudaError_t time(const Device& d, F launch, double& seconds) {
  seconds = 1e30;
  const auto start = std::chrono::steady_clock::now();
  for (int timed = 0; timed < 6;) {
    cudaEventRecord(d.before);
    launch();
    cudaEventRecord(d.after);
    float ms = 0;
    if (const cudaError_t error = cudaEventSynchronize(d.after)) return error;
    if (const cudaError_t error = cudaGetLastError()) return error;
    cudaEventElapsedTime(&ms, d.before, d.after);
    if (std::chrono::steady_clock::now() - start < kWarmUp) continue;
    seconds = std::min(seconds, ms / 1e3), ++timed;
  }
  return cudaSuccess;
}

cudaError_t launch_clusters(const Device& d, int size) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(size), cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(d.multiprocessors / size * size), config.blockDim = kProbeThreads;
  config.dynamicSmemBytes = kExchanged, config.attrs = &cluster, config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, &exchange, d.out);
}

cudaError_t run(const char* name, const Device& d, double& rate) {
  const auto is = [&](const char* what) { return std::strcmp(name, what) == 0; };
  const double threads = double(d.blocks()) * kProbeThreads;
  double work = 0, seconds = 0;
  cudaError_t error = cudaErrorInvalidValue;
  if (is("mma")) {
    work = threads / 32 * kTransforms * (4 * 2 * 16 * 16 * 16);  // multiplications and additions of four real products
    error = time(d, [&] { products<<<d.blocks(), kProbeThreads>>>(d.out); }, seconds);
  } else if (is("pack")) {
    work = threads * kRounds;  // pairs
    error = time(d, [&] { packs<<<d.blocks(), kProbeThreads>>>(d.out); }, seconds);
  } else if (is("l2")) {
    constexpr int kTimes = 256;
    work = 2.0 * kTimes * kL2Bytes;  // bytes, read and written
    const int64_t count = kL2Bytes / sizeof(uint4);
    error = time(d, [&] { through_l2<<<4 * d.blocks(), kProbeThreads>>>(d.buffer, count, kTimes); }, seconds);
  } else if (is("cluster of 2") || is("cluster of 4")) {
    if (d.major < 9) return cudaErrorNotSupported;
    const int size = name[std::strlen(name) - 1] - '0';
    work = double(d.multiprocessors / size * size) * (kRounds / 64) * kExchanged;  // bytes written
    error = time(d, [&] { launch_clusters(d, size); }, seconds);
  }
  rate = work / seconds;
  return error;
}

// Sets `rate` to what probe `name` reaches on the current device, per second.
cudaError_t measure(const char* name, double& rate) {
  Device d{};
  if (const cudaError_t error = cudaGetDevice(&d.index)) return error;
  cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, d.index);
  cudaDeviceGetAttribute(&d.major, cudaDevAttrComputeCapabilityMajor, d.index);
  if (const cudaError_t error = cudaMalloc(&d.buffer, kL2Bytes)) return error;
  cudaMemset(d.buffer, 0, kL2Bytes);
  d.out = reinterpret_cast<uint32_t*>(d.buffer);
  cudaEventCreate(&d.before), cudaEventCreate(&d.after);
  return run(name, d, rate);
}

}  // namespace
}  // namespace monarch

int main(int count, char** arguments) {
  double rate = 0;
  const cudaError_t error = count == 2 ? monarch::measure(arguments[1], rate) : cudaErrorInvalidValue;
  if (error) return std::puts(cudaGetErrorString(error)), 1;
  std::printf("%.6e\n", rate);
}
