// Short depthwise convolution on CUDA, both layouts. Limiting resource: memory bandwidth, so every element comes from
// memory once, in wide pieces where rows allow it, and is met again in shared memory, registers or the L1 cache.
#pragma once

#include "launch.cuh"

namespace monarch {

constexpr int kOutputs = 8;     // per thread
constexpr int kTapsAtOnce = 4;  // taps that meet the same window of inputs in registers
constexpr int kWindow = kOutputs + kTapsAtOnce - 1;
constexpr int kTapsStaged = 1024;   // whose inputs are in shared memory together
constexpr int kLanesAcross = 32;    // a warp's
constexpr int kMostThreads = 1024;  // of a block
constexpr int kVectorBytes = 16;
struct alignas(kVectorBytes) Bytes16 {
  uint32_t words[4];
};

// Blocks number their work in 32 bits, whose division takes a quarter of the instructions.
MONARCH_HD unsigned narrow(int64_t n) { return static_cast<unsigned>(n); }

// Whether position s is one of the row's.
MONARCH_DEVICE bool within(int s, int64_t length) { return narrow(s) < narrow(length); }

// Elements that go by together.
template <class Io, int N>
struct alignas(N * sizeof(Io)) Neighbours {
  Io of[N];
};

template <class Io, int N>
MONARCH_DEVICE void load_neighbours(const Io* from, float (&to)[N]) {
  const auto all = *reinterpret_cast<const Neighbours<Io, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = load(&all.of[i]);
}

MONARCH_DEVICE float activated(float v, bool silu) { return silu ? quotient(v, 1.f + expf(-v)) : v; }

// ---- what both layouts share ----------------------------------------------------------------------------------------

// N neighbouring positions of Width channels.
template <class Io, int N, int Width>
MONARCH_DEVICE void load_positions(const Io* from, int64_t stride, float (&to)[N][Width]) {
#pragma unroll
  for (int i = 0; i < N; ++i, from += stride) load_neighbours(from, to[i]);
}

// The same, zeros where that is outside of [0, length); `from` is where position s would be.
template <class Io, int N, int Width>
MONARCH_DEVICE void load_window(const Io* from, int64_t stride, int s, int64_t length, float (&to)[N][Width]) {
  if (s >= 0 && s + N <= length) return load_positions(from, stride, to);
#pragma unroll
  for (int i = 0; i < N; ++i, from += stride) {
#pragma unroll
    for (int c = 0; c < Width; ++c) to[i][c] = 0;
    if (within(s + i, length)) load_neighbours(from, to[i]);
  }
}

// Positions [begin, end) of some channels of a gradient, each of which meets x at position + shift and the next ones.
template <class Io>
struct Correlated {
  const Io *grad, *x;
  int64_t grad_stride, x_stride;
  int begin, end, shift, length;  // of x
};

// Adds to the sums of kTapsAtOnce taps what `thread` of `threads` has of them: runs of positions whose windows are
// inside of x, then single positions before and after these. In a row, where positions are neighbours, runs begin where
// gradients come in vectors.
template <bool InRow, class Io, int Width>
MONARCH_DEVICE void sum_positions(const Correlated<Io>& r, int thread, int threads, float (&sums)[kTapsAtOnce][Width]) {
  constexpr int kVector = InRow ? kVectorBytes / sizeof(Io) : 1;
  int first = r.begin > -r.shift ? r.begin : -r.shift;
  first +=
      static_cast<int>(-(reinterpret_cast<int64_t>(r.grad) / static_cast<int64_t>(sizeof(Io)) + first) & (kVector - 1));
  if (first > r.end) first = r.end;
  const int inside = r.length - r.shift - (kTapsAtOnce - 1), last = r.end < inside ? r.end : inside;
  const int runs = last > first ? (last - first) / kOutputs : 0;
  for (int run = thread; run < runs; run += threads) {
    const int t = first + run * kOutputs;
    float grad[kOutputs][Width], window[kWindow][Width];
    if constexpr (InRow) {
#pragma unroll
      for (int o = 0; o < kOutputs; o += kVector) {
        float vector[kVector];
        load_neighbours(r.grad + t + o, vector);
#pragma unroll
        for (int i = 0; i < kVector; ++i) grad[o + i][0] = vector[i];
      }
      load_positions(r.x + t + r.shift, 1, window);
    } else {
      load_positions(r.grad + t * r.grad_stride, r.grad_stride, grad);
      load_positions(r.x + (t + r.shift) * r.x_stride, r.x_stride, window);
    }
#pragma unroll
    for (int o = 0; o < kOutputs; ++o)
#pragma unroll
      for (int j = 0; j < kTapsAtOnce; ++j)
#pragma unroll
        for (int c = 0; c < Width; ++c) sums[j][c] += grad[o][c] * window[o + j][c];
  }
  const int before = first - r.begin;
#pragma unroll 1
  for (int i = thread; i < r.end - r.begin - runs * kOutputs; i += threads) {
    const int t = r.begin + i + (i < before ? 0 : runs * kOutputs);
    float grad[Width], x[Width];
    load_neighbours(r.grad + t * r.grad_stride, grad);
    const Io* from = r.x + (t + r.shift) * r.x_stride;
#pragma unroll
    for (int j = 0; j < kTapsAtOnce; ++j, from += r.x_stride) {
      if (!within(t + r.shift + j, r.length)) continue;
      load_neighbours(from, x);
#pragma unroll
      for (int c = 0; c < Width; ++c) sums[j][c] += grad[c] * x[c];
    }
  }
}

// Adds up the sums of a block's warps, lane by lane and in order, in shared memory of all of them: f(tap, column,
// total), where a column is lane * Width + channel, is called by the thread that made the total. It may keep it at
// place tap * columns + column of `shared`.
template <int Width, class F>
MONARCH_DEVICE void add_warps(const float (&sums)[kTapsAtOnce][Width], float* shared, F f) {
  constexpr int kColumns = kLanesAcross * Width, kSums = kTapsAtOnce * kColumns;
  const int column = threadIdx.x % kLanesAcross * Width, warp = threadIdx.x / kLanesAcross;
  __syncthreads();  // everybody is done with the sums of the taps before
#pragma unroll
  for (int j = 0; j < kTapsAtOnce; ++j)
#pragma unroll
    for (int c = 0; c < Width; ++c) shared[warp * kSums + j * kColumns + column + c] = sums[j][c];
  __syncthreads();
  const int all = blockDim.x * kTapsAtOnce * Width;
  for (int i = threadIdx.x; i < kSums; i += blockDim.x) {
    float total = 0;
    for (int place = i; place < all; place += kSums) total += shared[place];
    f(i / kColumns, i % kColumns, total);
  }
}

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

// A channel to a block, whose threads take `lanes` runs of a row, and further rows.
template <class Io>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMostThreads)
    depthwise_weight_grad_rows(DepthwiseWeightGradArgs a, int lanes) {
  const int64_t h = blockIdx.x;
  for (int first = 0; first < a.taps; first += kTapsAtOnce) {
    float sums[kTapsAtOnce][1] = {};
    for (int64_t b = threadIdx.x / lanes; b < a.batch; b += blockDim.x / lanes) {
      const Correlated<Io> row{.grad = given_row<const Io>(a.grad, b, h),
                               .x = given_row<const Io>(a.x, b, h),
                               .grad_stride = 1,
                               .x_stride = 1,
                               .begin = 0,
                               .end = static_cast<int>(a.out_len),
                               .shift = static_cast<int>(first - a.pad_left),
                               .length = static_cast<int>(a.seqlen)};
      sum_positions<true>(row, threadIdx.x % lanes, lanes, sums);
    }
    float* const shared = shared_memory<float>();
    add_warps(sums, shared, [&](int j, int lane, float total) { shared[j * kLanesAcross + lane] = total; });
    __syncthreads();
    const int64_t tap = first + threadIdx.x;
    if (threadIdx.x >= kTapsAtOnce || tap >= a.taps) continue;
    float total = 0;
    for (int lane = 0; lane < kLanesAcross; ++lane) total += shared[threadIdx.x * kLanesAcross + lane];
    static_cast<float*>(a.weight_grad)[h * a.taps + tap] = total;
  }
}

