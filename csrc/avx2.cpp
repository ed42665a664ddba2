// Kernels for AVX2, which has no popcount of its own: products by table look-up.
#include "kernels.h"

#if defined(__AVX2__)

#include <immintrin.h>

#include "elementwise.h"
#include "look_up_x86.h"
#include "training.h"

namespace mmgroupnet {
namespace {

constexpr int kTileColumns = 2;  // times two vectors times two sums: 8 of 16 registers; with 3 columns sums are spilled

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

// The best popcount that AVX2 is known for: xor, two look-ups by nibbles, sums of bytes; that these would have to be
// widened now and then is left out.
double ceiling(int64_t rounds) {
  constexpr int kChains = 4;
  const __m256i mask = _mm256_set1_epi8(0x0f);
  const __m256i row = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.rows[0])));
  __m256i sums[kChains], a = _mm256_set1_epi8(0x35);
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+x"(a));  // the compiler must not know that it is the same vector again
      const __m256i x = _mm256_xor_si256(a, mask);
      const __m256i low = _mm256_shuffle_epi8(row, _mm256_and_si256(x, mask));
      const __m256i high = _mm256_shuffle_epi8(row, _mm256_and_si256(_mm256_srli_epi16(x, 4), mask));
      sum = _mm256_add_epi8(sum, _mm256_add_epi8(low, high));
    }
  }
  asm volatile("" : : "x"(_mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]))));
  return 256.0 * kChains * static_cast<double>(rounds);
}

}  // namespace

const Kernels* avx2_kernels() {
  if (!__builtin_cpu_supports("avx2")) return nullptr;
  static const Kernels kernels = {
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
      .relu_sums = relu_sums,
      .relu_affine = relu_affine,
      .gradient_sums = gradient_sums,
      .affine_gradient = affine_gradient,
      .branch_signs = branch_signs,
      .sign_gradient = sign_gradient,
      .connect_gradient = connect_gradient,
      .ceiling = ceiling,
  };
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
