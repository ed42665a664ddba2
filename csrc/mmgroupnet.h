// C interface of the packed kernels: binary convolutions on bits, with everything around them fused in.
//
// Maps are float, NHWC, with K folded branches along the channels: (N, H, W, K * C). A map of signs holds bits, 0 for
// +1 and 1 for -1, in 64-bit words; every branch starts at a word of its own: (N, H, W, K, ceil(C / 64)), unused bits
// zero.
#ifndef MMGROUPNET_H_
#define MMGROUPNET_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define MMG_API __attribute__((visibility("default")))

// What a caller must know to speak to this library; raised with every change of its structs and functions.
enum { MMG_ABI_VERSION = 5 };
MMG_API int32_t mmg_abi_version(void);

// All functions return a status but those that return the version or a text. No C++ exception leaves this library.
enum { MMG_OK = 0, MMG_OUT_OF_MEMORY = 1, MMG_FAILED = 2 };
// Reason of this thread's last failure, such as "4096 bytes could not be allocated"; the output of the failed call is
// undefined.
MMG_API const char* mmg_failure(void);

// Instruction sets that this processor has and this library was built for, as "portable avx2 avx512".
MMG_API const char* mmg_available_kernels(void);
// Takes the kernels of that name, which must be available; the best ones for an empty name.
MMG_API int32_t mmg_select_kernels(const char* name);
MMG_API const char* mmg_selected_kernels(void);

// One binary convolution of K branches and what is fused to it:
//   out = norm_scale * relu(scale * conv(sign(sign_scale * x + sign_shift), weights) + bias) + norm_shift + residual
// Numbers come in the order of UnitGeometry in mmgroupnet/ops/geometry.py.
typedef struct {
  int32_t num_bases;                  // K
  int32_t in_channels, out_channels;  // of one branch
  int32_t groups;                     // inside every branch
  int32_t kernel_height, kernel_width;
  int32_t stride_height, stride_width;
  int32_t pad_height, pad_width;  // -1, -1: dilation * (kernel - 1) / 2, for each branch its own
  int32_t pad_value;              // +1, -1 or 0
  const int32_t* dilations;       // (K)
  int32_t shares_weights;         // all branches have the weights, scales and norms of one
  int32_t merges;                 // the K outputs are added up (layer-wise decomposition; the input is one branch)
  int32_t relu;
  int32_t residual;        // MMG_RESIDUAL_*
  const uint8_t* weights;  // what mmg_arrange_weights wrote
  // Per folded channel of the output, (K' * out_channels); K' = 1 where weights are shared. NULL: 1 or 0.
  const float* scale;  // (K * out_channels) where branches are merged
  const float* bias;
  const float* norm_scale;
  const float* norm_shift;
  // Per folded channel of the input; NULL: 1 or 0.
  const float* sign_scale;
  const float* sign_shift;
} mmg_unit;

enum { MMG_RESIDUAL_NONE = 0, MMG_RESIDUAL_INPUT = 1, MMG_RESIDUAL_SHORTCUT = 2 };
// How a block makes the inputs of its K branches.
enum {
  MMG_SEPARATE = 0,   // as they come
  MMG_BROADCAST = 1,  // the input is one map, which all branches read
  MMG_MERGED = 2,     // all branches read the merged map
  MMG_GATED = 3,      // gate * branch + (1 - gate) * merged
};

// A chain of units; the residual "shortcut" of a unit is what the unit `shortcut` makes of the block's connected input,
// or `shortcut_map`, or, where both are NULL, that input itself.
typedef struct {
  int32_t batch, height, width;
  int32_t num_bases;
  int32_t connection;         // MMG_SEPARATE ... MMG_GATED
  const float* merge_scales;  // (K); NULL: the mean
  const float* gate;          // (K), in (0, 1)
  const float* shortcut_map;  // NHWC, of the output's shape
  const mmg_unit* shortcut;
  const mmg_unit* units;
  int32_t num_units;
} mmg_block;

// Bytes of the arranged weights of a unit, 0 where the selected kernels cannot take it.
MMG_API int32_t mmg_arranged_bytes(const mmg_unit* unit, size_t* bytes);
// Brings weights in the order of the selected kernels. `bits`: row by row ceil(kh * kw * in_channels / groups / 8)
// bytes, least significant bit first, in the order (kh, kw, channel); rows are K * out_channels, or out_channels where
// shared.
MMG_API int32_t mmg_arrange_weights(const mmg_unit* unit, const uint8_t* bits, uint8_t* arranged);

// Signs of a float map with `branches` * `channels` channels. `nchw`: the map is (N, C, H, W), else NHWC.
MMG_API int32_t mmg_sign_pack(const float* x, int32_t nchw, int32_t batch, int64_t pixels, int32_t branches,
                              int32_t channels, uint64_t* signs, int32_t threads);
// The exact integers of the convolution alone, NHWC; `in_branches` is K, or 1 where all branches read the same signs.
// Scales and all that follows are left out, and so is merging. `out` is int16_t where `is_short`, which must not
// overflow, else int32_t.
MMG_API int32_t mmg_convolve(const mmg_unit* unit, int32_t batch, int32_t height, int32_t width, const uint64_t* signs,
                             int32_t in_branches, int32_t is_short, void* out, int32_t threads);
