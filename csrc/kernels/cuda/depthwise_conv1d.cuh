// Short depthwise convolution on CUDA, both layouts. Limiting resource: memory bandwidth, so every element comes from
// memory once, in wide pieces where rows allow it, and is met again in shared memory, registers or the L1 cache.
#pragma once

#include "launch.cuh"

namespace monarch {

constexpr int kOutputs = 8;        // per thread
constexpr int kTapsAtOnce = 4;     // taps whose gradients are summed in one reading of the tensors
constexpr int kTapsStaged = 1024;  // whose inputs are in shared memory together
constexpr int kVectorBytes = 16;
struct alignas(kVectorBytes) Bytes16 {
  uint32_t words[4];
};

// Blocks number their work in 32 bits, whose division takes a quarter of the instructions.
MONARCH_HD unsigned narrow(int64_t n) { return static_cast<unsigned>(n); }

// Whether position s is one of the row's.
MONARCH_DEVICE bool within(int s, int64_t length) { return narrow(s) < narrow(length); }

MONARCH_DEVICE float activated(float v, bool silu) { return silu ? v / (1.f + expf(-v)) : v; }

// ---- (B, H, L) ------------------------------------------------------------------------------------------------------

// A block takes this many neighbouring outputs of a row.
constexpr int kRowTile = kThreads * kOutputs;

// Copies x[first .. first + count) into shared memory, zeros where that is outside of [0, length), and returns where.
// Pieces keep their place within 16 bytes, so that all of it but the ends goes by in vectors.
template <class Io>
MONARCH_DEVICE const Io* stage(const Io* x, int64_t first, int count, int64_t length, unsigned char* shared) {
  constexpr int kPerVector = kVectorBytes / sizeof(Io);
  const int64_t address = reinterpret_cast<int64_t>(x) / static_cast<int64_t>(sizeof(Io)) + first;
  const int skew = static_cast<int>(address & (kPerVector - 1));
  Io* const to = reinterpret_cast<Io*>(shared);  // to[i] is x[first - skew + i]
  const Io* const from = x + (first - skew);
  for (int v = threadIdx.x; v * kPerVector < skew + count; v += blockDim.x) {
    const int64_t begin = first - skew + v * kPerVector;
    if (begin >= 0 && begin + kPerVector <= length) {
      reinterpret_cast<Bytes16*>(to)[v] = reinterpret_cast<const Bytes16*>(from)[v];
    } else {
      for (int i = 0; i < kPerVector; ++i) {
        const bool inside = begin + i >= 0 && begin + i < length;
        to[v * kPerVector + i] = inside ? from[v * kPerVector + i] : Io{};
      }
    }
  }
  __syncthreads();
  return to + skew;
}

inline int64_t staged_bytes(int64_t taps, int64_t io_bytes) {
  const int64_t count = kRowTile + (taps < kTapsStaged ? taps : kTapsStaged) - 1;
  return (pieces(count * io_bytes, kVectorBytes) + 1) * kVectorBytes;  // one more for what precedes the first
}

template <class Io>
MONARCH_KERNEL void depthwise_rows(DepthwiseArgs a, unsigned tiles) {
  const unsigned row = blockIdx.x / tiles, b = row / narrow(a.channels), h = row % narrow(a.channels);
  const int64_t begin = int64_t{blockIdx.x % tiles} * kRowTile, left = a.out_len - begin;
  const int count = static_cast<int>(left < kRowTile ? left : kRowTile);
  const float* const weight = static_cast<const float*>(a.weight) + h * a.taps;
  const float bias = a.bias ? static_cast<const float*>(a.bias)[h] : 0.f;
  float v[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) v[o] = bias;
  for (int64_t first = 0; first < a.taps; first += kTapsStaged) {
    const int taps = static_cast<int>(a.taps - first < kTapsStaged ? a.taps - first : kTapsStaged);
    if (first > 0) __syncthreads();  // everybody is done with what was staged before
    const Io* const x = stage(row_of<const Io>(a.x, b, h), begin - a.pad_left + first, count + taps - 1, a.seqlen,
                              shared_memory<unsigned char>());
    for (int j = 0; j < taps; ++j) {
      const float w = weight[first + j];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o)  // past `count` too, of what is then not stored
        v[o] += w * load(x + threadIdx.x + o * kThreads + j);
    }
  }
  Io* const y = row_of<Io>(a.y, b, h) + begin;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const int t = threadIdx.x + o * kThreads;
    if (t < count) store(y + t, activated(v[o], a.silu));
  }
}

