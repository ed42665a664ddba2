// The arithmetic of batch norms behind the integers of a convolution, per channel, in double. Derivation:
// mmgroupnet/layers/lean/batch_norm.py.
#include <algorithm>
#include <cmath>

#include "memory.h"
#include "mmgroupnet.h"
#include "status.h"
#include "sums.h"

namespace mmgroupnet {
namespace {

// Adds the sums of all branches, (2, branches * channels), to those of the first one, in place.
void add_branches(const mmg_batch_norm& norm, double* sums) {
  const int folded = norm.branches * norm.channels;
  for (int row = 0; row < 2; ++row) {
    for (int c = norm.channels; c < folded; ++c) sums[row * folded + c % norm.channels] += sums[row * folded + c];
  }
}

double weight_of(const mmg_batch_norm& norm, int channel) {
  return norm.weight == nullptr ? 1.0 : static_cast<double>(norm.weight[channel]);
}

// Writes a number for one channel of all branches.
void fill(const mmg_batch_norm& norm, int channel, double value, float* vector) {
  for (int k = 0; k < norm.branches; ++k) vector[k * norm.channels + channel] = static_cast<float>(value);
}

void move(const mmg_batch_norm& norm, double value, float* running) {
  const double before = *running;
  *running = static_cast<float>(before + norm.momentum * (value - before));
}

// Mean and inverse deviation of scale * r, from the sums of r and r * r. Updates the running statistics.
void statistics_of_batch(const mmg_batch_norm& norm, int64_t pixels, const double* sums, double* mean,
                         double* inverse_deviation) {
  const int folded = norm.branches * norm.channels;
  const double count = static_cast<double>(pixels) * norm.branches;
  // Without any value the statistics are those of zeros, and running statistics stay.
  const double divisor = std::max(count, 1.0);
  for (int c = 0; c < norm.channels; ++c) {
    const double sum = sums[c], squares = sums[folded + c], scale = norm.scale[c];
    // Around an integer near the mean: sums of integers are exact, so the variance loses no digits by cancellation.
    const double centre = std::nearbyint(sum / divisor);
    const double rest = sum / divisor - centre;
    const double moment = (squares - 2 * centre * sum + count * centre * centre) / divisor;
    const double variance = scale * scale * std::max(moment - rest * rest, 0.0);
    mean[c] = scale * (centre + rest);
    inverse_deviation[c] = 1 / std::sqrt(variance + norm.eps);
    if (norm.momentum != 0 && count > 0) {
      move(norm, mean[c], norm.running_mean + c);
      move(norm, variance * (count / std::max(count - 1, 1.0)), norm.running_var + c);
    }
  }
}

void norm_statistics(const int16_t* y, int low, int64_t pixels, const mmg_batch_norm& norm, double* mean,
                     double* inverse_deviation, float* vectors, int threads) {
  const int folded = norm.branches * norm.channels;
  if (norm.uses_batch) {
    Storage<double> sums(2 * folded);
    relu_sums(y, low, pixels, folded, sums.data(), threads);
    add_branches(norm, sums.data());
    statistics_of_batch(norm, pixels, sums.data(), mean, inverse_deviation);
  } else {
    for (int c = 0; c < norm.channels; ++c) {
      mean[c] = norm.running_mean[c];
      inverse_deviation[c] = 1 / std::sqrt(norm.running_var[c] + norm.eps);
    }
  }
  for (int c = 0; c < norm.channels; ++c) {
    const double factor = weight_of(norm, c) * inverse_deviation[c];
    const double bias = norm.bias == nullptr ? 0.0 : static_cast<double>(norm.bias[c]);
    fill(norm, c, factor * norm.scale[c], vectors);
    fill(norm, c, bias - factor * mean[c], vectors + folded);
  }
}

void norm_gradients(const float* gradient, const int16_t* y, int low, int64_t pixels, const mmg_batch_norm& norm,
                    const double* mean, const double* inverse_deviation, float* of_weight, float* of_bias,
                    float* vectors, int threads) {
  const int folded = norm.branches * norm.channels;
  Storage<double> sums(2 * folded);
  gradient_sums(gradient, y, low, pixels, folded, sums.data(), threads);
  add_branches(norm, sums.data());
  const double divisor = std::max(static_cast<double>(pixels) * norm.branches, 1.0);
  for (int c = 0; c < norm.channels; ++c) {
    const double scale = norm.scale[c], sum = sums[c], products = sums[folded + c];
    const double weight_gradient = inverse_deviation[c] * (scale * products - mean[c] * sum);
    const double p = weight_of(norm, c) * inverse_deviation[c];
    double q = 0, s = 0;
    if (norm.uses_batch) {
      const double mean_of_products = weight_gradient / divisor;
      q = -p * inverse_deviation[c] * scale * mean_of_products;
      s = -p * (sum / divisor - mean[c] * inverse_deviation[c] * mean_of_products);
    }
    of_weight[c] = static_cast<float>(weight_gradient);
    of_bias[c] = static_cast<float>(sum);
    // The gradient of y is the gradient of scale * y times the scale.
    fill(norm, c, p * scale, vectors);
    fill(norm, c, q * scale, vectors + folded);
    fill(norm, c, s * scale, vectors + 2 * folded);
  }
}

}  // namespace
}  // namespace mmgroupnet

using mmgroupnet::guard;

int32_t mmg_norm_statistics(const int16_t* y, int32_t low, int64_t pixels, const mmg_batch_norm* norm, double* mean,
                            double* inverse_deviation, float* vectors, int32_t threads) {
  return guard([&] { mmgroupnet::norm_statistics(y, low, pixels, *norm, mean, inverse_deviation, vectors, threads); });
}

int32_t mmg_norm_gradients(const float* gradient, const int16_t* y, int32_t low, int64_t pixels,
                           const mmg_batch_norm* norm, const double* mean, const double* inverse_deviation,
                           float* of_weight, float* of_bias, float* vectors, int32_t threads) {
  return guard([&] {
    mmgroupnet::norm_gradients(gradient, y, low, pixels, *norm, mean, inverse_deviation, of_weight, of_bias, vectors,
                               threads);
  });
}
