// The right-angle transform (math/rightangle.h) of one row by one thread block, in device memory: the radix-R
// passes of TreeShape with a barrier after each. Simple and correct for every length; it does not try to be fast.
#pragma once

#include "../math/dft.h"
#include "../math/rightangle.h"
#include "platform.cuh"

namespace monarch {

using Bin = Complex<float>;

// Runs f(i) for i in [0, n), spread over the block, then waits for all.
template <class F>
MONARCH_DEVICE void for_each(int64_t n, F f) {
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) f(i);
  __syncthreads();
}

// The angle of node `node` of a level that has `count` nodes, in tree order.
MONARCH_DEVICE Angle node_angle(const TreeShape& tree, int level, int64_t node, int64_t count) {
  Angle angle;
  for (int d = 0; d < level; ++d) {
    count /= tree.radix[d];
    angle = angle.child(static_cast<int>(node / count), tree.radix[d]);
    node %= count;
  }
  return angle;
}

template <int Radix, bool Inverse>
MONARCH_DEVICE void pass(const TreeShape& tree, int level, int64_t nodes, int64_t size, Bin* w) {
  const int64_t stride = size / Radix;
  for_each(tree.points / Radix, [&](int64_t i) {
    const int64_t node = i / stride;
    Bin* const x0 = w + node * size + i % stride;
    const Angle angle = node_angle(tree, level, node, nodes);
    Bin x[Radix];
#pragma unroll
    for (int q = 0; q < Radix; ++q) x[q] = x0[q * stride];
    if (Inverse) dft<Radix, true>(x);
#pragma unroll
    for (int q = 1; q < Radix; ++q) x[q] = twiddle<Inverse>(x[q], angle.root<float>(q, Radix));
    if (!Inverse) dft<Radix, false>(x);
#pragma unroll
    for (int q = 0; q < Radix; ++q) x0[q * stride] = x[q];
  });
}

template <bool Inverse>
MONARCH_DEVICE_CALL void transform(const TreeShape& tree, Bin* w) {
  for (int step = 0; step < tree.depth; ++step) {
    const int level = Inverse ? tree.depth - 1 - step : step;
    int64_t nodes = 1;
    for (int d = 0; d < level; ++d) nodes *= tree.radix[d];
    const int64_t size = tree.points / nodes;
    switch (tree.radix[level]) {
      case 2: pass<2, Inverse>(tree, level, nodes, size, w); break;
      case 3: pass<3, Inverse>(tree, level, nodes, size, w); break;
      case 4: pass<4, Inverse>(tree, level, nodes, size, w); break;
      case 5: pass<5, Inverse>(tree, level, nodes, size, w); break;
      default: pass<8, Inverse>(tree, level, nodes, size, w); break;
    }
  }
}

}  // namespace monarch
