// The instructions that the kernels use (csrc/kernels/cuda/ptx.cuh), as the PTX manual defines them.
#pragma once

#include <cstdint>
#include <cstring>

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

// cp.async of 16 bytes, of which `bytes` are read. The copy happens as late as it may, in wait_for_copies(): until then
// there is nothing but a NaN at its target.
inline void copy_async(void* to, const void* from, int bytes, Site site) {
  const auto misaligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(MatrixRow) != 0; };
  if (misaligned(to) || misaligned(from) || bytes < 0 || bytes > int{sizeof(MatrixRow)})
    fail("bad asynchronous copy", site);
  *static_cast<MatrixRow*>(to) = {{~0u, ~0u, ~0u, ~0u}};
  copies_on_their_way().push_back({to, from, bytes});
}
inline void wait_for_copies() {
  if (!copies_on_their_way().empty()) let_others_go_first();
  for (const Copy& copy : copies_on_their_way()) {
    MatrixRow row{};
    std::memcpy(&row, copy.from, copy.bytes);
    *static_cast<MatrixRow*>(copy.to) = row;
  }
  copies_on_their_way().clear();
}
// Reads a byte of the line, as the sanitizers watch what is asked for.
inline void prefetch(const void* line) { static_cast<void>(*static_cast<const volatile char*>(line)); }

// The greatest of the lanes' values.
uint32_t warp_max(uint32_t value, Site site);

}  // namespace emulator
