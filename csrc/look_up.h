// Products by table look-up, for x86 and NEON: a step of 4 channels, for two pixels at once.
#ifndef MMGROUPNET_LOOK_UP_H_
#define MMGROUPNET_LOOK_UP_H_

#include <cstdint>

namespace mmgroupnet {
namespace {

// Row a + 16 * b holds popcount(a xor w) + 16 * popcount(b xor w) for all 16 possible weights w.
struct alignas(64) Table {
  uint8_t rows[16 * 16][16] = {};

  constexpr Table() {
    for (int ab = 0; ab < 256; ++ab) {
      for (int w = 0; w < 16; ++w) {
        rows[ab][w] = static_cast<uint8_t>(__builtin_popcount((ab % 16) ^ w) + 16 * __builtin_popcount((ab / 16) ^ w));
      }
    }
  }
};
// constexpr, so that no code initialises it: a processor without AVX2 loads files that were compiled for AVX2, too, and
// must not run any code of them.
constexpr Table table;

}  // namespace
}  // namespace mmgroupnet

#endif  // MMGROUPNET_LOOK_UP_H_
