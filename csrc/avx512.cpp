// Kernels for AVX-512 with VPOPCNTDQ: 16 output channels in the 32-bit lanes of a vector, activations broadcast from
// memory, so that no sum crosses lanes. A step is 32 channels.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VPOPCNTDQ__)

#include <immintrin.h>

#include <cstring>

#include "elementwise.h"

namespace mmgroupnet {
namespace {

constexpr int kStepChannels = 32;
constexpr int kStepBytes = 4;
constexpr int kTileColumns = 6;  // of one row; times four vectors of sums, with four of weights: 28 of 32 registers
constexpr int kVectorLanes = 16;

struct Vector {
  using Type = __m512;
  static constexpr int kLanes = kVectorLanes;
  static __m512 load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* x, __m512 value) { _mm512_storeu_ps(x, value); }
  static __m512 convert(const int32_t* x) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(x)); }
  static __m512 set(float value) { return _mm512_set1_ps(value); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 maximum(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
  static uint64_t negative(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NGE_UQ); }
};

void expand(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels, uint8_t* activations) {
  const size_t bytes = static_cast<size_t>(kStepBytes) * ceil_div(channels, kStepChannels);
  for (int i = 0; i < columns; ++i) std::memcpy(activations + i * bytes, pixels[0] + i * strides[0], bytes);
}

void arrange(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights) {
  for (int step = 0; step < ceil_div(channels, kStepChannels); ++step) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t word = words[lane * stride + step / 2];
      const uint32_t bits = static_cast<uint32_t>(word >> (step % 2 * kStepChannels));
      std::memcpy(weights, &bits, sizeof bits);
      weights += sizeof bits;
    }
  }
}

template <int kColumns, int kVectors>
void count_tile(const Tile& tile, int32_t* different) {
  __m512i sums[kColumns][kVectors];
  for (int p = 0; p < kColumns; ++p) {
    for (int v = 0; v < kVectors; ++v) sums[p][v] = _mm512_setzero_si512();
  }
  const uint8_t* weights = tile.weights;
  for (int r = 0; r < tile.num_runs; ++r) {
    const uint8_t* activations[kColumns];
    for (int p = 0; p < kColumns; ++p) activations[p] = tile.activations[p] + tile.runs[r].offset;
    for (int step = 0; step < tile.runs[r].steps; ++step) {
      __m512i w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(weights + v * 64);
      weights += kLanes * kStepBytes;
      for (int p = 0; p < kColumns; ++p) {
        int32_t a;
        std::memcpy(&a, activations[p] + step * kStepBytes, sizeof a);
        const __m512i broadcast = _mm512_set1_epi32(a);
        for (int v = 0; v < kVectors; ++v) {
          sums[p][v] = _mm512_add_epi32(sums[p][v], _mm512_popcnt_epi32(_mm512_xor_si512(broadcast, w[v])));
        }
      }
    }
  }
  for (int p = 0; p < kColumns; ++p) {
    for (int v = 0; v < kVectors; ++v) _mm512_storeu_si512(different + p * kLanes + v * kVectorLanes, sums[p][v]);
  }
}

template <int kVectors>
void count_columns(const Tile& tile, int32_t* different) {
  switch (tile.columns) {
    case 1: return count_tile<1, kVectors>(tile, different);
    case 2: return count_tile<2, kVectors>(tile, different);
    case 3: return count_tile<3, kVectors>(tile, different);
    case 4: return count_tile<4, kVectors>(tile, different);
    case 5: return count_tile<5, kVectors>(tile, different);
    default: return count_tile<kTileColumns, kVectors>(tile, different);
  }
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
      asm volatile("" : "+v"(a));  // the compiler must not know that it is the same vector again
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
  static const Kernels kernels = {"avx512",      kTileColumns, 1,      kStepChannels, kStepBytes, kLanes * kStepBytes,
                                  pack<Vector>,  expand,       arrange, count,
                                  finish<Vector>, merge,       gate,    ceiling};
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
