#include "runtime.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>
#include <queue>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fiber.h"
#include "guarded_memory.h"

// ThreadSanitizer, when it watches: what comes before a release is seen by what comes after an acquire.
extern "C" {
__attribute__((weak)) void __tsan_acquire(void* address);
__attribute__((weak)) void __tsan_release(void* address);
}

emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
namespace {

enum class State { ready, at_barrier, in_warp, exited };

struct Thread {
  Fiber fiber;
  int index = 0;
  State state = State::exited;
  std::vector<Copy> copies;
};

// 32 threads at a common instruction.
struct Warp {
  int arrived = 0;
  Site site{};
  void* lanes[kWarp];
  unsigned generation = 0;  // instructions that ordered memory
  char orders[2];           // as for barriers
};

// The happens-before order of a launch: the host, then the threads of a block, with barriers among them, then the host.
char block_start, block_end, barriers[2];  // a barrier must not order what the next one does

void release(char& order) {
  if (__tsan_release) __tsan_release(&order);
}
void acquire(char& order) {
  if (__tsan_acquire) __tsan_acquire(&order);
}

// The same place may have its name at two addresses.
bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::string_view(a.file) == b.file); }

std::string name_of(Site site) {
  const std::string_view path = site.file;
  return std::string(path.substr(path.rfind('/') + 1)) + ":" + std::to_string(site.line);
}

class Machine {
 public:
  void set_schedule(Order order, uint64_t seed) { order_ = order, seed_ = seed; }
  const char* launch(const LaunchConfig& config, const std::function<void()>& body);
  void block_barrier(Site site);
  void warp_instruction(Site site, void* mine, WarpFunction execute, bool ordering);
  void let_others_go_first();
  [[noreturn]] void fail(std::string what);
  std::byte* shared_memory() const { return shared_->data(); }
  std::vector<Copy>& copies() { return current_->copies; }

 private:
  std::vector<int64_t> block_order();
  void run_block(int64_t block);
  void make_ready(Thread& thread, bool after_others = false);
  void check_block();

  Order order_ = Order::forward;
  uint64_t seed_ = 0;

  // of the launch
  LaunchConfig config_{};
  const std::function<void()>* body_ = nullptr;
  std::string error_;
  std::mt19937_64 random_;

  // of the block
  std::vector<std::unique_ptr<Thread>> threads_;  // kept from launch to launch: mapping stacks takes time
  std::optional<GuardedMemory> shared_;
  int64_t arrived_ = 0;      // threads at the barrier
  unsigned generation_ = 0;  // barriers passed
  Site barrier_site_{};
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;
  // Threads that can run; the one with the lowest priority number is next.
  using Entry = std::pair<uint64_t, int>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> ready_;
};

Machine machine;

std::string block_name() { return "block " + std::to_string(blockIdx.x + blockIdx.y * gridDim.x); }
std::string thread_name(int index) { return "thread " + std::to_string(index) + " of " + block_name(); }

const char* Machine::launch(const LaunchConfig& config, const std::function<void()>& body) {
  config_ = config;
  body_ = &body;
  error_.clear();
  random_.seed(seed_);
  if (config.blocks < 1 || config.blocks > INT32_MAX || config.layers < 1 || config.layers > UINT16_MAX ||
      config.threads < 1 || config.threads > 1024 || config.shared_bytes > config.shared_limit) {
    error_ = "launch refused: " + std::to_string(config.blocks) + " blocks of " + std::to_string(config.threads) +
             " threads with " + std::to_string(config.shared_bytes) + " bytes of shared memory";
    return error_.c_str();
  }
  blockDim = {static_cast<unsigned>(config.threads), 1, 1};
  gridDim = {static_cast<unsigned>(config.blocks), static_cast<unsigned>(config.layers), 1};
  shared_.emplace(std::vector<int64_t>{0}, config.shared_bytes);
  while (static_cast<int64_t>(threads_.size()) < config.threads) {
    threads_.push_back(std::make_unique<Thread>());
    threads_.back()->index = static_cast<int>(threads_.size()) - 1;
  }
  warps_.resize((config.threads + kWarp - 1) / kWarp);
  for (const int64_t block : block_order()) {
    run_block(block);
    if (!error_.empty()) return error_.c_str();
  }
  return nullptr;
}

