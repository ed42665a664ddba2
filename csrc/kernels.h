// The function table that every instruction set fills, and what its functions share.
#ifndef MMGROUPNET_KERNELS_H_
#define MMGROUPNET_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace mmgroupnet {

// Output channels that a tile computes side by side, in lanes. Signs of a branch come in words of 64, so that a tile
// that starts at a multiple of 64 channels writes whole words.
constexpr int kLanes = 64;
constexpr int kMaxTileColumns = 8;
constexpr int kMaxRows = 2;
constexpr int kWordBits = 64;

// Static, as everything that files of an instruction set share: the linker keeps one copy of an inline function, and it
// might be the one with instructions that the processor lacks.
static constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Steps of a tile whose activations lie one behind the other, at `offset` bytes from a column's first one.
struct Run {
  ptrdiff_t offset;
  int steps;
};

// The sums of one tile: output columns, each of `rows` pixels one below the other, times 64 output channels.
struct Tile {
  const uint8_t* activations[kMaxTileColumns];  // the first activation of each column
  int columns;
  const Run* runs;
  int num_runs;
  const uint8_t* weights;  // of these 64 channels, all steps
  int channels;            // at most 64; the lanes beyond may be left out
  int length;              // products in one sum
};

// Epilogue of a run of consecutive pixels, of up to 64 channels each:
//   sum = sum_over_bases(scale * (length - 2 * different + excess))
//   out = norm_scale * max(sum + bias, low) + norm_shift + residual
// and its signs. Any pointer but `out` may be null; `norm_scale` and `norm_shift` are null together.
struct Epilogue {
  int pixels;
  int64_t different_step, out_step, residual_step, word_step;  // from one pixel to the next
  int channels;
  float length;           // products in one sum
  int bases;              // that are merged, 1 where none are
  int different_stride;   // from one base to the next
  int64_t scale_stride;   // the same
  const int32_t* excess;  // (bases, 64), of all pixels
  const float *scale, *bias, *norm_scale, *norm_shift, *residual;
  float low;
  float* out;
  uint64_t* word;
  const float *sign_scale, *sign_shift;
};

struct Kernels {
  const char* name;
  int tile_columns;
  int rows;  // of a column
  // A step takes this many input channels of one tap. Activations are kept step by step, `step_bytes` each.
  int step_channels;
  int step_bytes;
  int step_weight_bytes;  // of one step of 64 output channels

  // Signs of `channels` floats, sign(scale * x + shift); `scale` and `shift` may be null, alone or both.
  void (*pack)(const float* x, const float* scale, const float* shift, int channels, uint64_t* words);
  // Brings the signs of columns side by side, a pixel of each row, in the order of the steps. The next column's pixel
  // of row j lies `strides[j]` words behind.
  void (*expand)(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels,
                 uint8_t* activations);
  // Brings the signs of 64 output channels at one tap in the order of the steps; channel c at words[c * stride].
  void (*arrange)(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights);
  // Number of different bits between activations and weights, (columns, rows, 64). Where no sum needs 32 bits, an
  // instruction set may keep them as it likes in the place of a pixel: only its `finish` reads them.
  void (*count)(const Tile& tile, int32_t* different);
  void (*finish)(const int32_t* different, const Epilogue& epilogue);
  // merged = sum_k scales[k] * x[k], over `branches` branches of `channels` floats.
  void (*merge)(const float* x, const float* scales, int branches, int channels, float* merged);
  // out = merged + gate * (x - merged).
  void (*gate)(const float* x, const float* merged, float gate, int channels, float* out);
  // out = scale * max_i(taps[i]) + shift, of `channels` floats; `scale` and `shift` may be null, both.
  void (*pool)(const float* const* taps, int num_taps, int channels, const float* scale, const float* shift,
               float* out);
  // Binary MACs of `rounds` rounds of the ceiling loop, which it runs.
  double (*ceiling)(int64_t rounds);
  // Passes of training, see training.h, which puts them in.
  void (*relu_sums)(const int16_t* y, int low, int64_t pixels, int channels, int32_t* sums) = nullptr;
  void (*relu_affine)(const int16_t* y, int low, const float* scale, const float* shift, const float* residual,
                      int64_t pixels, int channels, float* out) = nullptr;
  void (*gradient_sums)(const float* g, const int16_t* y, int low, int64_t pixels, int channels, float* sums) = nullptr;
  void (*affine_gradient)(const float* g, const int16_t* y, int low, const float* p, const float* q, const float* s,
                          int64_t pixels, int folded, int channels, float* out) = nullptr;
  void (*branch_signs)(const float* x, int64_t pixels, int folded, int channels, float* out) = nullptr;
  void (*sign_gradient)(const float* g, const float* x, const float* residual, int64_t pixels, int folded, int channels,
                        float* out) = nullptr;
  void (*connect_gradient)(const float* g, const float* x, const float* gate, const float* scales, int64_t pixels,
                           int branches, int channels, float* out, float* sums) = nullptr;
};

// Those in use.
const Kernels& selected_kernels();

const Kernels* portable_kernels();
const Kernels* avx2_kernels();      // null where not compiled in or not available on this processor
const Kernels* avx512bw_kernels();  // the same
const Kernels* avx512_kernels();    // the same
const Kernels* neon_kernels();      // the same

}  // namespace mmgroupnet

#endif  // MMGROUPNET_KERNELS_H_
