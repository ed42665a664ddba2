// Kernels for AVX-512 with VPOPCNTDQ. A vector holds 16 output channels in its 32-bit lanes, and activations are
// broadcast from memory, so no sum crosses lanes.
//
// A step is 64 channels, two halves of 32: x = a xor v and y = b xor w, with activations a, b and weights v, w. A full
// adder adds the bits of x and y to those of a register `ones`. Each step counts only the carries, which are worth two:
//   ones' = ones xor x xor y = ones xor (a xor b) xor (v xor w)
//   carry = majority(ones, x, y) = ones where ones and x are equal, else y, which then is not ones', since
//           ones xor x = 1 there
//   popcount(x) + popcount(y) = 2 * popcount(carry) + popcount(ones') - popcount(ones)
// Summed over all steps, only the last `ones` remains, since the first one is 0. With a xor b and v xor w precomputed,
// a step takes five instructions: an xor, two with three operands, a popcount and an add. An xor, a popcount and an add
// for each half would be six.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VPOPCNTDQ__)

#include <immintrin.h>

#include <cstring>

#include "avx512_vector.h"
#include "elementwise.h"
#include "training.h"

namespace mmgroupnet {
namespace {

constexpr int kStepChannels = 64;
constexpr int kStepBytes = 8;
constexpr int kTileColumns = 8;     // of one row
constexpr int kCountedColumns = 2;  // at once; times four vectors times two sums: 16 of 32 registers
// Replaces the halves a (low) and b of a word by a and a xor b.
uint64_t pair_halves(uint64_t word) { return word ^ word << 32; }

void expand(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels, uint8_t* activations) {
  const int words = ceil_div(channels, kWordBits);
  const uint64_t* pixel = pixels[0];
  for (int i = 0; i < columns; ++i, pixel += strides[0]) {
    for (int step = 0; step < words; ++step) {
      const uint64_t paired = pair_halves(pixel[step]);
      std::memcpy(activations, &paired, sizeof paired);
      activations += sizeof paired;
    }
  }
}

void arrange(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights) {
  for (int step = 0; step < ceil_div(channels, kStepChannels); ++step, weights += kLanes * kStepBytes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t paired = pair_halves(words[lane * stride + step]);
      const uint32_t halves[] = {static_cast<uint32_t>(paired), static_cast<uint32_t>(paired >> 32)};
      std::memcpy(weights + lane * sizeof halves[0], &halves[0], sizeof halves[0]);
      std::memcpy(weights + (kLanes + lane) * sizeof halves[0], &halves[1], sizeof halves[1]);
    }
  }
}

// Truth tables for the instructions with three operands: of (ones, a xor b, v xor w) and of (ones, x, ones').
constexpr int kXor = 0x96, kCarry = 0xd4;

// Counts the different bits of `kColumns` columns of a tile, from `first_column` on.
template <int kColumns, int kVectors>
void count_tile(const Tile& tile, int first_column, int32_t* different) {
  __m512i ones[kColumns][kVectors], twos[kColumns][kVectors];
  for (int p = 0; p < kColumns; ++p) {
    for (int v = 0; v < kVectors; ++v) ones[p][v] = twos[p][v] = _mm512_setzero_si512();
  }
  const uint8_t* weights = tile.weights;
  for (int r = 0; r < tile.num_runs; ++r) {
    const uint8_t* activations[kColumns];
    for (int p = 0; p < kColumns; ++p) activations[p] = tile.activations[first_column + p] + tile.runs[r].offset;
    for (int step = 0; step < tile.runs[r].steps; ++step) {
      for (int p = 0; p < kColumns; ++p) {
        int32_t a[2];
        std::memcpy(a, activations[p] + step * kStepBytes, sizeof a);
        const __m512i first = _mm512_set1_epi32(a[0]), both = _mm512_set1_epi32(a[1]);
        for (int v = 0; v < kVectors; ++v) {
          const __m512i x = _mm512_xor_si512(first, _mm512_load_si512(weights + v * 64));
          const __m512i both_weights = _mm512_load_si512(weights + (kLanes / kVectorLanes + v) * 64);
          const __m512i sum = _mm512_ternarylogic_epi32(ones[p][v], both, both_weights, kXor);
          const __m512i carry = _mm512_ternarylogic_epi32(ones[p][v], x, sum, kCarry);
          twos[p][v] = _mm512_add_epi32(twos[p][v], _mm512_popcnt_epi32(carry));
          ones[p][v] = sum;
        }
      }
      weights += kLanes * kStepBytes;
    }
  }
  for (int p = 0; p < kColumns; ++p) {
    for (int v = 0; v < kVectors; ++v) {
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(twos[p][v], 1), _mm512_popcnt_epi32(ones[p][v]));
      _mm512_storeu_si512(different + (first_column + p) * kLanes + v * kVectorLanes, sum);
    }
  }
}

template <int kVectors>
void count_columns(const Tile& tile, int32_t* different) {
  int first = 0;
  for (; first + kCountedColumns <= tile.columns; first += kCountedColumns) {
    count_tile<kCountedColumns, kVectors>(tile, first, different);
  }
  if (first < tile.columns) count_tile<1, kVectors>(tile, first, different);
}

void count(const Tile& tile, int32_t* different) {
  return tile.channels > 32 ? count_columns<4>(tile, different) : count_columns<2>(tile, different);
}

double ceiling(int64_t rounds) {
  constexpr int kChains = 8;
  __m512i sums[kChains], a = _mm512_set1_epi32(0x35353535);
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const __m512i w = _mm512_set1_epi32(0x0f0f0f0f);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+v"(a));  // keeps the compiler from moving the computation out of the loop
      sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(_mm512_xor_si512(a, w)));
    }
  }
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return 512.0 * kChains * static_cast<double>(rounds);
}

}  // namespace

const Kernels* avx512_kernels() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512vpopcntdq")) {
    return nullptr;
  }
  static const Kernels kernels = with_training({
      .name = "avx512",
      .tile_columns = kTileColumns,
      .rows = 1,
      .step_channels = kStepChannels,
      .step_bytes = kStepBytes,
      .step_weight_bytes = kLanes * kStepBytes,
      .pack = pack<Vector>,
      .expand = expand,
      .arrange = arrange,
      .count = count,
      .finish = finish<Vector>,
      .merge = merge,
      .gate = gate,
      .pool = pool<Vector>,
      .ceiling = ceiling,
  });
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