// ---- (B, L, H) ------------------------------------------------------------------------------------------------------

// A block takes the channels of a warp's lanes, Width neighbouring ones each; its other warps take further positions.
constexpr int kLanesAlong = kThreads / kLanesAcross;
constexpr int kPositionTile = kLanesAlong * kOutputs;
constexpr int kPair = 2;  // the width where all addresses allow it

// Whether pairs of channels lie on addresses of pairs.
template <class Io>
bool in_pairs(const Rows& rows) {
  const auto place = reinterpret_cast<int64_t>(rows.data) / static_cast<int64_t>(sizeof(Io));
  return (place | rows.batch_stride | rows.channel_stride) % kPair == 0;
}

// Calls f with the number of channels of a lane as a constant.
template <class Io, class F>
const char* with_width(int64_t channels, const Rows& one, const Rows& other, F f) {
  if (channels % kPair == 0 && in_pairs<Io>(one) && in_pairs<Io>(other)) return f(std::integral_constant<int, kPair>());
  return f(std::integral_constant<int, 1>());
}

// A thread's outputs are neighbouring positions: of their inputs the next thread finds the last ones in the L1 cache.
template <class Io, int Width>
MONARCH_KERNEL void depthwise_positions(DepthwiseArgs a, unsigned tiles, unsigned channel_tiles) {
  const unsigned tile = blockIdx.x / channel_tiles, b = tile / tiles;
  const unsigned h = (blockIdx.x % channel_tiles * kLanesAcross + threadIdx.x % kLanesAcross) * Width;
  const int begin = static_cast<int>(tile % tiles * kPositionTile + threadIdx.x / kLanesAcross * kOutputs);
  if (h >= a.channels || begin >= a.out_len) return;
  float v[kOutputs][Width];
#pragma unroll
  for (int c = 0; c < Width; ++c) {
    const float bias = a.bias ? static_cast<const float*>(a.bias)[h + c] : 0.f;
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) v[o][c] = bias;
  }
  const float* const weight = static_cast<const float*>(a.weight) + h * a.taps;
  for (int first = 0; first < a.taps; first += kTapsAtOnce) {
    const int s = begin + first - static_cast<int>(a.pad_left);
    float window[kWindow][Width];
    load_window(given_row<const Io>(a.x, b, s) + h, a.x.channel_stride, s, a.seqlen, window);
#pragma unroll
    for (int j = 0; j < kTapsAtOnce; ++j) {
      if (first + j >= a.taps) break;  // no weight of zero: what it meets may be infinite
#pragma unroll
      for (int c = 0; c < Width; ++c) {
        const float w = weight[c * a.taps + first + j];
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) v[o][c] += w * window[o + j][c];
      }
    }
  }
  Io* y = given_row<Io>(a.y, b, begin) + h;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o, y += a.y.channel_stride) {
    if (begin + o >= a.out_len) break;
    Neighbours<Io, Width> all;
#pragma unroll
    for (int c = 0; c < Width; ++c) store(&all.of[c], activated(v[o][c], a.silu));
    *reinterpret_cast<Neighbours<Io, Width>*>(y) = all;
  }
}

