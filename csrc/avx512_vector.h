// The `Vector` of elementwise.h for AVX-512.
#ifndef MMGROUPNET_AVX512_VECTOR_H_
#define MMGROUPNET_AVX512_VECTOR_H_

#include <immintrin.h>

#include <cstdint>

namespace mmgroupnet {
namespace {

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
  // 2 * b is exact, so fusing does not change the result.
  static __m512 minus_twice(__m512 a, __m512 b) { return _mm512_fnmadd_ps(_mm512_set1_ps(2.0f), b, a); }
  static uint64_t negative(__m512 x) { return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NGE_UQ); }
};

}  // namespace
}  // namespace mmgroupnet

#endif  // MMGROUPNET_AVX512_VECTOR_H_
