// monarch_emulator_selftest: small kernels, most with a planted fault that the emulator must find.
// All work on rows of 256 floats, one per block, and use 1 KiB of shared memory.
#include <iterator>
#include <utility>

#include "call.h"
#include "conformance.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace monarch {
namespace {

using emulator::Call;
namespace py = pybind11;

constexpr int kQuadFloats = sizeof(Quad) / sizeof(float);

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

  // y[t] = shared[t-1], y[0] = shared[0]
  void put_shifted() const { y[tid] = shared[tid ? tid - 1 : 0]; }
};

// y[t] = x[t-1], y[0] = x[0], through shared memory: right.
MONARCH_KERNEL void shift(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid] = row.x[row.tid];
  __syncthreads();
  row.put_shifted();
}

MONARCH_KERNEL void sum(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = block_sum(row.x[row.tid], row.shared);
}

MONARCH_KERNEL void missing_barrier(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid] = row.x[row.tid];
  row.put_shifted();
}

// The second round overwrites what slow threads have not read in the first.
MONARCH_KERNEL void missing_second_barrier(RowsArgs a) {
  const Row row(a);
  row.shared[row.tid] = row.x[row.tid];
  __syncthreads();
  row.put_shifted();
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

// ---- asynchronous copies --------------------------------------------------------------------------------------------

// A row into shared memory, by a quarter of the threads.
void copy_into(const Row& row) {
  const int quads = static_cast<int>(blockDim.x) / kQuadFloats;
  if (row.tid < quads)
    copy_async(reinterpret_cast<Quad*>(row.shared) + row.tid, row.x + kQuadFloats * row.tid, sizeof(Quad));
}

// As shift.
MONARCH_KERNEL void copy(RowsArgs a) {
  const Row row(a);
  copy_into(row);
  wait_for_copies();
  __syncthreads();
  row.put_shifted();
}

MONARCH_KERNEL void missing_wait(RowsArgs a) {
  const Row row(a);
  copy_into(row);
  __syncthreads();
  row.put_shifted();
  wait_for_copies();
}

MONARCH_KERNEL void missing_barrier_after_wait(RowsArgs a) {
  const Row row(a);
  copy_into(row);
  wait_for_copies();
  row.put_shifted();
}

// The second copy begins while slow threads still read the first one.
MONARCH_KERNEL void copy_too_early(RowsArgs a) {
  const Row row(a);
  copy_into(row);
  wait_for_copies();
  __syncthreads();
  row.put_shifted();
  copy_into(row);
  wait_for_copies();
}

MONARCH_KERNEL void copy_without_end(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = row.x[row.tid];
  copy_into(row);
}

MONARCH_KERNEL void misaligned_copy(RowsArgs a) {
  const Row row(a);
  if (row.tid == 0) copy_async(reinterpret_cast<Quad*>(row.shared), row.x + 1, sizeof(Quad));
}

MONARCH_KERNEL void copy_after_input(RowsArgs a) {
  const Row row(a);
  if (row.tid == 0) copy_async(reinterpret_cast<Quad*>(row.shared), row.x + blockDim.x, sizeof(Quad));
  wait_for_copies();
  __syncthreads();
  row.y[row.tid] = row.x[row.tid] + 0.5f * row.shared[row.tid % kQuadFloats];
}

MONARCH_KERNEL void prefetch_after_input(RowsArgs a) {
  const Row row(a);
  prefetch(row.x + blockDim.x);
  row.y[row.tid] = row.x[row.tid];
}

// ---- a warp's instructions ------------------------------------------------------------------------------------------

// The rows as 16 x 16 matrices X. The first warp of a block makes them a matrix of halves in shared memory, in which a
// Quad is half a row, then y = X X from it.
struct Square : Row {
  int lane = tid % 32, q = lane % 4, g = lane / 4;
  Quad* halves = reinterpret_cast<Quad*>(shared);
  float d[2][4] = {};  // columns 0 .. 7, and 8 .. 15

  using Row::Row;
  const Quad* operand() const { return halves + lane % 16 * 2 + lane / 16; }
  void round() const {
    for (int i = 0; i < 4; ++i) halves[lane].w[i] = pack(x[8 * lane + 2 * i], x[8 * lane + 2 * i + 1]);
  }
  Fragment left() const {
    const auto word = [&](int r, int c) { return pack(x[16 * r + c], x[16 * r + c + 1]); };
    return {word(g, 2 * q), word(g + 8, 2 * q), word(g, 2 * q + 8), word(g + 8, 2 * q + 8)};
  }
  void multiply(const Fragment& a, const uint32_t (&b)[4]) {
    mma(d[0], a, b[0], b[1]);
    mma(d[1], a, b[2], b[3]);
  }
  void store() const {
    for (int half = 0; half < 2; ++half)
      for (int i = 0; i < 4; ++i) y[16 * (g + i / 2 * 8) + 8 * half + 2 * q + i % 2] = d[half][i];
  }
};

// What each kernel does with the operands of the right one.
template <class F>
void square_by(RowsArgs a, F multiply, int operand_offset = 0) {
  Square s(a);
  if (s.tid >= 32) return;
  s.round();
  __syncwarp();
  uint32_t b[4];
  load_matrices(s.operand() + operand_offset, b);
  multiply(s, s.left(), b);
  s.store();
}
constexpr auto kRight = [](Square& s, const Fragment& f, const uint32_t (&b)[4]) { s.multiply(f, b); };

MONARCH_KERNEL void square(RowsArgs a) { square_by(a, kRight); }

MONARCH_KERNEL void wrong_fragment(RowsArgs a) {
  square_by(
      a, [](Square& s, const Fragment& f, const uint32_t (&b)[4]) { s.multiply({f.w[0], f.w[2], f.w[1], f.w[3]}, b); });
}

// Its operands are those of the matrix one word further.
MONARCH_KERNEL void fragment_off_by_one(RowsArgs a) {
  square_by(a, [](Square& s, const Fragment& f, const uint32_t (&b)[4]) { s.multiply(f, {b[1], b[2], b[3], b[0]}); });
}

MONARCH_KERNEL void matrix_after_shared(RowsArgs a) { square_by(a, kRight, 33); }

// Other lanes still read what this one overwrites.
MONARCH_KERNEL void missing_second_warp_barrier(RowsArgs a) {
  square_by(a, [](Square& s, const Fragment& f, const uint32_t (&b)[4]) {
    s.multiply(f, b);
    const uint32_t other = s.halves[s.lane ^ 1].w[0];
    s.halves[s.lane].w[0] = 0;
    s.d[0][0] += 0.f * unpack(other).low + (other ? 0.f : 1.f);
  });
}

MONARCH_KERNEL void lanes_apart(RowsArgs a) {
  square_by(a, [](Square& s, const Fragment& f, const uint32_t (&b)[4]) {
    if (s.g < 4) {
      s.multiply(f, b);
    } else {
      mma(s.d[0], f, b[0], b[1]);
    }
  });
}

MONARCH_KERNEL void missing_warp_barrier(RowsArgs a) {
  Square s(a);
  if (s.tid >= 32) return;
  s.round();
  uint32_t b[4];
  load_matrices(s.operand(), b);
  s.multiply(s.left(), b);
  s.store();
}

MONARCH_KERNEL void misaligned_matrix(RowsArgs a) {
  const Square s(a);
  uint32_t b[4];
  load_matrices(reinterpret_cast<const Quad*>(&s.operand()->w[1]), b);
}

MONARCH_KERNEL void half_a_warp(RowsArgs a) {
  const Square s(a);
  if (s.tid >= 16) return;
  __syncwarp();
}

MONARCH_KERNEL void greatest(RowsArgs a) {
  const Row row(a);
  row.y[row.tid] = float_of(warp_max(bits_of(row.x[row.tid]) & 0x7FFFFFFF));
}

// The functions of conformance.cuh, by the first warp of a block.
template <void (*kFunction)(const conformance::Words&)>
MONARCH_KERNEL void conform(RowsArgs a) {
  const Row row(a);
  if (row.tid < 32) kFunction({reinterpret_cast<const uint32_t*>(row.x), reinterpret_cast<uint32_t*>(row.y)});
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
    {"copy", &copy},
    {"missing_wait", &missing_wait},
    {"missing_barrier_after_wait", &missing_barrier_after_wait},
    {"copy_too_early", &copy_too_early},
    {"copy_without_end", &copy_without_end},
    {"misaligned_copy", &misaligned_copy},
    {"copy_after_input", &copy_after_input},
    {"prefetch_after_input", &prefetch_after_input},
    {"square", &square},
    {"missing_warp_barrier", &missing_warp_barrier},
    {"missing_second_warp_barrier", &missing_second_warp_barrier},
    {"wrong_fragment", &wrong_fragment},
    {"fragment_off_by_one", &fragment_off_by_one},
    {"misaligned_matrix", &misaligned_matrix},
    {"matrix_after_shared", &matrix_after_shared},
    {"half_a_warp", &half_a_warp},
    {"lanes_apart", &lanes_apart},
    {"greatest", &greatest},
    {"product", &conform<conformance::product>},
    {"matrices", &conform<conformance::matrices>},
    {"words", &conform<conformance::words>},
    {"products", &conform<conformance::products>},
    {"roots", &conform<conformance::roots>},
    {"copies", &conform<conformance::copies>},
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
