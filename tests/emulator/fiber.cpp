#include "fiber.h"

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#error "tests/emulator/fiber.cpp knows how to switch stacks on x86-64 only"
#endif

// Saves the registers that a call must preserve on this stack, its address in *save, and continues on the other
// stack. Not swapcontext(): that makes a system call each time.
extern "C" void monarch_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl monarch_emulator_switch
.hidden monarch_emulator_switch
.type monarch_emulator_switch, @function
monarch_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size monarch_emulator_switch, .-monarch_emulator_switch
)");

// ThreadSanitizer, when it watches: a fiber is a thread to it, and switching orders nothing.
extern "C" {
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void* __tsan_create_fiber(unsigned flags);
__attribute__((weak)) void __tsan_destroy_fiber(void* fiber);
__attribute__((weak)) void __tsan_switch_to_fiber(void* fiber, unsigned flags);
}

namespace emulator {
namespace {

constexpr unsigned kOrdersNothing = 1;
void* outside_watched = nullptr;

constexpr size_t kGuardBytes = 4096, kStackBytes = 256 * 1024;

// Whoever called resume(), and the fiber it resumed: only one runs at a time.
void* outside_stack_pointer = nullptr;
Fiber* running = nullptr;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
// AddressSanitizer must be told which stack is in use.
const void* outside_stack = nullptr;
size_t outside_stack_bytes = 0;

void switch_stacks(void** save, void* load, const void* to_stack, size_t to_stack_bytes) {
  void* fake_stack = nullptr;
  if constexpr (kAddressSanitizer) __sanitizer_start_switch_fiber(&fake_stack, to_stack, to_stack_bytes);
  monarch_emulator_switch(save, load);
  if constexpr (kAddressSanitizer) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

}  // namespace

Fiber::Fiber() {
  mapping_ = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(mapping_, kGuardBytes, PROT_NONE);  // a stack that overflows crashes at once
  stack_ = static_cast<std::byte*>(mapping_) + kGuardBytes;
  if (__tsan_create_fiber) watched_ = __tsan_create_fiber(0);
}

Fiber::~Fiber() {
  if (watched_) __tsan_destroy_fiber(watched_);
  munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::start(void (*entry)()) {
  ASAN_UNPOISON_MEMORY_REGION(stack_, kStackBytes);  // of the frames of a dropped call
  entry_ = entry;
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes);
  *--top = nullptr;  // run_entry() starts as if called from here
  *--top = reinterpret_cast<void*>(&Fiber::run_entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the saved registers
  stack_pointer_ = top;
}

void Fiber::run_entry() {
  if constexpr (kAddressSanitizer) __sanitizer_finish_switch_fiber(nullptr, &outside_stack, &outside_stack_bytes);
  running->entry_();
  while (true) running->suspend();
}

void Fiber::resume() {
  running = this;
  if (watched_) {
    outside_watched = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(watched_, kOrdersNothing);
  }
  switch_stacks(&outside_stack_pointer, stack_pointer_, stack_, kStackBytes);
}

void Fiber::suspend() {
  if (watched_) __tsan_switch_to_fiber(outside_watched, kOrdersNothing);
  switch_stacks(&stack_pointer_, outside_stack_pointer, outside_stack, outside_stack_bytes);
}

}  // namespace emulator