// Runs a block, `x` to `out`, both NHWC.
MMG_API int32_t mmg_run_block(const mmg_block* block, const float* x, float* out, int32_t threads);
// Connects K branches: gate[k] * branch + (1 - gate[k]) * merged, (pixels, K * C) to the same; the merged map alone,
// (pixels, C), where `gate` is NULL. `scales` NULL: the mean.
MMG_API int32_t mmg_connect(const float* x, int64_t pixels, int32_t branches, int32_t channels, const float* scales,
                            const float* gate, float* out, int32_t threads);

// A window that moves over a map; what lies beyond the map is left out.
typedef struct {
  int32_t height, width;
  int32_t stride_height, stride_width;
  int32_t pad_height, pad_width;
} mmg_window;
// scale * (the largest value in the window) + shift, NHWC, sizes rounded down; `scale` and `shift` are per channel, and
// may be NULL, both. The padding is at most half of the window.
MMG_API int32_t mmg_max_pool(const float* x, int32_t batch, int32_t height, int32_t width, int32_t channels,
                             const mmg_window* window, const float* scale, const float* shift, float* out,
                             int32_t threads);

// Training. `y` are the integers of a convolution, NHWC; r = max(y, low), where low = 0 is a ReLU and MMG_NO_RELU none.
enum { MMG_NO_RELU = -32768 };
// Bits of latent weights (rows, channels, taps), in the order that mmg_arrange_weights takes.
MMG_API int32_t mmg_pack_weights(const float* weights, int64_t rows, int32_t channels, int32_t taps, uint8_t* bits,
                                 int32_t threads);
// Of each channel the sums of r and of r * r, (2, channels). They are exact: integers, below 2^53 for 2^23 pixels or
// fewer.
MMG_API int32_t mmg_relu_sums(const int16_t* y, int32_t low, int64_t pixels, int32_t channels, double* sums,
                              int32_t threads);
// scale * r + shift + residual, of which the last may be NULL.
MMG_API int32_t mmg_relu_affine(const int16_t* y, int32_t low, const float* scale, const float* shift,
                                const float* residual, int64_t pixels, int32_t channels, float* out, int32_t threads);
// Of each channel the sums of the gradient and of gradient * r, (2, channels).
MMG_API int32_t mmg_gradient_sums(const float* gradient, const int16_t* y, int32_t low, int64_t pixels,
                                  int32_t channels, double* sums, int32_t threads);
// A batch norm of C channels behind scale * r, which `branches` share: maps have branches * C channels.
typedef struct {
  int32_t channels;  // C
  int32_t branches;
  int32_t uses_batch;  // 1: statistics of the batch; 0: the running ones
  double eps;
  double momentum;      // weight of a batch in the running statistics; 0: they stay
  const float* scale;   // (C)
  const float* weight;  // (C); NULL: 1
  const float* bias;    // (C); NULL: 0
  float* running_mean;  // (C); where they are neither read nor moved NULL
  float* running_var;   // (C), likewise
} mmg_batch_norm;
// Mean and inverse deviation, (C), and the scale and shift of r that give the norm's output, (2, branches * C). Moves
// the running statistics.
MMG_API int32_t mmg_norm_statistics(const int16_t* y, int32_t low, int64_t pixels, const mmg_batch_norm* norm,
                                    double* mean, double* inverse_deviation, float* vectors, int32_t threads);
// Gradients of the norm's weight and bias, (C), and p, q and s, (3, branches * C), of the gradient
// p * gradient + q * r + s of y, where `gradient` is that of the output.
MMG_API int32_t mmg_norm_gradients(const float* gradient, const int16_t* y, int32_t low, int64_t pixels,
                                   const mmg_batch_norm* norm, const double* mean, const double* inverse_deviation,
                                   float* of_weight, float* of_bias, float* vectors, int32_t threads);
// Of one branch, `channels` from the folded channel `first` on: p * gradient + q * y + s where y > low, else 0,
// (pixels, channels).
MMG_API int32_t mmg_affine_gradient(const float* gradient, const int16_t* y, int32_t low, const float* p,
                                    const float* q, const float* s, int64_t pixels, int32_t folded, int32_t first,
                                    int32_t channels, float* out, int32_t threads);
// Signs of one branch, (pixels, channels).
MMG_API int32_t mmg_branch_signs(const float* x, int64_t pixels, int32_t folded, int32_t first, int32_t channels,
                                 float* out, int32_t threads);
// One branch of max(0, 2 - 2 * |x|) * gradient + residual, with the gradient (pixels, channels); `residual` may be
// NULL.
MMG_API int32_t mmg_sign_gradient(const float* gradient, const float* x, const float* residual, int64_t pixels,
                                  int32_t folded, int32_t first, int32_t channels, float* out, int32_t threads);
// Of the gradient of a convolution's output, NHWC, for each tap the sums over the pixels at which that tap lies in the
// padding, (channels, window->height * window->width). `rate` is the dilation.
MMG_API int32_t mmg_padding_sums(const float* gradient, int32_t batch, int32_t height, int32_t width,
                                 int32_t out_height, int32_t out_width, int32_t channels, const mmg_window* window,
                                 int32_t rate, float* sums);
// Gradients of mmg_connect's input, and of its gates and scales, (2, K).
MMG_API int32_t mmg_connect_gradient(const float* gradient, const float* x, const float* gate, const float* scales,
                                     int64_t pixels, int32_t branches, int32_t channels, float* out, double* sums,
                                     int32_t threads);

// Binary MACs per second of a loop of xor, popcount and add on registers alone: the ceiling of this machine for the
// selected kernels. One thread, for about `seconds`.
MMG_API int32_t mmg_ceiling(double seconds, double* macs_per_second);

#if defined(__cplusplus)
}
#endif

#endif  // MMGROUPNET_H_
