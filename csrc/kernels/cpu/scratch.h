// Thread-local work memory of the CPU kernels: kept between calls up to a limit, so that a model's inference
// loop neither page-faults nor allocates. Declared here, defined once outside the per-instruction-set units.
#pragma once

#include <cstdint>

namespace monarch {

void* scratch_take(int64_t bytes);  // aligned to a cache line, uninitialised
void scratch_give(void* block);

// Asks for huge pages under a block that is about to be written, where it is large enough to have one: a first touch
// then costs one page fault for 2 MB, not 512.
void prefer_huge_pages(void* block, int64_t bytes);

namespace {  // a copy per translation unit: see simd.h

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t n) : data_(static_cast<T*>(scratch_take(n * int64_t(sizeof(T))))) {}
  ~Scratch() { scratch_give(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

}  // namespace
}  // namespace monarch
