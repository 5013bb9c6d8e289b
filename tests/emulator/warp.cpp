#include "warp.h"

#include <algorithm>
#include <bit>

namespace emulator {
namespace {

// Half number i (0 or 1) of a word.
float half_of(uint32_t word, int i) { return static_cast<float>(std::bit_cast<_Float16>(uint16_t(word >> 16 * i))); }

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

struct Exchange {
  const uint32_t* row;
  uint32_t* r;
};

}  // namespace

void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  Product mine{d, a, {b0, b1}};
  warp_instruction(site, &mine, [](void* const(&lanes)[kWarp]) {
    float a[16][16], b[16][8];
    const auto of = [&](int lane) -> Product& { return *static_cast<Product*>(lanes[lane]); };
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane / 4, column = lane % 4 * 2;
      for (int word = 0; word < 4; ++word)
        for (int i = 0; i < 2; ++i)
          a[group + 8 * (word & 1)][column + 8 * (word >> 1) + i] = half_of(of(lane).a[word], i);
      for (int word = 0; word < 2; ++word)
        for (int i = 0; i < 2; ++i) b[column + 8 * word + i][group] = half_of(of(lane).b[word], i);
    }
    float sums[16][8] = {};  // of one product each, in order, eight side by side
    for (int row = 0; row < 16; ++row)
      for (int k = 0; k < 16; ++k)
        for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < kWarp; ++lane)
      for (int i = 0; i < 4; ++i) of(lane).d[i] += sums[lane / 4 + 8 * (i >> 1)][lane % 4 * 2 + (i & 1)];
  });
}

void exchange_transposed(const MatrixRow& row, uint32_t (&r)[4], Site site) {
  Exchange mine{row.words, r};
  warp_instruction(site, &mine, [](void* const(&lanes)[kWarp]) {
    const auto of = [&](int lane) -> Exchange& { return *static_cast<Exchange*>(lanes[lane]); };
    const auto element = [&](int matrix, int row, int column) {
      return of(8 * matrix + row).row[column / 2] >> 16 * (column % 2) & 0xFFFF;
    };
    for (int lane = 0; lane < kWarp; ++lane)
      for (int m = 0; m < 4; ++m)
        of(lane).r[m] = element(m, lane % 4 * 2, lane / 4) | element(m, lane % 4 * 2 + 1, lane / 4) << 16;
  });
}

uint32_t warp_max(uint32_t value, Site site) {
  warp_instruction(site, &value, [](void* const(&lanes)[kWarp]) {
    uint32_t greatest = 0;
    for (void* lane : lanes) greatest = std::max(greatest, *static_cast<uint32_t*>(lane));
    for (void* lane : lanes) *static_cast<uint32_t*>(lane) = greatest;
  });
  return value;
}

}  // namespace emulator