// weight_grad, taps [first, first + kTapsAtOnce) of the channel.
template <class Io>
MONARCH_DEVICE void sum_rows(const DepthwiseWeightGradArgs& a, int64_t h, int64_t first, float (&sums)[kTapsAtOnce]) {
  for (int64_t b = 0; b < a.batch; ++b) {
    const Io *x = row_of<const Io>(a.x, b, h), *grad = row_of<const Io>(a.grad, b, h);
    for (int t = threadIdx.x; t < a.out_len; t += blockDim.x) {
      const float g = load(grad + t);
#pragma unroll
      for (int j = 0; j < kTapsAtOnce; ++j) {
        const int s = t + static_cast<int>(first - a.pad_left) + j;
        if (within(s, a.seqlen)) sums[j] += g * load(x + s);
      }
    }
  }
}

template <class Io>
MONARCH_KERNEL void depthwise_weight_grad_rows(DepthwiseWeightGradArgs a) {
  const int64_t h = blockIdx.x;
  for (int64_t first = 0; first < a.taps; first += kTapsAtOnce) {
    float sums[kTapsAtOnce] = {};
    sum_rows<Io>(a, h, first, sums);
#pragma unroll
    for (int j = 0; j < kTapsAtOnce; ++j) {
      const float total = block_sum(sums[j], shared_memory<float>());
      if (threadIdx.x == 0 && first + j < a.taps) static_cast<float*>(a.weight_grad)[h * a.taps + first + j] = total;
    }
  }
}

// ---- (B, L, H) ------------------------------------------------------------------------------------------------------

// A block takes kLanesAcross neighbouring channels; its other threads take further positions.
constexpr int kLanesAcross = 32, kLanesAlong = kThreads / kLanesAcross;
constexpr int kPositionTile = kLanesAlong * kOutputs;

// A thread's outputs are neighbouring positions of one channel: what one reads the next ones find in the L1 cache.
template <class Io>
MONARCH_KERNEL void depthwise_positions(DepthwiseArgs a, unsigned tiles, unsigned channel_tiles) {
  const unsigned tile = blockIdx.x / channel_tiles, b = tile / tiles;
  const unsigned h = blockIdx.x % channel_tiles * kLanesAcross + threadIdx.x % kLanesAcross;
  const int begin = static_cast<int>(tile % tiles * kPositionTile + threadIdx.x / kLanesAcross * kOutputs);
  if (h >= a.channels) return;
  const Io* const x = row_of<const Io>(a.x, b, 0) + h;
  const float bias = a.bias ? static_cast<const float*>(a.bias)[h] : 0.f;
  float v[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) v[o] = bias;
  for (int64_t j = 0; j < a.taps; ++j) {
    const float w = static_cast<const float*>(a.weight)[h * a.taps + j];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const int s = begin + o + static_cast<int>(j - a.pad_left);
      if (within(s, a.seqlen)) v[o] += w * load(x + s * a.x.channel_stride);
    }
  }
  Io* const y = row_of<Io>(a.y, b, 0) + h;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)
    if (begin + o < a.out_len) store(y + (begin + o) * a.y.channel_stride, activated(v[o], a.silu));
}

