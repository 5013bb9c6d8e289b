// How a right-angle transform of a given length is cut into passes (kernels/cpu/fft_tree.h and
// kernels/cuda/fft_tile.cuh run it).
#pragma once

#include <cstdint>

#include "device.h"

namespace monarch {

constexpr int kMaxTreeDepth = 24;

struct TreeShape {
  int64_t points = 0;       // transform length M = lanes * codelet_vectors * product of the radices
  int lanes = 0;            // SIMD lanes: complex numbers per vector
  int codelet_vectors = 0;  // vectors transformed in registers at the end of every branch
  int depth = 0;            // number of passes; 0: a row is one codelet
  int radix[kMaxTreeDepth] = {};
  int64_t root_pitch = 0;  // distance of the root's children in the work buffer, in vectors
  bool split_twist = false;

  int64_t work_scalars() const { return depth ? 2 * lanes * root_pitch * radix[0] : 0; }
};

// The smallest supported transform of at least `length` points, in passes that suit `isa`: lanes * vectors * 2^n times
// 1, 3 or 5. One lane means CUDA, where the passes go down to single points: 16^n, n >= 1, times one of
// {2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24}.
TreeShape choose_tree(int64_t length, int lanes, Isa isa);

}  // namespace monarch
