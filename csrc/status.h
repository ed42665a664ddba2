// Turns exceptions into statuses, so that none leaves the C interface.
#ifndef MMGROUPNET_STATUS_H_
#define MMGROUPNET_STATUS_H_

#include <cstdint>

#include "mmgroupnet.h"

namespace mmgroupnet {

// The status of the exception that is being handled. Keeps its message for mmg_failure.
int32_t keep_failure() noexcept;

// Runs the body of a function of the C interface.
template <typename Body>
int32_t guard(const Body& body) noexcept {
  try {
    body();
    return MMG_OK;
  } catch (...) {
    return keep_failure();
  }
}

}  // namespace mmgroupnet

#endif  // MMGROUPNET_STATUS_H_
