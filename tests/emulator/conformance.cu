// The functions of conformance.cuh as kernels that anybody can launch.
#include "conformance.cuh"

#define MONARCH_CONFORMANCE_KERNEL(name)                               \
  extern "C" __global__ void name(const uint32_t* in, uint32_t* out) { \
    monarch::conformance::name(monarch::conformance::Words{in, out});  \
  }

MONARCH_CONFORMANCE_KERNEL(product)
MONARCH_CONFORMANCE_KERNEL(matrices)
MONARCH_CONFORMANCE_KERNEL(words)
MONARCH_CONFORMANCE_KERNEL(products)
MONARCH_CONFORMANCE_KERNEL(roots)
MONARCH_CONFORMANCE_KERNEL(copies)
