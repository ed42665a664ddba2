// Arranged weights, of which a process keeps equal ones once.
#ifndef MMGROUPNET_ONNXRUNTIME_WEIGHTS_H_
#define MMGROUPNET_ONNXRUNTIME_WEIGHTS_H_

#include <cstdint>
#include <memory>

#include "mmgroupnet.h"

namespace mmgroupnet {

using Weights = std::shared_ptr<const uint8_t>;

// Brings a unit's bits in the order of the kernels. Where other units have the very same bytes, as the levels of a
// pyramid that share a head, they are theirs; they live as long as the last of them.
//
// Throws an Error where the kernels cannot take the unit.
Weights arrange(const mmg_unit& unit, const uint8_t* bits);

}  // namespace mmgroupnet

#endif  // MMGROUPNET_ONNXRUNTIME_WEIGHTS_H_
