// Passes of training over whole maps, see training.h, and the packing of latent weights.
#include <algorithm>
#include <functional>

#include "kernels.h"
#include "memory.h"
#include "mmgroupnet.h"
#include "status.h"
#include "sums.h"
#include "threads.h"

namespace mmgroupnet {
namespace {

// Adds up `size` numbers of each job, in double and in the order of the jobs, so the sums do not depend on the number
// of threads.
template <typename T>
void sum_jobs(int64_t pixels, int size, int threads, double* sums,
              const std::function<void(int64_t, int64_t, T*)>& job) {
  const int64_t jobs = (pixels + kPixelsPerJob - 1) / kPixelsPerJob;
  Storage<T> parts(jobs * size);
  for_pixels(0, pixels, threads,
             [&](int64_t first, int64_t end) { job(first, end - first, parts.data() + first / kPixelsPerJob * size); });
  std::fill(sums, sums + size, 0.0);
  for (int64_t i = 0; i < jobs; ++i) {
    for (int c = 0; c < size; ++c) sums[c] += parts[i * size + c];
  }
}

// Packs the signs of a row of weights (channels, taps) in the order (taps, channels). `negative` has room for channels
// * taps.
void pack_row(const float* weights, int channels, int taps, uint8_t* negative, uint8_t* bits) {
  const int size = channels * taps;
  for (int i = 0; i < size; ++i) negative[i] = !(weights[i] >= 0);
  for (int first = 0; first < size; first += 8) {
    unsigned byte = 0;
    for (int bit = 0; bit < 8 && first + bit < size; ++bit) {
      const int i = first + bit;
      byte |= static_cast<unsigned>(negative[i % channels * taps + i / channels]) << bit;
    }
    bits[first / 8] = static_cast<uint8_t>(byte);
  }
}

// The same, eight channels at a time.
void pack_row_by_bytes(const float* weights, int channels, int taps, uint8_t* negative, uint8_t* bits) {
  for (int i = 0; i < channels * taps; ++i) negative[i] = !(weights[i] >= 0);
  for (int tap = 0; tap < taps; ++tap) {
    const uint8_t* from = negative + tap;
    for (int c = 0; c < channels; c += 8, from += 8 * taps) {
      *bits++ =
          static_cast<uint8_t>(from[0] | from[taps] << 1 | from[2 * taps] << 2 | from[3 * taps] << 3 |
                               from[4 * taps] << 4 | from[5 * taps] << 5 | from[6 * taps] << 6 | from[7 * taps] << 7);
    }
  }
}

}  // namespace

void relu_sums(const int16_t* y, int low, int64_t pixels, int channels, double* sums, int threads) {
  Storage<double> parts(3 * channels);
  sum_jobs<int32_t>(pixels, 3 * channels, threads, parts.data(), [&](int64_t first, int64_t count, int32_t* part) {
    selected_kernels().relu_sums(y + first * channels, low, count, channels, part);
  });
  for (int c = 0; c < channels; ++c) {
    sums[c] = parts[c];
    sums[channels + c] = parts[channels + c] + 65536 * parts[2 * channels + c];
  }
}

void gradient_sums(const float* gradient, const int16_t* y, int low, int64_t pixels, int channels, double* sums,
                   int threads) {
  sum_jobs<float>(pixels, 2 * channels, threads, sums, [&](int64_t first, int64_t count, float* part) {
    selected_kernels().gradient_sums(gradient + first * channels, y + first * channels, low, count, channels, part);
  });
}

void pack_weights(const float* weights, int64_t rows, int channels, int taps, uint8_t* bits, int threads) {
  constexpr int64_t kRowsPerJob = 16;
  const int size = channels * taps;
  const int jobs = static_cast<int>((rows + kRowsPerJob - 1) / kRowsPerJob);
  parallel_for(jobs, threads, [&](int job) {
    Storage<uint8_t> negative(size);
    for (int64_t row = job * kRowsPerJob; row < std::min((job + 1) * kRowsPerJob, rows); ++row) {
      (channels % 8 == 0 ? pack_row_by_bytes : pack_row)(weights + row * size, channels, taps, negative.data(),
                                                         bits + row * ceil_div(size, 8));
    }
  });
}

void padding_sums(const float* gradient, int batch, int height, int width, int out_height, int out_width, int channels,
                  const mmg_window& window, int rate, float* sums) {
  const int taps = window.height * window.width;
  // Whether a tap lies in the padding: (out_height, window.height) and (out_width, window.width).
  const auto in_padding = [rate](int given, int out, int size, int stride, int pad) {
    Storage<char> found(static_cast<size_t>(out) * size);
    for (int i = 0; i < out * size; ++i) {
      const int at = i / size * stride - pad + i % size * rate;
      found[i] = at < 0 || at >= given;
    }
    return found;
  };
  const auto rows = in_padding(height, out_height, window.height, window.stride_height, window.pad_height);
  const auto columns = in_padding(width, out_width, window.width, window.stride_width, window.pad_width);
  Storage<double> totals(static_cast<size_t>(taps) * channels, 0.0), pixel(channels);
  for (int row = 0; row < out_height; ++row) {
    const char* row_taps = rows.data() + static_cast<size_t>(row) * window.height;
    const bool is_border_row = std::any_of(row_taps, row_taps + window.height, [](char tap) { return tap; });
    for (int column = 0; column < out_width; ++column) {
      const char* column_taps = columns.data() + static_cast<size_t>(column) * window.width;
      if (!is_border_row && std::none_of(column_taps, column_taps + window.width, [](char tap) { return tap; })) {
        continue;
      }
      std::fill(pixel.begin(), pixel.end(), 0.0);
      for (int image = 0; image < batch; ++image) {
        const float* from = gradient + ((int64_t{image} * out_height + row) * out_width + column) * channels;
        for (int c = 0; c < channels; ++c) pixel[c] += from[c];
      }
      for (int tap = 0; tap < taps; ++tap) {
        if (!row_taps[tap / window.width] && !column_taps[tap % window.width]) continue;
        double* total = totals.data() + static_cast<size_t>(tap) * channels;
        for (int c = 0; c < channels; ++c) total[c] += pixel[c];
      }
    }
  }
  for (int tap = 0; tap < taps; ++tap) {
    for (int c = 0; c < channels; ++c) {
      sums[static_cast<size_t>(c) * taps + tap] = static_cast<float>(totals[static_cast<size_t>(tap) * channels + c]);
    }
  }
}

}  // namespace mmgroupnet

