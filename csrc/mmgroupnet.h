// C interface of the packed kernels: binary convolutions on bits, with the operations around them fused in.
//
// Maps are float, NHWC, with K branches folded into the channels: (N, H, W, K * C). A map of signs holds bits in 64-bit
// words, 0 for +1 and 1 for -1. Its shape is (N, H, W, K, ceil(C / 64)): every branch starts with a new word, and
// unused bits are zero.
#ifndef MMGROUPNET_H_
#define MMGROUPNET_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define MMG_API __attribute__((visibility("default")))

// The version of this interface, for callers to compare. It increases with every change of the structs and functions.
enum { MMG_ABI_VERSION = 5 };
MMG_API int32_t mmg_abi_version(void);

// All functions return a status, except those that return the version or a text. No C++ exception leaves this library.
enum { MMG_OK = 0, MMG_OUT_OF_MEMORY = 1, MMG_FAILED = 2 };
// Reason of this thread's last failure, such as "4096 bytes could not be allocated". The output of a failed call is
// undefined.
MMG_API const char* mmg_failure(void);

// Names of the instruction sets that this processor has and this library was built for, such as "portable avx2 avx512".
MMG_API const char* mmg_available_kernels(void);
// Selects the kernels of that name, which must be available. An empty name selects the best ones.
MMG_API int32_t mmg_select_kernels(const char* name);
MMG_API const char* mmg_selected_kernels(void);

// One binary convolution of K branches and the operations that are fused with it:
//   out = norm_scale * relu(scale * conv(sign(sign_scale * x + sign_shift), weights) + bias) + norm_shift + residual
// The numbers are in the order of UnitGeometry in mmgroupnet/ops/geometry.py.
typedef struct {
  int32_t num_bases;                  // K
  int32_t in_channels, out_channels;  // of one branch
  int32_t groups;                     // inside every branch
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width;
  int32_t pad_height, pad_width;  // -1, -1: dilation * (kernel - 1) / 2, computed for each branch
  int32_t pad_value;              // +1, -1 or 0
  const int32_t* dilations;       // (K)
  int32_t shares_weights;         // all branches have the weights, scales and norms of one
  int32_t merges;                 // the K outputs are added up (layer-wise decomposition; the input is one branch)
  int32_t relu;
  int32_t residual;        // MMG_RESIDUAL_*
  const uint8_t* weights;  // as mmg_arrange_weights wrote them
  // Per folded channel of the output, (K' * out_channels); K' = 1 if weights are shared or bases are merged, else K.
  // NULL: a scale of 1, a bias or shift of 0.
  const float* scale;  // (K * out_channels) if bases are merged
  const float* bias;
  const float* norm_scale;
  const float* norm_shift;
  // Per input channel of each branch, (K' * in_channels). NULL: a scale of 1, a shift of 0.
  const float* sign_scale;
  const float* sign_shift;
} mmg_unit;

enum { MMG_RESIDUAL_NONE = 0, MMG_RESIDUAL_INPUT = 1, MMG_RESIDUAL_SHORTCUT = 2 };
// How a block computes the inputs of its K branches.
enum {
  MMG_SEPARATE = 0,   // each branch reads its own map
  MMG_BROADCAST = 1,  // the input is one map, which all branches read
  MMG_MERGED = 2,     // all branches read the merged map
  MMG_GATED = 3,      // gate * branch + (1 - gate) * merged
};

// A chain of units. The shortcut that units with MMG_RESIDUAL_SHORTCUT add is the output of the unit `shortcut` for the
// connected input of the block, or `shortcut_map`, or, if both are NULL, the connected input itself.
typedef struct {
  int32_t batch, height, width;
  int32_t num_bases;
  int32_t connection;         // MMG_SEPARATE ... MMG_GATED
  const float* merge_scales;  // (K); NULL: the mean
  const float* gate;          // (K), in (0, 1)
  const float* shortcut_map;  // NHWC, in the shape of the output
  const mmg_unit* shortcut;
  const mmg_unit* units;
  int32_t num_units;
} mmg_block;

// Bytes of the arranged weights of a unit; 0 if one of its sums has 2^24 products or more, too many for the kernels.
MMG_API int32_t mmg_arranged_bytes(const mmg_unit* unit, size_t* bytes);
// Writes weights in the order that the selected kernels need. `bits` has K * out_channels rows, or out_channels if
// weights are shared. Each row has ceil(kh * kw * in_channels / groups / 8) bytes, with the weights in the order
// (kh, kw, channel), least significant bit first.
MMG_API int32_t mmg_arrange_weights(const mmg_unit* unit, const uint8_t* bits, uint8_t* arranged);

// Packs the signs of a float map with `branches` * `channels` channels. The map is (N, C, H, W) if `nchw`, else NHWC;
// `pixels` is H * W.
MMG_API int32_t mmg_sign_pack(const float* x, int32_t nchw, int32_t batch, int64_t pixels, int32_t branches,
                              int32_t channels, uint64_t* signs, int32_t threads);
// Computes the exact integers of the convolution, NHWC, without scales, merging and all that follows. `in_branches` is
// K, or 1 if all branches read the same signs. `out` is int16_t if `is_short`, and then no sum may overflow; else
// int32_t.
MMG_API int32_t mmg_convolve(const mmg_unit* unit, int32_t batch, int32_t height, int32_t width, const uint64_t* signs,
                             int32_t in_branches, int32_t is_short, void* out, int32_t threads);
// Runs a block on `x` and writes `out`, both NHWC.
MMG_API int32_t mmg_run_block(const mmg_block* block, const float* x, float* out, int32_t threads);
// Connects the K branches of `x`, (pixels, K * C). With a gate, `out` is gate[k] * branch + (1 - gate[k]) * merged,
// (pixels, K * C). If `gate` is NULL, it is only the merged map, (pixels, C). If `scales` is NULL, the merged map is
// the mean.
MMG_API int32_t mmg_connect(const float* x, int64_t pixels, int32_t branches, int32_t channels, const float* scales,
                            const float* gate, float* out, int32_t threads);

