/* Multiply-adds in registers, in enough independent chains to hide their latency: no float32 arithmetic of a core is
   faster. measure.py compiles it for the machine it is on. */
#include <stdint.h>

#if defined(__AVX512F__)
enum { LANES = 16, CHAINS = 24 };
#elif defined(__AVX__)
enum { LANES = 8, CHAINS = 12 }; /* of 16 registers */
#else
enum { LANES = 4, CHAINS = 24 };
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));

const int64_t flops_per_round = 2 * LANES * CHAINS;

/* What is returned keeps the compiler from leaving the work out. */
float multiply_add(int64_t rounds, float factor, float term) {
  Vector x[CHAINS], sum = {0};
  for (int c = 0; c < CHAINS; ++c) x[c] = (Vector){0} + (float)c;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
    for (int c = 0; c < CHAINS; ++c) x[c] = x[c] * factor + term;
  }
  for (int c = 0; c < CHAINS; ++c) sum += x[c];
  return sum[0];
}
