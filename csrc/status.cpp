#include "status.h"

#include <cstdio>
#include <exception>
#include <new>

#include "memory.h"

namespace mmgroupnet {
namespace {

thread_local char failure[256] = "";

}  // namespace

int32_t keep_failure() noexcept {
  try {
    throw;
  } catch (const OutOfMemory& error) {
    std::snprintf(failure, sizeof(failure), "%zu bytes could not be allocated", error.bytes);
    return MMG_OUT_OF_MEMORY;
  } catch (const std::bad_alloc&) {
    std::snprintf(failure, sizeof(failure), "memory could not be allocated");
    return MMG_OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    std::snprintf(failure, sizeof(failure), "%s", error.what());
  } catch (...) {
    std::snprintf(failure, sizeof(failure), "unknown exception");
  }
  return MMG_FAILED;
}

}  // namespace mmgroupnet

const char* mmg_failure(void) { return mmgroupnet::failure; }