// Slice blockIdx.x / channel_tiles of the positions of the whole batch, to partial[slice, h, j]. A thread has registers
// as if the block were larger, so that several blocks go side by side.
template <class Io, int Width>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMostThreads)
    depthwise_weight_grad_positions(DepthwiseWeightGradArgs a, unsigned channel_tiles, float* partial) {
  const int64_t slice = blockIdx.x / channel_tiles, positions = a.batch * a.out_len;
  const int across = threadIdx.x % kLanesAcross * Width, along = threadIdx.x / kLanesAcross;
  const int64_t tile = int64_t{blockIdx.x % channel_tiles} * kLanesAcross * Width, h = tile + across;
  const int64_t begin = positions * slice / a.slices, end = positions * (slice + 1) / a.slices;
  for (int first = 0; first < a.taps; first += kTapsAtOnce) {
    float sums[kTapsAtOnce][Width] = {};
    if (begin < end && h < a.channels) {  // or there may be no outputs at all
      int64_t b = begin / a.out_len, t = begin % a.out_len;
      for (int64_t left = end - begin; left > 0; ++b, t = 0) {
        const int64_t count = left < a.out_len - t ? left : a.out_len - t;
        const Correlated<Io> rows{.grad = given_row<const Io>(a.grad, b, 0) + h,
                                  .x = given_row<const Io>(a.x, b, 0) + h,
                                  .grad_stride = a.grad.channel_stride,
                                  .x_stride = a.x.channel_stride,
                                  .begin = static_cast<int>(t),
                                  .end = static_cast<int>(t + count),
                                  .shift = static_cast<int>(first - a.pad_left),
                                  .length = static_cast<int>(a.seqlen)};
        sum_positions<false>(rows, along, kLanesAlong, sums);
        left -= count;
      }
    }
    add_warps(sums, shared_memory<float>(), [&](int j, int column, float total) {
      const int64_t channel = tile + column, tap = first + j;
      if (channel < a.channels && tap < a.taps) partial[(slice * a.channels + channel) * a.taps + tap] = total;
    });
  }
}

