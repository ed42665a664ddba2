// Reference kernels; every other set must match them bit for bit. A step is a word of 64 channels.
#include <cstring>

#include "elementwise.h"
#include "kernels.h"
#include "training.h"

namespace mmgroupnet {
namespace {

void expand(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels, uint8_t* activations) {
  const size_t bytes = sizeof(uint64_t) * ceil_div(channels, kWordBits);
  for (int i = 0; i < columns; ++i) std::memcpy(activations + i * bytes, pixels[0] + i * strides[0], bytes);
}

void arrange(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights) {
  for (int step = 0; step < ceil_div(channels, kWordBits); ++step) {
    for (int lane = 0; lane < kLanes; ++lane) {
      std::memcpy(weights, &words[lane * stride + step], sizeof(uint64_t));
      weights += sizeof(uint64_t);
    }
  }
}

void count(const Tile& tile, int32_t* different) {
  for (int p = 0; p < tile.columns; ++p) {
    int32_t* sums = different + p * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] = 0;
    const uint8_t* weights = tile.weights;
    for (int r = 0; r < tile.num_runs; ++r) {
      const uint8_t* activations = tile.activations[p] + tile.runs[r].offset;
      for (int step = 0; step < tile.runs[r].steps; ++step) {
        uint64_t a, w;
        std::memcpy(&a, activations + step * sizeof a, sizeof a);
        for (int lane = 0; lane < kLanes; ++lane) {
          std::memcpy(&w, weights + lane * sizeof w, sizeof w);
          sums[lane] += __builtin_popcountll(a ^ w);
        }
        weights += kLanes * sizeof w;
      }
    }
  }
}

double ceiling(int64_t rounds) {
  const uint64_t w = 0xfedcba9876543210;
  uint64_t a = 0x0123456789abcdef, sums[4] = {0, 0, 0, 0};
  for (int64_t i = 0; i < rounds; ++i) {
    for (uint64_t& sum : sums) {
      asm volatile("" : "+r"(a));  // keeps the compiler from moving the computation out of the loop
      sum += __builtin_popcountll(a ^ w);
    }
  }
  asm volatile("" : : "r"(sums[0] + sums[1] + sums[2] + sums[3]));
  return 4.0 * kWordBits * static_cast<double>(rounds);
}

}  // namespace

const Kernels* portable_kernels() {
  static const Kernels kernels = with_training({
      .name = "portable",
      .tile_columns = 4,
      .rows = 1,
      .step_channels = kWordBits,
      .step_bytes = sizeof(uint64_t),
      .step_weight_bytes = kLanes * sizeof(uint64_t),
      .pack = pack<Scalar>,
      .expand = expand,
      .arrange = arrange,
      .count = count,
      .finish = finish<Scalar>,
      .merge = merge,
      .gate = gate,
      .pool = pool<Scalar>,
      .ceiling = ceiling,
  });
  return &kernels;
}

}  // namespace mmgroupnet
