// Memory of threads, in large pages.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_SCRATCH_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_SCRATCH_H_

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>

#include "blocks.h"

namespace prottrans_x86 {

constexpr int64_t kLargePage = 2 << 20;

// Moves memory to pages of 2 MiB where Linux (6.1 and later) supports it. An operand has
// more small pages than the TLB of a core has entries; the misses cost a tenth to a fifth
// of the time. Overwrites parts of the contents.
inline void UseLargePages(void* data, int64_t size) {
  constexpr int kCollapse = 25;  // MADV_COLLAPSE
  constexpr int kPatience = 9;   // Gives up after this many failures (fragmented memory).
  static std::atomic<int> failures{0};
  if (failures >= kPatience) return;
  const int64_t start = reinterpret_cast<int64_t>(data);
  const int64_t first = CeilDiv(start, kLargePage) * kLargePage;
  const int64_t end = (start + size) / kLargePage * kLargePage;
  if (first >= end) return;
  // Pages that were never written cannot be collapsed.
  for (int64_t page = first; page < end; page += kLargePage) {
    *reinterpret_cast<volatile char*>(page) = 0;
  }
  if (madvise(reinterpret_cast<void*>(first), end - first, kCollapse) != 0) ++failures;
}

// Thread-local memory, reused by the next call unless that needs far less.
template <int kSlot, typename T>
T* Scratch(int64_t count) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  const int64_t bytes = count * sizeof(T);
  const int64_t page = bytes < kLargePage / 4 ? 4096 : kLargePage;
  const int64_t size = CeilDiv(bytes, page) * page;
  if (size > buffer.size || (buffer.size > 2 * kLargePage && size < buffer.size / 8)) {
    std::free(buffer.data);
    buffer.data = std::aligned_alloc(page, size);
    if (buffer.data != nullptr) UseLargePages(buffer.data, size);
    buffer.size = buffer.data == nullptr ? 0 : size;
  }
  return static_cast<T*>(buffer.data);
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_SCRATCH_H_
