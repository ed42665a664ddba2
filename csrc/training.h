// The elementwise passes of training, written once; every instruction set compiles them for itself. Maps are NHWC, with
// K folded branches along the channels. Passes over one branch of a folded map start at its first channel and step by
// `folded` channels. With r = max(y, low) a ReLU is low = 0.
#ifndef MMGROUPNET_TRAINING_H_
#define MMGROUPNET_TRAINING_H_

#include <cmath>

#include "kernels.h"

namespace mmgroupnet {
namespace {

// sums[c] += r and sums[channels + c] += r * r. In float, for so few pixels that rounding does not matter.
void relu_sums(const int16_t* __restrict y, int low, int64_t pixels, int channels, float* __restrict sums) {
  for (int64_t i = 0; i < pixels; ++i, y += channels) {
    for (int c = 0; c < channels; ++c) {
      const float r = static_cast<float>(y[c] > low ? y[c] : low);
      sums[c] += r;
      sums[channels + c] += r * r;
    }
  }
}

// out = scale * r + shift (+ residual).
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
void gradient_sums(const float* __restrict g, const int16_t* __restrict y, int low, int64_t pixels, int channels,
                   float* __restrict sums) {
  for (int64_t i = 0; i < pixels; ++i, g += channels, y += channels) {
    for (int c = 0; c < channels; ++c) {
      sums[c] += g[c];
      sums[channels + c] += g[c] * static_cast<float>(y[c] > low ? y[c] : low);
    }
  }
}

// out = p * g + q * r + s where y > low, else 0, of one branch; sums[c] += out.
void affine_gradient(const float* __restrict g, const int16_t* __restrict y, int low, const float* __restrict p,
                     const float* __restrict q, const float* __restrict s, int64_t pixels, int folded, int channels,
                     float* __restrict out, float* __restrict sums) {
  const float lowest = static_cast<float>(low);
  for (int64_t i = 0; i < pixels; ++i, g += folded, y += folded, out += channels) {
    for (int c = 0; c < channels; ++c) {
      const float integer = static_cast<float>(y[c]);
      const float value = p[c] * g[c] + q[c] * integer + s[c];
      out[c] = integer > lowest ? value : 0.0f;
      sums[c] += out[c];
    }
  }
}

// Signs of one branch minus the padded value: beside them the padding is zero.
void padded_signs(const float* __restrict x, float padding_value, int64_t pixels, int folded, int channels,
                  float* __restrict out) {
  for (int64_t i = 0; i < pixels; ++i, x += folded, out += channels) {
    for (int c = 0; c < channels; ++c) out[c] = (x[c] >= 0 ? 1.0f : -1.0f) - padding_value;
  }
}

// out = max(0, 2 - 2 * |x|) * g (+ residual) of one branch; all but g are folded.
void sign_gradient(const float* __restrict g, const float* __restrict x, const float* __restrict residual,
                   int64_t pixels, int folded, int channels, float* __restrict out) {
  for (int64_t i = 0; i < pixels; ++i, g += channels, x += folded, out += folded) {
    for (int c = 0; c < channels; ++c) {
      const float surrogate = 2.0f - 2.0f * std::fabs(x[c]);
      const float value = (surrogate > 0.0f ? surrogate : 0.0f) * g[c];
      out[c] = residual == nullptr ? value : value + residual[c];
    }
    if (residual != nullptr) residual += folded;
  }
}

// With m = sum_j scales[j] * x_j and out_i = m + gate[i] * (x_i - m): the gradient of x is
//   gate[j] * g_j + scales[j] * h, h = sum_i (1 - gate[i]) * g_i,
// that of gate[i] the sum of g_i * (x_i - m), that of scales[j] the sum of h * x_j; the latter two per channel, added
// to `sums` (2, branches, channels). `scratch` has 2 * channels.
void connect_gradient(const float* __restrict g, const float* __restrict x, const float* __restrict gate,
                      const float* __restrict scales, int64_t pixels, int branches, int channels,
                      float* __restrict scratch, float* __restrict out, float* __restrict sums) {
  float* __restrict m = scratch;
  float* __restrict h = scratch + channels;
  const int64_t folded = static_cast<int64_t>(branches) * channels;
  for (int64_t i = 0; i < pixels; ++i, g += folded, x += folded, out += folded) {
    for (int c = 0; c < channels; ++c) m[c] = h[c] = 0;
    for (int k = 0; k < branches; ++k) {
      for (int c = 0; c < channels; ++c) {
        m[c] += scales[k] * x[k * channels + c];
        h[c] += (1.0f - gate[k]) * g[k * channels + c];
      }
    }
    for (int k = 0; k < branches; ++k) {
      float* __restrict gate_sums = sums + k * channels;
      float* __restrict scale_sums = sums + folded + k * channels;
      for (int c = 0; c < channels; ++c) {
        const float value = x[k * channels + c], gradient = g[k * channels + c];
        out[k * channels + c] = gate[k] * gradient + scales[k] * h[c];
        gate_sums[c] += gradient * (value - m[c]);
        scale_sums[c] += h[c] * value;
      }
    }
  }
}

}  // namespace
}  // namespace mmgroupnet

#endif  // MMGROUPNET_TRAINING_H_
