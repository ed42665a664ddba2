// The elementwise passes of training, written once; every instruction set compiles them for itself. Maps are NHWC, with
// K branches folded into the channels. Passes over one branch of a folded map start at its first channel and step by
// `folded` channels. r = max(y, low), with low = 0 for a ReLU.
//
// Passes with sums loop over tiles of channels and, within a tile, over the pixels, so the factors and sums of a
// channel stay in registers, whether there are 16 channels or 500. Sums are added pixel by pixel, so all widths of
// vectors give the same floats.
#ifndef MMGROUPNET_TRAINING_H_
#define MMGROUPNET_TRAINING_H_

#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace mmgroupnet {
namespace {

// Compilers split vectors that are wider than a register.
typedef float Floats __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t UnsignedInts __attribute__((vector_size(64)));

// V is `Floats`, or `float` for the channels that fill no vector.
template <typename V>
constexpr int lanes() {
  return sizeof(V) / sizeof(float);
}

// Integers in the same number of lanes.
template <typename V>
using IntsOf = std::conditional_t<std::is_same_v<V, float>, int32_t, Ints>;
template <typename V>
using UnsignedIntsOf = std::conditional_t<std::is_same_v<V, float>, uint32_t, UnsignedInts>;

template <typename V, typename T>
inline V load(const T* x) {
  V value;
  std::memcpy(&value, x, sizeof(value));
  return value;
}

template <typename V>
inline IntsOf<V> load_ints(const int16_t* x) {
  if constexpr (std::is_same_v<V, float>) {
    return *x;
  } else {
    return __builtin_convertvector(load<Shorts>(x), Ints);
  }
}

template <typename V>
inline V load(const int16_t* x) {
  if constexpr (std::is_same_v<V, float>) {
    return static_cast<float>(*x);
  } else {
    return __builtin_convertvector(load_ints<V>(x), V);
  }
}

template <typename V, typename T>
inline void store(T* x, V value) {
  std::memcpy(x, &value, sizeof(value));
}

template <typename V>
inline V maximum(V a, V b) {
  return a > b ? a : b;
}

// Calls tile(V(), c, first, end) for tiles that together cover all channels and pixels: lanes<V>() channels from
// channel c on, and the pixels [first, end).
template <typename Tile>
inline void for_tiles(int64_t pixels, int channels, const Tile& tile) {
  // After 32 pixels, the next tile's cache lines have been fetched.
  constexpr int64_t kPixels = 32;
  for (int64_t first = 0; first < pixels; first += kPixels) {
    const int64_t end = first + kPixels < pixels ? first + kPixels : pixels;
    int c = 0;
    for (; c + lanes<Floats>() <= channels; c += lanes<Floats>()) tile(Floats(), c, first, end);
    for (; c < channels; ++c) tile(float(), c, first, end);
  }
}

// Adds to `sums` the exact sums of r, of the low 16 bits of r * r and of its high 16 bits, (3, channels). All these
// numbers are below 2^16, so 32 bits hold the sums of 2^15 pixels.
//
// The squares of a tile are added up modulo 2^32. This sum minus 2^16 times the sum of the high bits is the sum of the
// low bits, which is below 2^32.
void relu_sums(const int16_t* y, int low, int64_t pixels, int channels, int32_t* sums) {
  for_tiles(pixels, channels, [=](auto zero, int c, int64_t first, int64_t end) {
    using V = decltype(zero);
    using Signed = IntsOf<V>;
    using Unsigned = UnsignedIntsOf<V>;
    const Signed lowest = Signed() + low;
    Signed sum = Signed();
    Unsigned squares = Unsigned(), high = Unsigned();
    for (int64_t at = first * channels + c; at < end * channels; at += channels) {
      const Signed r = maximum(load_ints<V>(y + at), lowest);
      const Unsigned square = (Unsigned)(r * r);
      sum += r;
      squares += square;
      high += square >> 16;
    }
    int32_t* const low_sums = sums + channels;
    int32_t* const high_sums = low_sums + channels;
    store(sums + c, load<Signed>(sums + c) + sum);
    store(low_sums + c, load<Unsigned>(low_sums + c) + squares - (high << 16));
    store(high_sums + c, load<Unsigned>(high_sums + c) + high);
  });
}

// out = scale * r + shift (+ residual). It has no sums to keep, so a loop straight through the map is fastest.
void relu_affine(const int16_t* __restrict y, int low, const float* __restrict scale, const float* __restrict shift,
                 const float* __restrict residual, int64_t pixels, int channels, float* __restrict out) {
  for (int64_t i = 0; i < pixels; ++i, y += channels, out += channels) {
    if (residual == nullptr) {
      for (int c = 0; c < channels; ++c) out[c] = scale[c] * static_cast<float>(y[c] > low ? y[c] : low) + shift[c];
    } else {
      for (int c = 0; c < channels; ++c) {
        out[c] = scale[c] * static_cast<float>(y[c] > low ? y[c] : low) + shift[c] + residual[c];
      }
      residual += channels;
    }
  }
}

// sums[c] += g and sums[channels + c] += g * r.
void gradient_sums(const float* g, const int16_t* y, int low, int64_t pixels, int channels, float* sums) {
  for_tiles(pixels, channels, [=](auto zero, int c, int64_t first, int64_t end) {
    using V = decltype(zero);
    const V lowest = V() + static_cast<float>(low);
    V sum = load<V>(sums + c), products = load<V>(sums + channels + c);
    for (int64_t at = first * channels + c; at < end * channels; at += channels) {
      const V gradient = load<V>(g + at);
      sum += gradient;
      products += gradient * maximum(load<V>(y + at), lowest);
    }
    store(sums + c, sum);
    store(sums + channels + c, products);
  });
}

// out = p * g + q * r + s where y > low, else 0, of one branch.
void affine_gradient(const float* g, const int16_t* y, int low, const float* p, const float* q, const float* s,
                     int64_t pixels, int folded, int channels, float* out) {
  for_tiles(pixels, channels, [=](auto zero, int c, int64_t first, int64_t end) {
    using V = decltype(zero);
    const V lowest = V() + static_cast<float>(low);
    const V of_gradient = load<V>(p + c), of_integer = load<V>(q + c), term = load<V>(s + c);
    for (int64_t i = first; i < end; ++i) {
      const V integer = load<V>(y + i * folded + c);
      const V value = of_gradient * load<V>(g + i * folded + c) + of_integer * integer + term;
      store(out + i * channels + c, integer > lowest ? value : V());
    }
  });
}

// Signs of one branch.
void branch_signs(const float* x, int64_t pixels, int folded, int channels, float* out) {
  for_tiles(pixels, channels, [=](auto zero, int c, int64_t first, int64_t end) {
    using V = decltype(zero);
    const V positive = V() + 1.0f, negative = V() - 1.0f;
    for (int64_t i = first; i < end; ++i) {
      store(out + i * channels + c, load<V>(x + i * folded + c) >= 0.0f ? positive : negative);
    }
  });
}

// out = max(0, 2 - 2 * |x|) * g (+ residual) of one branch; all but g are folded.
void sign_gradient(const float* g, const float* x, const float* residual, int64_t pixels, int folded, int channels,
                   float* out) {
  for_tiles(pixels, channels, [=](auto zero, int c, int64_t first, int64_t end) {
    using V = decltype(zero);
    for (int64_t i = first; i < end; ++i) {
      const int64_t at = i * folded + c;
      const V value = load<V>(x + at);
      const V surrogate = 2.0f - 2.0f * maximum(value, -value);
      const V gradient = maximum(surrogate, V()) * load<V>(g + i * channels + c);
      store(out + at, residual == nullptr ? gradient : gradient + load<V>(residual + at));
    }
  });
}

// Let m = sum_j scales[j] * x_j and out_i = m + gate[i] * (x_i - m). With h = sum_i (1 - gate[i]) * g_i, the gradients
// are
//   of x_j        gate[j] * g_j + scales[j] * h
//   of gate[i]    the sum of g_i * (x_i - m)
//   of scales[j]  the sum of h * x_j
// The latter two are added to `sums` per channel, (2, branches, channels).
void connect_gradient(const float* g, const float* x, const float* gate, const float* scales, int64_t pixels,
                      int branches, int channels, float* out, float* sums) {
  const int64_t folded = static_cast<int64_t>(branches) * channels;
  for_tiles(pixels, channels, [=](auto zero, int c, int64_t first, int64_t end) {
    using V = decltype(zero);
    for (int64_t i = first; i < end; ++i) {
      const int64_t pixel = i * folded + c;
      V m = V(), h = V();
      for (int k = 0; k < branches; ++k) {
        m += scales[k] * load<V>(x + pixel + k * channels);
        h += (1.0f - gate[k]) * load<V>(g + pixel + k * channels);
      }
      for (int k = 0; k < branches; ++k) {
        const int64_t at = pixel + k * channels;
        float* gate_sums = sums + k * channels + c;
        float* scale_sums = gate_sums + folded;
        const V value = load<V>(x + at), gradient = load<V>(g + at);
        store(out + at, gate[k] * gradient + scales[k] * h);
        store(gate_sums, load<V>(gate_sums) + gradient * (value - m));
        store(scale_sums, load<V>(scale_sums) + h * value);
      }
    }
  });
}

// Returns the table with the passes of this file filled in.
Kernels with_training(Kernels kernels) {
  kernels.relu_sums = relu_sums;
  kernels.relu_affine = relu_affine;
  kernels.gradient_sums = gradient_sums;
  kernels.affine_gradient = affine_gradient;
  kernels.branch_signs = branch_signs;
  kernels.sign_gradient = sign_gradient;
  kernels.connect_gradient = connect_gradient;
  return kernels;
}

}  // namespace
}  // namespace mmgroupnet

#endif  // MMGROUPNET_TRAINING_H_