// out[i] = the sum of partial[slice, i] over the slices, in order.
MONARCH_KERNEL void sum_slices(const float* partial, int64_t slices, int64_t count, float* out) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float total = 0;
#pragma unroll 16  // are on their way together
  for (int64_t s = 0; s < slices; ++s) total += partial[s * count + i];
  out[i] = total;
}

// ---- the kernel table -----------------------------------------------------------------------------------------------

inline const char* run_depthwise(const DepthwiseArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    using Io = typename decltype(io)::type;
    if (!a.channels_last) {
      const int64_t tiles = pieces(a.out_len, kRowTile);
      return launch(&depthwise_rows<Io>, a.batch * a.channels * tiles, staged_bytes(a.taps, sizeof(Io)), e, a,
                    narrow(tiles));
    }
    return with_width<Io>(a.channels, a.x, a.y, [&](auto width) {
      const int64_t tiles = pieces(a.out_len, kPositionTile), across = pieces(a.channels, kLanesAcross * width);
      return launch(&depthwise_positions<Io, width>, a.batch * tiles * across, 0, e, a, narrow(tiles), narrow(across));
    });
  });
}

// Threads of a block that has a channel: more where channels are too few to fill a machine. As the number of slices, a
// function of the sizes alone, so that the result does not depend on the machine.
inline int threads_for(int64_t channels) {
  int threads = kThreads;
  while (threads < kMostThreads && channels * threads < (1 << 17)) threads *= 2;
  return threads;
}

constexpr int64_t kSumBytes = kTapsAtOnce * sizeof(float);  // of a channel of a thread

inline const char* run_depthwise_weight_grad(const DepthwiseWeightGradArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    using Io = typename decltype(io)::type;
    if (!a.channels_last) {
      const int threads = threads_for(a.channels);
      int lanes = kLanesAcross;
      while (lanes < threads && lanes * kOutputs < a.out_len) lanes *= 2;
      return launch_with(&depthwise_weight_grad_rows<Io>, a.channels, 1, threads, threads * kSumBytes, e, a, lanes);
    }
    return with_width<Io>(a.channels, a.x, a.grad, [&](auto width) -> const char* {
      const int64_t across = pieces(a.channels, kLanesAcross * width), count = a.channels * a.taps;
      float* const partial = static_cast<float*>(e.workspace);
      const char* error = launch(&depthwise_weight_grad_positions<Io, width>, a.slices * across,
                                 kThreads * kSumBytes * width, e, a, narrow(across), partial);
      return error ? error
                   : launch(&sum_slices, blocks_for(count), 0, e, partial, a.slices, count,
                            static_cast<float*>(a.weight_grad));
    });
  });
}

template <class T>
constexpr DepthwiseKernels depthwise_conv1d_kernels(VariantInfo info) {
  return {info, &run_depthwise, &run_depthwise_weight_grad};
}

}  // namespace monarch
