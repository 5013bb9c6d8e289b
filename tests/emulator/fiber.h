// A fiber: a function with a stack of its own that can stop in the middle and be continued later. The run time makes
// one per CUDA thread.
#pragma once

#include <cstddef>

namespace emulator {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls entry on an empty stack. Whatever the fiber was in the middle of is dropped, without
  // running destructors.
  void start(void (*entry)());
  // Runs the fiber until it suspends itself or its entry returns. To be called from outside of fibers.
  void resume();
  // Goes back to whoever resumed this fiber. To be called from within it.
  void suspend();

 private:
  static void run_entry();

  void* mapping_ = nullptr;
  std::byte* stack_ = nullptr;  // lowest address
  void* stack_pointer_ = nullptr;
  void (*entry_)() = nullptr;
  void* watched_ = nullptr;  // what ThreadSanitizer knows this fiber by
};

}  // namespace emulator
