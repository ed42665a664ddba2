// Sums over whole maps for each channel, see mmg_relu_sums and mmg_gradient_sums in mmgroupnet.h.
#ifndef MMGROUPNET_SUMS_H_
#define MMGROUPNET_SUMS_H_

#include <cstdint>

namespace mmgroupnet {

void relu_sums(const int16_t* y, int low, int64_t pixels, int channels, double* sums, int threads);
void gradient_sums(const float* gradient, const int16_t* y, int low, int64_t pixels, int channels, double* sums,
                   int threads);

}  // namespace mmgroupnet

#endif  // MMGROUPNET_SUMS_H_