std::vector<int64_t> Machine::block_order() {
  std::vector<int64_t> order(config_.blocks * config_.layers);
  std::iota(order.begin(), order.end(), 0);
  if (order_ == Order::reverse) std::reverse(order.begin(), order.end());
  if (order_ == Order::random) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

void Machine::make_ready(Thread& thread, bool after_others) {
  constexpr uint64_t kAfterOthers = uint64_t{1} << 63;
  const auto index = static_cast<uint64_t>(thread.index);
  const uint64_t turn = order_ == Order::random    ? random_() >> 1
                        : order_ == Order::reverse ? config_.threads - index
                                                   : index;
  thread.state = State::ready;
  ready_.emplace(turn + (after_others ? kAfterOthers : 0), thread.index);
}

void Machine::run_block(int64_t block) {
  blockIdx = {static_cast<unsigned>(block % config_.blocks), static_cast<unsigned>(block / config_.blocks), 0};
  shared_->clear();
  arrived_ = 0;
  ready_ = {};
  for (Warp& warp : warps_) warp.arrived = 0;
  for (int64_t i = 0; i < config_.threads; ++i) {
    threads_[i]->copies.clear();
    threads_[i]->fiber.start([] {
      acquire(block_start);
      (*machine.body_)();
      if (!machine.copies().empty())
        machine.fail("copies on their way: " + thread_name(machine.current_->index) + " has not waited for them");
      release(block_end);
      machine.current_->state = State::exited;
    });
    make_ready(*threads_[i]);
  }
  release(block_start);
  while (error_.empty() && !ready_.empty()) {
    current_ = threads_[ready_.top().second].get();
    ready_.pop();
    threadIdx = {static_cast<unsigned>(current_->index), 0, 0};
    current_->fiber.resume();
  }
  acquire(block_end);
  if (error_.empty()) check_block();
}

void Machine::check_block() {
  const auto end = threads_.begin() + config_.threads;
  const auto first = [&](State state) {
    return std::find_if(threads_.begin(), end, [&](const auto& thread) { return thread->state == state; });
  };
  // When nobody can run and somebody still waits, the others have gone.
  if (const auto waiting = first(State::in_warp); waiting != end) {
    const int index = (*waiting)->index;
    error_ = "divergent warp: " + thread_name(index) + " waits at " + name_of(warps_[index / kWarp].site) +
             ", others of its warp are elsewhere";
  } else if (const auto waiting = first(State::at_barrier); waiting != end) {
    error_ = "divergent barrier: " + thread_name((*waiting)->index) + " waits at " + name_of(barrier_site_) +
             ", thread " + std::to_string((*first(State::exited))->index) + " has exited";
  } else if (const auto offset = shared_->outside_write()) {
    error_ = block_name() + " wrote outside of its " + std::to_string(config_.shared_bytes) +
             " bytes of shared memory, at byte " + std::to_string(*offset);
  }
}

void Machine::block_barrier(Site site) {
  if (arrived_ == 0) barrier_site_ = site;
  if (!same(site, barrier_site_))
    fail("divergent barrier: " + thread_name(current_->index) + " waits at " + name_of(site) + ", others wait at " +
         name_of(barrier_site_));
  current_->state = State::at_barrier;
  char& barrier = barriers[generation_ & 1];
  release(barrier);
  if (++arrived_ == config_.threads) {
    arrived_ = 0;
    ++generation_;
    for (int64_t i = 0; i < config_.threads; ++i) make_ready(*threads_[i]);
  }
  current_->fiber.suspend();
  acquire(barrier);
}

void Machine::warp_instruction(Site site, void* mine, WarpFunction execute, bool ordering) {
  Warp& warp = warps_[current_->index / kWarp];
  if (warp.arrived == 0) warp.site = site;
  if (!same(site, warp.site))
    fail("divergent warp: " + thread_name(current_->index) + " waits at " + name_of(site) +
         ", others of its warp wait at " + name_of(warp.site));
  current_->state = State::in_warp;
  warp.lanes[current_->index % kWarp] = mine;
  char& order = warp.orders[warp.generation & 1];
  if (ordering) release(order);
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    warp.generation += ordering;
    if (execute) execute(warp.lanes);
    const int first = current_->index / kWarp * kWarp;
    for (int lane = 0; lane < kWarp; ++lane) make_ready(*threads_[first + lane]);
  }
  current_->fiber.suspend();
  if (ordering) acquire(order);
}

void Machine::let_others_go_first() {
  make_ready(*current_, true);
  current_->fiber.suspend();
}

void Machine::fail(std::string what) {
  error_ = std::move(what);
  while (true) current_->fiber.suspend();  // never resumed
}

}  // namespace

void set_schedule(Order order, uint64_t seed) { machine.set_schedule(order, seed); }
const char* launch(const LaunchConfig& config, const std::function<void()>& body) {
  return machine.launch(config, body);
}
void block_barrier(Site site) { machine.block_barrier(site); }
void warp_instruction(Site site, void* mine, WarpFunction execute, bool ordering) {
  machine.warp_instruction(site, mine, execute, ordering);
}
void let_others_go_first() { machine.let_others_go_first(); }
std::vector<Copy>& copies_on_their_way() { return machine.copies(); }
void fail(const char* what, Site site) {
  machine.fail(std::string(what) + ": " + thread_name(static_cast<int>(threadIdx.x)) + " at " + name_of(site));
}
std::byte* shared_memory() { return machine.shared_memory(); }

}  // namespace emulator
