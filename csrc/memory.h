// Allocations that report their size when they fail. Not for files of an instruction set: see ceil_div in kernels.h.
#ifndef MMGROUPNET_MEMORY_H_
#define MMGROUPNET_MEMORY_H_

#include <cstddef>
#include <cstdlib>
#include <new>
#include <vector>

namespace mmgroupnet {

struct OutOfMemory : std::bad_alloc {
  explicit OutOfMemory(size_t bytes) : bytes(bytes) {}
  size_t bytes;
};

template <typename T>
struct Allocator {
  using value_type = T;

  Allocator() = default;
  template <typename U>
  Allocator(const Allocator<U>&) {}

  T* allocate(size_t count) {
    void* memory = std::malloc(count * sizeof(T));
    if (memory == nullptr) throw OutOfMemory(count * sizeof(T));
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) { std::free(memory); }

  bool operator==(const Allocator&) const { return true; }
};

// For arrays whose size depends on a map or a unit.
template <typename T>
using Storage = std::vector<T, Allocator<T>>;

}  // namespace mmgroupnet

#endif  // MMGROUPNET_MEMORY_H_
