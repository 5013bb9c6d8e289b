// The instructions of a warp that the kernels use (csrc/kernels/cuda/ptx.cuh), as the PTX manual defines them.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace emulator {

// mma.m16n8k16 of halves with float sums: d += a b. A lane holds two neighbouring halves in each word of a and b.
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site);

// ldmatrix.x4.trans: the eight halves at `row` are a row of one of four 8 x 8 matrices, those of lanes 0 .. 7 of the
// first one and so on; r[m] gets two neighbours of a column of matrix m.
struct alignas(16) MatrixRow {
  uint32_t words[4];
};
void exchange_transposed(const MatrixRow& row, uint32_t (&r)[4], Site site);

inline void load_matrices_transposed(const void* row, uint32_t (&r)[4], Site site) {
  if (reinterpret_cast<uintptr_t>(row) % sizeof(MatrixRow)) fail("misaligned row of a matrix", site);
  // read here, where the sanitizers watch, and before other lanes have come
  const MatrixRow mine = *static_cast<const MatrixRow*>(row);
  exchange_transposed(mine, r, site);
}

// The greatest of the lanes' values.
uint32_t warp_max(uint32_t value, Site site);

}  // namespace emulator