// Slice blockIdx.x / channel_tiles of the positions of the whole batch, to partial[slice, h, j].
template <class Io>
MONARCH_KERNEL void depthwise_weight_grad_positions(DepthwiseWeightGradArgs a, unsigned channel_tiles, float* partial) {
  float* const shared = shared_memory<float>();
  const int64_t slice = blockIdx.x / channel_tiles, positions = a.batch * a.out_len;
  const int across = threadIdx.x % kLanesAcross, along = threadIdx.x / kLanesAcross;
  const int64_t h = blockIdx.x % channel_tiles * kLanesAcross + across;
  const int64_t begin = positions * slice / a.slices, end = positions * (slice + 1) / a.slices;
  for (int64_t first = 0; first < a.taps; first += kTapsAtOnce) {
    float sums[kTapsAtOnce] = {};
    const int64_t length = a.out_len > 0 ? a.out_len : 1;  // without outputs nothing is summed
    int64_t b = (begin + along) / length, t = (begin + along) % length;
    for (int64_t i = begin + along; i < end && h < a.channels; i += kLanesAlong, t += kLanesAlong) {
      while (t >= a.out_len) t -= a.out_len, ++b;
      const float g = load(row_of<const Io>(a.grad, b, t) + h);
#pragma unroll
      for (int j = 0; j < kTapsAtOnce; ++j) {
        const int s = static_cast<int>(t - a.pad_left + first) + j;
        if (within(s, a.seqlen)) sums[j] += g * load(row_of<const Io>(a.x, b, s) + h);
      }
    }
#pragma unroll
    for (int j = 0; j < kTapsAtOnce; ++j) {
      shared[threadIdx.x] = sums[j];
      __syncthreads();
      if (along == 0 && h < a.channels && first + j < a.taps) {
        float total = 0;
        for (int i = 0; i < kLanesAlong; ++i) total += shared[i * kLanesAcross + across];
        partial[(slice * a.channels + h) * a.taps + first + j] = total;
      }
      __syncthreads();
    }
  }
}

// out[i] = the sum of partial[slice, i] over the slices, in order.
MONARCH_KERNEL void sum_slices(const float* partial, int64_t slices, int64_t count, float* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float total = 0;
  for (int64_t s = 0; s < slices; ++s) total += partial[s * count + i];
  out[i] = total;
}

// ---- the kernel table -----------------------------------------------------------------------------------------------

inline const char* run_depthwise(const DepthwiseArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    using Io = typename decltype(io)::type;
    if (a.channels_last) {
      const int64_t tiles = pieces(a.out_len, kPositionTile), across = pieces(a.channels, kLanesAcross);
      return launch(&depthwise_positions<Io>, a.batch * tiles * across, 0, e, a, narrow(tiles), narrow(across));
    }
    const int64_t tiles = pieces(a.out_len, kRowTile);
    return launch(&depthwise_rows<Io>, a.batch * a.channels * tiles, staged_bytes(a.taps, sizeof(Io)), e, a,
                  narrow(tiles));
  });
}

inline const char* run_depthwise_weight_grad(const DepthwiseWeightGradArgs& a, const Exec& e) {
  constexpr int64_t kShared = kThreads * sizeof(float);
  return with_io(a.io, [&](auto io) -> const char* {
    using Io = typename decltype(io)::type;
    if (!a.channels_last) return launch(&depthwise_weight_grad_rows<Io>, a.channels, kShared, e, a);
    const int64_t across = pieces(a.channels, kLanesAcross), count = a.channels * a.taps;
    float* const partial = static_cast<float*>(e.workspace);
    const char* error =
        launch(&depthwise_weight_grad_positions<Io>, a.slices * across, kShared, e, a, narrow(across), partial);
    return error ? error
                 : launch(&sum_slices, blocks_for(count), 0, e, partial, a.slices, count,
                          static_cast<float*>(a.weight_grad));
  });
}

template <class T>
constexpr DepthwiseKernels depthwise_conv1d_kernels(VariantInfo info) {
  return {info, &run_depthwise, &run_depthwise_weight_grad};
}

}  // namespace monarch
