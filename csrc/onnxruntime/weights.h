// Arranged weights. A process keeps only one copy of equal ones.
#ifndef MMGROUPNET_ONNXRUNTIME_WEIGHTS_H_
#define MMGROUPNET_ONNXRUNTIME_WEIGHTS_H_

#include <cstdint>
#include <memory>

#include "mmgroupnet.h"

namespace mmgroupnet {

using Weights = std::shared_ptr<const uint8_t>;

// Arranges a unit's bits in the order of the kernels. Units with equal bytes, such as those of a head that the levels
// of a pyramid share, get the same weights, which live as long as the last of these units.
//
// Throws an Error if the kernels cannot compute the unit.
Weights arrange(const mmg_unit& unit, const uint8_t* bits);

}  // namespace mmgroupnet

#endif  // MMGROUPNET_ONNXRUNTIME_WEIGHTS_H_
