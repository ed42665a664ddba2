// Passes over whole maps around the convolutions, and blocks that consist of both.
#ifndef MMGROUPNET_BLOCK_H_
#define MMGROUPNET_BLOCK_H_

#include <cstdint>

#include "kernels.h"
#include "mmgroupnet.h"

namespace mmgroupnet {

// See the functions of these names in mmgroupnet.h.
void run_block(const Kernels& kernels, const mmg_block& block, const float* x, float* out, int threads);
void connect(const Kernels& kernels, const float* x, int64_t pixels, int branches, int channels, const float* scales,
             const float* gate, float* out, int threads);
void sign_pack(const Kernels& kernels, const float* x, bool nchw, int batch, int64_t pixels, int branches, int channels,
               uint64_t* signs, int threads);
void max_pool(const Kernels& kernels, const float* x, int batch, int height, int width, int channels,
              const mmg_window& window, const float* scale, const float* shift, float* out, int threads);

}  // namespace mmgroupnet

#endif  // MMGROUPNET_BLOCK_H_