// A sliding window over a map.
typedef struct {
  int32_t height, width;
  int32_t stride_height, stride_width;
  int32_t pad_height, pad_width;
} mmg_window;
// scale * (the largest value in the window) + shift, NHWC. Pixels outside the map do not count, and sizes are rounded
// down. `scale` and `shift` are per channel; they may be NULL, but only together. The padding is at most half of the
// window.
MMG_API int32_t mmg_max_pool(const float* x, int32_t batch, int32_t height, int32_t width, int32_t channels,
                             const mmg_window* window, const float* scale, const float* shift, float* out,
                             int32_t threads);

// Training. `y` are the integers of a convolution, NHWC, and r = max(y, low): low is 0 with a ReLU, and MMG_NO_RELU
// without one.
enum { MMG_NO_RELU = -32768 };
// Packs the signs of latent weights (rows, channels, taps) in the order that mmg_arrange_weights reads.
MMG_API int32_t mmg_pack_weights(const float* weights, int64_t rows, int32_t channels, int32_t taps, uint8_t* bits,
                                 int32_t threads);
// Sums of r and of r * r for each channel, (2, channels). They are exact, because they are integers of at most 2^53 for
// 2^23 pixels or fewer.
MMG_API int32_t mmg_relu_sums(const int16_t* y, int32_t low, int64_t pixels, int32_t channels, double* sums,
                              int32_t threads);
// scale * r + shift + residual; `residual` may be NULL.
MMG_API int32_t mmg_relu_affine(const int16_t* y, int32_t low, const float* scale, const float* shift,
                                const float* residual, int64_t pixels, int32_t channels, float* out, int32_t threads);
// Sums of the gradient and of gradient * r for each channel, (2, channels).
MMG_API int32_t mmg_gradient_sums(const float* gradient, const int16_t* y, int32_t low, int64_t pixels,
                                  int32_t channels, double* sums, int32_t threads);
// A batch norm of C channels behind scale * r. `branches` branches share it: maps have branches * C channels.
typedef struct {
  int32_t channels;  // C
  int32_t branches;
  int32_t uses_batch;  // 1: statistics of the batch; 0: the running ones
  double eps;
  double momentum;      // weight of a batch in the running statistics; 0: they are not updated
  const float* scale;   // (C)
  const float* weight;  // (C); NULL: 1
  const float* bias;    // (C); NULL: 0
  float* running_mean;  // (C); NULL if neither read nor updated
  float* running_var;   // (C), likewise
} mmg_batch_norm;
// Mean and inverse deviation, (C) each, and `vectors`: the scale and shift of r that give the norm's output,
// (2, branches * C). Updates the running statistics.
MMG_API int32_t mmg_norm_statistics(const int16_t* y, int32_t low, int64_t pixels, const mmg_batch_norm* norm,
                                    double* mean, double* inverse_deviation, float* vectors, int32_t threads);
// Gradients of the norm's weight and bias, (C) each, and `vectors`: the coefficients p, q and s, (3, branches * C), of
// the gradient p * gradient + q * r + s of y. `gradient` is that of the norm's output.
MMG_API int32_t mmg_norm_gradients(const float* gradient, const int16_t* y, int32_t low, int64_t pixels,
                                   const mmg_batch_norm* norm, const double* mean, const double* inverse_deviation,
                                   float* of_weight, float* of_bias, float* vectors, int32_t threads);
// p * gradient + q * y + s where y > low, else 0, for one branch: the `channels` channels from the folded channel
// `first` on. `out` is (pixels, channels).
MMG_API int32_t mmg_affine_gradient(const float* gradient, const int16_t* y, int32_t low, const float* p,
                                    const float* q, const float* s, int64_t pixels, int32_t folded, int32_t first,
                                    int32_t channels, float* out, int32_t threads);
// Signs of one branch, (pixels, channels).
MMG_API int32_t mmg_branch_signs(const float* x, int64_t pixels, int32_t folded, int32_t first, int32_t channels,
                                 float* out, int32_t threads);
// max(0, 2 - 2 * |x|) * gradient + residual for one branch. `gradient` is (pixels, channels), the other maps are
// folded; `residual` may be NULL.
MMG_API int32_t mmg_sign_gradient(const float* gradient, const float* x, const float* residual, int64_t pixels,
                                  int32_t folded, int32_t first, int32_t channels, float* out, int32_t threads);
// For each tap, the sum of the gradient of a convolution's output, NHWC, over the pixels at which that tap lies in the
// padding: (channels, window->height * window->width). `rate` is the dilation.
MMG_API int32_t mmg_padding_sums(const float* gradient, int32_t batch, int32_t height, int32_t width,
                                 int32_t out_height, int32_t out_width, int32_t channels, const mmg_window* window,
                                 int32_t rate, float* sums);
// Gradients of mmg_connect: `out` of its input, `sums` of its gates and scales, (2, K).
MMG_API int32_t mmg_connect_gradient(const float* gradient, const float* x, const float* gate, const float* scales,
                                     int64_t pixels, int32_t branches, int32_t channels, float* out, double* sums,
                                     int32_t threads);

// Binary MACs per second of a loop of xor, popcount and add on registers only: the ceiling of this machine for the
// selected kernels, which only kernels with fewer instructions than that loop can exceed. Runs on one thread for about
// `seconds`.
MMG_API int32_t mmg_ceiling(double seconds, double* macs_per_second);

#if defined(__cplusplus)
}
#endif

#endif  // MMGROUPNET_H_