using mmgroupnet::for_pixels;
using mmgroupnet::guard;
using mmgroupnet::selected_kernels;
using mmgroupnet::sum_jobs;

int32_t mmg_pack_weights(const float* weights, int64_t rows, int32_t channels, int32_t taps, uint8_t* bits,
                         int32_t threads) {
  return guard([&] { mmgroupnet::pack_weights(weights, rows, channels, taps, bits, threads); });
}

int32_t mmg_padding_sums(const float* gradient, int32_t batch, int32_t height, int32_t width, int32_t out_height,
                         int32_t out_width, int32_t channels, const mmg_window* window, int32_t rate, float* sums) {
  return guard([&] {
    mmgroupnet::padding_sums(gradient, batch, height, width, out_height, out_width, channels, *window, rate, sums);
  });
}

int32_t mmg_relu_sums(const int16_t* y, int32_t low, int64_t pixels, int32_t channels, double* sums, int32_t threads) {
  return guard([&] { mmgroupnet::relu_sums(y, low, pixels, channels, sums, threads); });
}

int32_t mmg_relu_affine(const int16_t* y, int32_t low, const float* scale, const float* shift, const float* residual,
                        int64_t pixels, int32_t channels, float* out, int32_t threads) {
  return guard([&] {
    for_pixels(0, pixels, threads, [&](int64_t first, int64_t end) {
      const int64_t count = end - first;
      const int64_t at = first * channels;
      selected_kernels().relu_affine(y + at, low, scale, shift, residual == nullptr ? nullptr : residual + at, count,
                                     channels, out + at);
    });
  });
}

int32_t mmg_gradient_sums(const float* gradient, const int16_t* y, int32_t low, int64_t pixels, int32_t channels,
                          double* sums, int32_t threads) {
  return guard([&] { mmgroupnet::gradient_sums(gradient, y, low, pixels, channels, sums, threads); });
}

int32_t mmg_affine_gradient(const float* gradient, const int16_t* y, int32_t low, const float* p, const float* q,
                            const float* s, int64_t pixels, int32_t folded, int32_t first, int32_t channels, float* out,
                            int32_t threads) {
  return guard([&] {
    for_pixels(0, pixels, threads, [&](int64_t pixel, int64_t end) {
      const int64_t at = pixel * folded + first;
      selected_kernels().affine_gradient(gradient + at, y + at, low, p + first, q + first, s + first, end - pixel,
                                         folded, channels, out + pixel * channels);
    });
  });
}

int32_t mmg_branch_signs(const float* x, int64_t pixels, int32_t folded, int32_t first, int32_t channels, float* out,
                         int32_t threads) {
  return guard([&] {
    for_pixels(0, pixels, threads, [&](int64_t pixel, int64_t end) {
      selected_kernels().branch_signs(x + pixel * folded + first, end - pixel, folded, channels,
                                      out + pixel * channels);
    });
  });
}

int32_t mmg_sign_gradient(const float* gradient, const float* x, const float* residual, int64_t pixels, int32_t folded,
                          int32_t first, int32_t channels, float* out, int32_t threads) {
  return guard([&] {
    for_pixels(0, pixels, threads, [&](int64_t pixel, int64_t end) {
      const int64_t count = end - pixel;
      const int64_t at = pixel * folded + first;
      selected_kernels().sign_gradient(gradient + pixel * channels, x + at,
                                       residual == nullptr ? nullptr : residual + at, count, folded, channels,
                                       out + at);
    });
  });
}

int32_t mmg_connect_gradient(const float* gradient, const float* x, const float* gate, const float* scales,
                             int64_t pixels, int32_t branches, int32_t channels, float* out, double* sums,
                             int32_t threads) {
  return guard([&] {
    const int64_t folded = static_cast<int64_t>(branches) * channels;
    mmgroupnet::Storage<double> by_channel(2 * folded);
    sum_jobs<float>(pixels, static_cast<int>(2 * folded), threads, by_channel.data(),
                    [&](int64_t first, int64_t count, float* part) {
                      selected_kernels().connect_gradient(gradient + first * folded, x + first * folded, gate, scales,
                                                          count, branches, channels, out + first * folded, part);
                    });
    std::fill(sums, sums + 2 * branches, 0.0);
    for (int64_t i = 0; i < 2 * folded; ++i) sums[i / channels] += by_channel[i];
  });
}
