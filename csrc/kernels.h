// The function table of an instruction set, and the types that its functions share.
#ifndef MMGROUPNET_KERNELS_H_
#define MMGROUPNET_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace mmgroupnet {

// Output channels of a tile, one in each lane. The signs of a branch are stored in words of 64, so a tile that starts
// at a multiple of 64 channels writes whole words.
constexpr int kLanes = 64;
constexpr int kMaxTileColumns = 8;
constexpr int kMaxRows = 2;
constexpr int kWordBits = 64;

// Static, like everything that the files of the instruction sets share: of an inline function the linker keeps only one
// copy, perhaps one with instructions that the processor lacks.
static constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Consecutive steps of a tile. Their activations are contiguous and start `offset` bytes behind the first activation of
// a column.
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
  int channels;            // at most 64; the other lanes need not be computed
  int length;              // products in one sum
};

// Epilogue of a run of consecutive pixels, for up to 64 channels:
//   sum = sum_over_bases(scale * (length - 2 * different + excess))
//   out = norm_scale * max(sum + bias, low) + norm_shift + residual
//   word = signs of (sign_scale * out + sign_shift)
// Every pointer but `out` may be null; `norm_scale` and `norm_shift` are null together.
struct Epilogue {
  int pixels;
  int64_t different_step, out_step, residual_step, word_step;  // from one pixel to the next
  int channels;
  float length;           // products in one sum
  int bases;              // number of merged bases; 1 without merging
  int different_stride;   // from one base to the next
  int64_t scale_stride;   // from one base to the next, for `scale`
  const int32_t* excess;  // (bases, 64), the same for all pixels of the run
  const float *scale, *bias, *norm_scale, *norm_shift, *residual;
  float low;
  float* out;
  uint64_t* word;
  const float *sign_scale, *sign_shift;
};

struct Kernels {
  const char* name;
  int tile_columns;
  int rows;  // pixels of a column
  // A step reads this many input channels of one tap. Its activations take `step_bytes`.
  int step_channels;
  int step_bytes;
  int step_weight_bytes;  // the weights of one step, for 64 output channels

  // Packs sign(scale * x + shift) of `channels` floats; `scale`, `shift` or both may be null.
  void (*pack)(const float* x, const float* scale, const float* shift, int channels, uint64_t* words);
  // Writes the activations of adjacent columns in the order of the steps. pixels[j] points to the signs of row j of the
  // first column; those of the next column are `strides[j]` words further.
  void (*expand)(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels,
                 uint8_t* activations);
  // Writes the weights of 64 output channels at one tap in the order of the steps; the signs of channel c start at
  // words[c * stride].
  void (*arrange)(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights);
  // Counts the bits that differ between activations and weights, (columns, rows, 64). If no sum needs 32 bits, an
  // instruction set may use its own format in the memory of a pixel, because only its own `finish` reads the counts.
  void (*count)(const Tile& tile, int32_t* different);
  void (*finish)(const int32_t* different, const Epilogue& epilogue);
  // merged = sum_k scales[k] * x[k], over `branches` branches of `channels` floats.
  void (*merge)(const float* x, const float* scales, int branches, int channels, float* merged);
  // out = merged + gate * (x - merged).
  void (*gate)(const float* x, const float* merged, float gate, int channels, float* out);
  // out = scale * max_i(taps[i]) + shift, of `channels` floats; `scale` and `shift` may be null, but only together.
  void (*pool)(const float* const* taps, int num_taps, int channels, const float* scale, const float* shift,
               float* out);
  // Runs `rounds` rounds of the ceiling loop, see mmg_ceiling, and returns their number of binary MACs.
  double (*ceiling)(int64_t rounds);
  // Passes of training, which with_training of training.h fills in.
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

// The kernels in use.
const Kernels& selected_kernels();

const Kernels* portable_kernels();
const Kernels* avx2_kernels();      // null if not compiled in or not available on this processor
const Kernels* avx512bw_kernels();  // the same
const Kernels* avx512_kernels();    // the same
const Kernels* neon_kernels();      // the same

}  // namespace mmgroupnet

#endif  // MMGROUPNET_KERNELS_H_
