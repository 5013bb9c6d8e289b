// monarch_emulator_selftest: small kernels, most with a planted fault that the emulator must find.
// All work on rows of 256 floats, one per block, and use 1 KiB of shared memory.
#include <iterator>
#include <utility>

#include "call.h"
#include "kernels/cuda/launch.cuh"

namespace monarch {
namespace {

using emulator::Call;
namespace py = pybind11;

struct RowsArgs {
  int64_t rows;
  const float* x;
  float* y;
};

struct Row {
  const float* x;
  float* y;
  int tid;
  float* shared;

  explicit Row(const RowsArgs& a)
      : x(a.x + blockIdx.x * blockDim.x),
        y(a.y + blockIdx.x * blockDim.x),
        tid(threadIdx.x),
        shared(shared_memory<float>()) {}
};

// y[t] = x[t-1], y[0] = x[0], through shared memory: right.
MONARCH_KERNEL void shift(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid] = row.x[row.tid];
  __syncthreads();
  row.y[row.tid] = row.shared[row.tid ? row.tid - 1 : 0];
}

MONARCH_KERNEL void sum(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = block_sum(row.x[row.tid], row.shared);
}

MONARCH_KERNEL void missing_barrier(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid] = row.x[row.tid];
  row.y[row.tid] = row.shared[row.tid ? row.tid - 1 : 0];
}

// The second round overwrites what slow threads have not read in the first.
MONARCH_KERNEL void missing_second_barrier(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid] = row.x[row.tid];
  __syncthreads();
  row.y[row.tid] = row.shared[row.tid ? row.tid - 1 : 0];
  row.shared[row.tid] = 0.f;
  __syncthreads();
  row.y[row.tid] += row.shared[row.tid];
}

MONARCH_KERNEL void early_exit(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = row.x[row.tid];
  if (blockIdx.x == 1 && row.tid == 7) return;
  __syncthreads();
}

MONARCH_KERNEL void two_barriers(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = row.x[row.tid];
  if (row.tid < 100) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

MONARCH_KERNEL void write_after_shared(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid + 1] = 1.f;
  row.y[row.tid] = row.x[row.tid];
}

MONARCH_KERNEL void write_before_shared(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid - 1] = 1.f;
  row.y[row.tid] = row.x[row.tid];
}

MONARCH_KERNEL void read_unwritten_shared(RowsArgs a) {
  const Row row(a);
  if (row.tid != 9) row.shared[row.tid] = 0.f;
  __syncthreads();
  row.y[row.tid] = row.x[row.tid] + 0.5f * row.shared[row.tid];
}

MONARCH_KERNEL void trap(RowsArgs a) {
  const Row row(a);
  if (blockIdx.x == 1 && row.tid == 5) __trap();
  row.y[row.tid] = row.x[row.tid];
}

MONARCH_KERNEL void write_after_output(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = row.x[row.tid];
  row.y[row.tid + 1] = row.x[row.tid];
}

MONARCH_KERNEL void unwritten_output(RowsArgs a) {
  const Row row(a);
  if (blockIdx.x != 1 || row.tid != 3) row.y[row.tid] = row.x[row.tid];
}

MONARCH_KERNEL void changed_input(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = row.x[row.tid];
  if (row.tid == 3) const_cast<float*>(row.x)[row.tid] = 0.f;
}

MONARCH_KERNEL void read_after_input(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = row.x[row.tid] + 0.5f * row.x[row.tid + 1];
}

struct {
  const char* name;
  void (*kernel)(RowsArgs);
} constexpr kKernels[] = {
    {"shift", &shift},
    {"sum", &sum},
    {"missing_barrier", &missing_barrier},
    {"missing_second_barrier", &missing_second_barrier},
    {"early_exit", &early_exit},
    {"two_barriers", &two_barriers},
    {"write_after_shared", &write_after_shared},
    {"write_before_shared", &write_before_shared},
    {"read_unwritten_shared", &read_unwritten_shared},
    {"trap", &trap},
    {"write_after_output", &write_after_output},
    {"unwritten_output", &unwritten_output},
    {"changed_input", &changed_input},
    {"read_after_input", &read_after_input},
};

template <size_t I>
const char* run_kernel(const RowsArgs& a, const Exec& e) {
  return launch(kKernels[I].kernel, a.rows, kThreads * sizeof(float), e, a);
}

template <size_t I>
py::dict call_kernel(const py::kwargs& arguments) {
  Call c(arguments);
  const auto shape = c.shape("x");
  const RowsArgs args{shape[0], static_cast<const float*>(c.array("x")), static_cast<float*>(c.array_out("y", shape))};
  return c.run(&run_kernel<I>, args);
}

}  // namespace

PYBIND11_MODULE(monarch_emulator_selftest, m) {
  emulator::define_schedule(m);
  [&]<size_t... I>(std::index_sequence<I...>) {
    (m.def(kKernels[I].name, &call_kernel<I>), ...);
  }(std::make_index_sequence<std::size(kKernels)>());
  m.def("bf16_to_float", py::vectorize(emulator::bf16_to_float));
  m.def("float_to_bf16", py::vectorize(emulator::float_to_bf16));
  m.def("half_to_float", py::vectorize(emulator::half_to_float));
  m.def("float_to_half", py::vectorize(emulator::float_to_half));
}

}  // namespace monarch
