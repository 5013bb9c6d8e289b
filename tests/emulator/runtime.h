// The run time of the emulator: runs the thread blocks of a grid one after another on the CPU, every CUDA thread as
// a fiber. A thread runs until it waits for others or ends; the schedule decides who is next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// A line of kernel source.
struct Site {
  const char* file;
  int line;
};

// In which order threads that can run are resumed, and blocks are started.
enum class Order { forward, reverse, random };

// Holds for every launch from now on; equal seeds give equal orders.
void set_schedule(Order order, uint64_t seed);

struct LaunchConfig {
  int64_t blocks, layers, threads;     // blocks along x and along y
  int64_t shared_bytes, shared_limit;  // dynamic shared memory of a block, and what the device has
};

// Calls body once per thread. Null, or what went wrong; the text lives until the next launch.
const char* launch(const LaunchConfig& config, const std::function<void()>& body);

// ---- for the thread that is running ----

// Waits until all threads of the block have come to this barrier.
void block_barrier(Site site);

// An instruction that the 32 threads of a warp carry out together: waits until all of them have come to this place,
// then `execute` gets what each of them brought, lane by lane. It orders no memory, unless `ordering`.
constexpr int kWarp = 32;
using WarpFunction = void (*)(void* const (&lanes)[kWarp]);
void warp_instruction(Site site, void* mine, WarpFunction execute, bool ordering = false);

// Copies that the thread has begun and not waited for; there must be none when it exits.
struct Copy {
  void* to;
  const void* from;
  int bytes;
};
std::vector<Copy>& copies_on_their_way();
// Lets all others go on first that can.
void let_others_go_first();

// Ends the launch with an error that names the running thread.
[[noreturn]] void fail(const char* what, Site site);
std::byte* shared_memory();

}  // namespace emulator

// The built-in variables of the thread that is running.
extern emulator::Index threadIdx, blockIdx, blockDim, gridDim;
