#include "scratch.h"

#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace monarch {
namespace {

constexpr int64_t kKeep = int64_t(8) << 20;  // bytes a thread keeps
constexpr int64_t kHuge = int64_t(2) << 20;  // blocks of at least this size ask for huge pages

struct Block {
  void* data;
  int64_t bytes;
};

std::align_val_t alignment(int64_t bytes) { return std::align_val_t(bytes >= kHuge ? kHuge : 64); }

class Pool {
 public:
  ~Pool() {
    for (const Block& b : free_) release(b);
  }

  void* take(int64_t bytes) {
    for (size_t i = 0; i < free_.size(); ++i) {
      if (free_[i].bytes < bytes) continue;
      used_.push_back(free_[i]);
      free_.erase(free_.begin() + int64_t(i));
      return used_.back().data;
    }
    Block b{nullptr, (bytes + 4095) / 4096 * 4096};
    b.data = ::operator new(b.bytes, alignment(b.bytes));
    prefer_huge_pages(b.data, b.bytes);
    used_.push_back(b);
    return b.data;
  }

  void give(void* data) {
    for (size_t i = 0; i < used_.size(); ++i) {
      if (used_[i].data != data) continue;
      const Block b = used_[i];
      used_.erase(used_.begin() + int64_t(i));
      free_.push_back(b);
      int64_t kept = 0;
      for (const Block& f : free_) kept += f.bytes;
      while (kept > kKeep) {  // the oldest go first
        kept -= free_.front().bytes;
        release(free_.front());
        free_.erase(free_.begin());
      }
      return;
    }
  }

 private:
  static void release(const Block& b) { ::operator delete(b.data, alignment(b.bytes)); }
  std::vector<Block> free_, used_;
};

Pool& pool() {
  thread_local Pool p;
  return p;
}

}  // namespace

void* scratch_take(int64_t bytes) { return pool().take(bytes); }
void scratch_give(void* block) { pool().give(block); }

void prefer_huge_pages([[maybe_unused]] void* block, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  if (bytes < kHuge) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(block) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(block) + uintptr_t(bytes);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a refusal changes nothing
#endif
}

}  // namespace monarch
