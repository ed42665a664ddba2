// Kernels for AVX-512 without VPOPCNTDQ (Skylake to Cooper Lake): products of 64 output channels by table look-up.
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include <immintrin.h>

#include "avx512_vector.h"
#include "elementwise.h"
#include "look_up_x86.h"
#include "training.h"

namespace mmgroupnet {
namespace {

// Times two sums, plus the weights of three steps, which all columns share: they fit 32 registers.
constexpr int kTileColumns = 4;

struct Zmm {
  using Type = __m512i;
  static constexpr int kBytes = 64;
  static __m512i zero() { return _mm512_setzero_si512(); }
  static __m512i load(const uint8_t* x) { return _mm512_load_si512(x); }
  static __m512i row(const char* x) {
    return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static __m512i shuffle(__m512i row, __m512i places) { return _mm512_shuffle_epi8(row, places); }
  static __m512i add8(__m512i a, __m512i b) { return _mm512_add_epi8(a, b); }
  static __m512i sub8(__m512i a, __m512i b) { return _mm512_sub_epi8(a, b); }
  static __m512i add16(__m512i a, __m512i b) { return _mm512_add_epi16(a, b); }
  static __m512i both(__m512i a, __m512i b) { return _mm512_and_si512(a, b); }
  static __m512i differ(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
  static __m512i set8(char value) { return _mm512_set1_epi8(value); }
  static __m512i set16(short value) { return _mm512_set1_epi16(value); }
  static __m512i left4(__m512i a) { return _mm512_slli_epi16(a, 4); }
  static __m512i right4(__m512i a) { return _mm512_srli_epi16(a, 4); }
  static __m512i right8(__m512i a) { return _mm512_srli_epi16(a, 8); }
  static void widen(__m512i shorts, bool adds, int32_t* out) {
    __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(shorts));
    __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(shorts, 1));
    if (adds) {
      first = _mm512_add_epi32(first, _mm512_loadu_si512(out));
      second = _mm512_add_epi32(second, _mm512_loadu_si512(out + 32));
    }
    _mm512_storeu_si512(out, first);
    _mm512_storeu_si512(out + 32, second);
  }
};

void count(const Tile& tile, int32_t* different) {
  return tile.channels > 32 ? count_columns<Zmm, kTileColumns, 1>(tile, different)
                            : count_columns<Ymm, kTileColumns, 1>(tile, different);
}

}  // namespace

const Kernels* avx512bw_kernels() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl")) {
    return nullptr;
  }
  static const Kernels kernels = with_training({
      .name = "avx512bw",
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
      .ceiling = ceiling<Zmm>,
  });
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* avx512bw_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
