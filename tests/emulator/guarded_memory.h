// Memory that shows when it is misused. It consists of spans with red zones before, between and after them, and
// every byte is 0xFF, a NaN in every floating-point format, until somebody writes it: reading what was never
// written, or outside of the spans, poisons the result, and writing outside of them is found by outside_write().
// Under AddressSanitizer the red zones cannot be touched at all.
#pragma once

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace emulator {

class GuardedMemory {
 public:
  // One span of `span_bytes` at each of the increasing offsets `starts`; the first one, if there is any, is 0.
  GuardedMemory(std::vector<int64_t> starts, int64_t span_bytes)
      : starts_(std::move(starts)),
        span_bytes_(span_bytes),
        size_(kZoneBytes + (starts_.empty() ? 0 : starts_.back() + span_bytes) + kZoneBytes),
        bytes_(static_cast<std::byte*>(::operator new(size_, kAlignment))) {
    clear();
  }
  GuardedMemory(GuardedMemory&&) = default;
  GuardedMemory& operator=(GuardedMemory&&) = default;

  std::byte* data() const { return bytes_.get() + kZoneBytes; }

  // Back to the initial state.
  void clear() {
    ASAN_UNPOISON_MEMORY_REGION(bytes_.get(), size_);
    std::memset(bytes_.get(), kFill, size_);
    for_each_zone([](std::byte* begin, std::byte* end) { ASAN_POISON_MEMORY_REGION(begin, end - begin); });
  }

  // Copies all spans from, or to, contiguous memory.
  void upload(const void* source) {
    for (size_t i = 0; i < starts_.size(); ++i)
      std::copy_n(static_cast<const std::byte*>(source) + i * span_bytes_, span_bytes_, data() + starts_[i]);
  }
  void download(void* target) const {
    for (size_t i = 0; i < starts_.size(); ++i)
      std::copy_n(data() + starts_[i], span_bytes_, static_cast<std::byte*>(target) + i * span_bytes_);
  }

  // Distance from data() of the first byte outside of the spans that was written, if any was.
  std::optional<int64_t> outside_write() {
    std::optional<int64_t> found;
    ASAN_UNPOISON_MEMORY_REGION(bytes_.get(), size_);
    for_each_zone([&](std::byte* begin, std::byte* end) {
      std::byte* const hit = std::find_if(begin, end, [](std::byte b) { return b != std::byte{kFill}; });
      if (hit != end && !found) found = hit - data();
    });
    return found;
  }

  // Number of the first element of `element_bytes` that is still as nobody has written it, if there is one.
  static std::optional<int64_t> unwritten(const void* contiguous, int64_t elements, int64_t element_bytes) {
    const auto* bytes = static_cast<const unsigned char*>(contiguous);
    for (int64_t i = 0; i < elements; ++i, bytes += element_bytes)
      if (std::all_of(bytes, bytes + element_bytes, [](unsigned char b) { return b == kFill; })) return i;
    return std::nullopt;
  }

 private:
  static constexpr unsigned char kFill = 0xFF;
  static constexpr int64_t kZoneBytes = 4096;
  static constexpr std::align_val_t kAlignment{1024};
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, kAlignment); }
  };

  template <class F>
  void for_each_zone(F f) {
    std::byte* begin = bytes_.get();
    for (const int64_t start : starts_) {
      f(begin, data() + start);
      begin = data() + start + span_bytes_;
    }
    f(begin, bytes_.get() + size_);
  }

  std::vector<int64_t> starts_;
  int64_t span_bytes_, size_;
  std::unique_ptr<std::byte, Delete> bytes_;
};

}  // namespace emulator
