#include "weights.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "ort.h"

namespace mmgroupnet {
namespace {

// The kernels load whole cache lines.
constexpr size_t kAlignment = 64;

// The weights in use, by their size.
struct Kept {
  std::mutex mutex;
  std::multimap<size_t, std::weak_ptr<const uint8_t>> weights;
};

// It is never freed: a session may be destroyed after the static objects of this library.
Kept& kept() {
  static Kept& found = *new Kept;
  return found;
}

}  // namespace

Weights arrange(const mmg_unit& unit, const uint8_t* bits) {
  size_t bytes = 0;
  check_kernels(mmg_arranged_bytes(&unit, &bytes));
  if (bytes == 0) throw Error({"geometry: the kernels cannot compute this unit"});
  const size_t lines = (bytes + kAlignment - 1) / kAlignment;
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, lines * kAlignment));
  if (memory == nullptr) throw std::bad_alloc();
  const Weights arranged(memory, std::free);
  check_kernels(mmg_arrange_weights(&unit, bits, memory));

  const std::lock_guard lock(kept().mutex);
  auto& weights = kept().weights;
  std::erase_if(weights, [](const auto& entry) { return entry.second.expired(); });
  const auto [first, last] = weights.equal_range(bytes);
  for (auto entry = first; entry != last; ++entry) {
    const Weights other = entry->second.lock();
    if (other != nullptr && std::memcmp(other.get(), memory, bytes) == 0) return other;
  }
  weights.emplace(bytes, arranged);
  return arranged;
}

}  // namespace mmgroupnet
