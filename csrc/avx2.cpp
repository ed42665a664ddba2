// Kernels for AVX2, which has no popcount for vectors: products by table look-up.
#include "kernels.h"

#if defined(__AVX2__)

#include <immintrin.h>

#include "elementwise.h"
#include "look_up_x86.h"
#include "training.h"

namespace mmgroupnet {
namespace {

constexpr int kTileColumns = 2;  // times two vectors times two sums: 8 of 16 registers; 3 columns would spill sums

struct Vector {
  using Type = __m256;
  static constexpr int kLanes = 8;
  static __m256 load(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, __m256 value) { _mm256_storeu_ps(x, value); }
  static __m256 convert(const int32_t* x) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static __m256 set(float value) { return _mm256_set1_ps(value); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 maximum(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static __m256 minus_twice(__m256 a, __m256 b) { return _mm256_sub_ps(a, _mm256_add_ps(b, b)); }
  static uint64_t negative(__m256 x) {
    return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NGE_UQ)));
  }
};

void count(const Tile& tile, int32_t* different) {
  return tile.channels > 32 ? count_columns<Ymm, kTileColumns, 2>(tile, different)
                            : count_columns<Ymm, kTileColumns, 1>(tile, different);
}

}  // namespace

const Kernels* avx2_kernels() {
  if (!__builtin_cpu_supports("avx2")) return nullptr;
  static const Kernels kernels = with_training({
      .name = "avx2",
      .tile_columns = kTileColumns,
      .rows = kRows,
      .step_channels = kStepChannels,
      .step_bytes = kStepBytes,
      .step_weight_bytes = kLanes,
      .pack = pack<Vector>,
      .expand = expand,
      .arrange = arrange,
      .count = count,
      .finish = finish<Vector>,
      .merge = merge,
      .gate = gate,
      .pool = pool<Vector>,
      .ceiling = ceiling<Ymm>,
  });
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
