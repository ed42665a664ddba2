// Binary convolutions over whole maps, tile by tile.
#ifndef MMGROUPNET_CONVOLUTION_H_
#define MMGROUPNET_CONVOLUTION_H_

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "mmgroupnet.h"

namespace mmgroupnet {

struct Size {
  int height, width;
};

// Rows [first, end) of each of the images [first_image, end_image).
struct Rows {
  int first_image, end_image;
  int first, end;
};

// Float map, NHWC, with its branches folded into the channels.
struct Map {
  const float* data;
  int branches, channels;  // channels of one branch

  int folded() const { return branches * channels; }
};

// Signs, (N, H, W, branches, words).
struct Signs {
  const uint64_t* words;
  int branches, channels;

  int pixel_words() const { return branches * ceil_div(channels, kWordBits); }
};

// Where the outputs of a unit are written.
struct Destination {
  float* values = nullptr;      // (N, H', W', K' * out_channels)
  int32_t* integers = nullptr;  // bare sums, in place of `values`
  int16_t* shorts = nullptr;    // the same, if they fit 16 bits
  Map residual = {nullptr, 1, 0};
  uint64_t* signs = nullptr;          // signs of the values for the next unit, (N, H', W', K', words); needs `values`
  const float* sign_scale = nullptr;  // of the next unit
  const float* sign_shift = nullptr;
};

Size output_size(const mmg_unit& unit, Size input);
// End of the input's rows that the output's rows before `end_row` read.
int end_input_row(const mmg_unit& unit, Size input, int end_row);
// Branches of a unit's output for `input_branches` of its input; 1 if merged.
int output_branches(const mmg_unit& unit, int input_branches);

size_t arranged_bytes(const Kernels& kernels, const mmg_unit& unit);
void arrange_weights(const Kernels& kernels, const mmg_unit& unit, const uint8_t* bits, uint8_t* arranged);
// Computes some rows of the output for a map of this size.
void convolve(const Kernels& kernels, const mmg_unit& unit, const Rows& rows, Size size, Signs signs,
              Destination destination, int threads);

}  // namespace mmgroupnet

#endif  // MMGROUPNET_CONVOLUTION_H_
