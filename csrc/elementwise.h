// The elementwise part of all kernels, written once for vectors of any width.
//
// `Vector` has kLanes floats and the static functions load, store, convert (of counts), set, add, multiply, maximum,
// minus_twice (a - 2 * b, of integers) and negative (a bit per lane: not greater or equal to zero). All widths give the
// same floats: no sum is reordered, and the build turns off contraction to fused multiply-adds.
#ifndef MMGROUPNET_ELEMENTWISE_H_
#define MMGROUPNET_ELEMENTWISE_H_

#include "kernels.h"

namespace mmgroupnet {
namespace {

struct Scalar {
  using Type = float;
  static constexpr int kLanes = 1;
  static float load(const float* x) { return *x; }
  static void store(float* x, float value) { *x = value; }
  template <typename Count>
  static float convert(const Count* x) {
    return static_cast<float>(*x);
  }
  static float set(float value) { return value; }
  static float add(float a, float b) { return a + b; }
  static float multiply(float a, float b) { return a * b; }
  static float maximum(float a, float b) { return a > b ? a : b; }
  static float minus_twice(float a, float b) { return a - 2.0f * b; }
  // Zero and negative zero are +1. NaN is -1, because x >= 0 is false.
  static uint64_t negative(float x) { return !(x >= 0); }
};

template <typename Vector>
typename Vector::Type before_sign(typename Vector::Type value, const float* scale, const float* shift, int c) {
  if (scale != nullptr) value = Vector::multiply(Vector::load(scale + c), value);
  if (shift != nullptr) value = Vector::add(value, Vector::load(shift + c));
  return value;
}

template <typename Vector>
uint64_t pack_range(const float* x, const float* scale, const float* shift, int first, int end) {
  uint64_t word = 0;
  for (int c = first; c < end; c += Vector::kLanes) {
    word |= Vector::negative(before_sign<Vector>(Vector::load(x + c), scale, shift, c)) << (c % kWordBits);
  }
  return word;
}

template <typename Vector>
void pack(const float* x, const float* scale, const float* shift, int channels, uint64_t* words) {
  for (int first = 0; first < channels; first += kWordBits) {
    const int end = channels - first < kWordBits ? channels : first + kWordBits;
    const int whole = end - end % Vector::kLanes;
    words[first / kWordBits] =
        pack_range<Vector>(x, scale, shift, first, whole) | pack_range<Scalar>(x, scale, shift, whole, end);
  }
}

// Let a, b in {-1,+1}^n be stored as bits (0 for +1, 1 for -1). a.b = #equal - #different = n - 2 * popcount(a xor b).
// |a.b| <= n < 2^24 (checked where weights are arranged), so the result and all intermediate values are exact as
// floats.
template <typename Vector, typename Count>
typename Vector::Type dot(const Count* different, float length, int c) {
  return Vector::minus_twice(Vector::set(length), Vector::convert(different + c));
}

template <typename Vector, typename Count>
typename Vector::Type scaled_sum(const Count* different, const Epilogue& e, int c) {
  auto sum = Vector::set(0);
  for (int base = 0; base < e.bases; ++base) {
    auto value = dot<Vector>(different + base * e.different_stride, e.length, c);
    if (e.excess != nullptr) value = Vector::add(value, Vector::convert(e.excess + base * kLanes + c));
    if (e.scale != nullptr) value = Vector::multiply(Vector::load(e.scale + base * e.scale_stride + c), value);
    sum = base == 0 ? value : Vector::add(sum, value);
  }
  return e.bias == nullptr ? sum : Vector::add(sum, Vector::load(e.bias + c));
}

// `kPlain`: one base, and no scale, bias, excess or sign parameters. This is the case in the units of a Group-Net
// block, whose scales are folded into their norms. Only a handful of instructions remain, and testing the pointers
// would double their number.
template <typename Vector, bool kPlain, typename Count>
uint64_t finish_range(const Count* different, const Epilogue& e, int first, int end) {
  uint64_t word = 0;
  const auto low = Vector::set(e.low);
  for (int c = first; c < end; c += Vector::kLanes) {
    auto value = kPlain ? dot<Vector>(different, e.length, c) : scaled_sum<Vector>(different, e, c);
    value = Vector::maximum(value, low);
    if (e.norm_scale != nullptr) {
      value = Vector::add(Vector::multiply(Vector::load(e.norm_scale + c), value), Vector::load(e.norm_shift + c));
    }
    if (e.residual != nullptr) value = Vector::add(value, Vector::load(e.residual + c));
    Vector::store(e.out + c, value);
    if (!kPlain) value = before_sign<Vector>(value, e.sign_scale, e.sign_shift, c);
    word |= Vector::negative(value) << c;
  }
  return word;
}

template <typename Vector, bool kPlain, typename Count>
void finish_pixels(const Count* different, const Epilogue& epilogue) {
  // A local copy: the compiler must assume that vector stores change an object whose address others know, and would
  // reload all its fields after each store.
  Epilogue e = epilogue;
  const int whole = e.channels - e.channels % Vector::kLanes;
  for (int pixel = 0; pixel < e.pixels; ++pixel) {
    uint64_t word = finish_range<Vector, kPlain>(different, e, 0, whole);
    if (whole != e.channels) word |= finish_range<Scalar, false>(different, e, whole, e.channels);
    if (e.word != nullptr) {
      *e.word = word;
      e.word += e.word_step;
    }
    different += e.different_step;
    e.out += e.out_step;
    if (e.residual != nullptr) e.residual += e.residual_step;
  }
}

bool is_plain(const Epilogue& e) {
  return e.bases == 1 && e.scale == nullptr && e.bias == nullptr && e.excess == nullptr && e.sign_scale == nullptr &&
         e.sign_shift == nullptr;
}

template <typename Vector, typename Count = int32_t>
void finish(const Count* different, const Epilogue& e) {
  return is_plain(e) ? finish_pixels<Vector, true>(different, e) : finish_pixels<Vector, false>(different, e);
}

void merge(const float* __restrict x, const float* __restrict scales, int branches, int channels,
           float* __restrict merged) {
  for (int c = 0; c < channels; ++c) merged[c] = scales[0] * x[c];
  for (int k = 1; k < branches; ++k) {
    const float* branch = x + static_cast<ptrdiff_t>(k) * channels;
    for (int c = 0; c < channels; ++c) merged[c] += scales[k] * branch[c];
  }
}

void gate(const float* __restrict x, const float* __restrict merged, float gate, int channels, float* __restrict out) {
  for (int c = 0; c < channels; ++c) out[c] = merged[c] + gate * (x[c] - merged[c]);
}

// NaN may be lost: if other taps are numbers, the result may be the largest of them.
template <typename Vector>
void pool_range(const float* const* taps, int num_taps, const float* scale, const float* shift, int first, int end,
                float* out) {
  for (int c = first; c < end; c += Vector::kLanes) {
    auto value = Vector::load(taps[0] + c);
    for (int i = 1; i < num_taps; ++i) value = Vector::maximum(value, Vector::load(taps[i] + c));
    if (scale != nullptr)
      value = Vector::add(Vector::multiply(Vector::load(scale + c), value), Vector::load(shift + c));
    Vector::store(out + c, value);
  }
}

template <typename Vector>
void pool(const float* const* taps, int num_taps, int channels, const float* scale, const float* shift, float* out) {
  const int whole = channels - channels % Vector::kLanes;
  pool_range<Vector>(taps, num_taps, scale, shift, 0, whole, out);
  pool_range<Scalar>(taps, num_taps, scale, shift, whole, channels, out);
}

}  // namespace
}  // namespace mmgroupnet

#endif  // MMGROUPNET_ELEMENTWISE_H_
