// Jobs on the threads of OpenMP, because torch uses it: other threads would compete for the cores with torch's, which
// wait for work in a busy loop for some milliseconds. The loader resolves the name libgomp.so.1 to the library that
// torch has loaded.
#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <exception>

namespace mmgroupnet {
namespace {

// OpenMP does not work after a fork: the child would wait for threads that exist only in its parent.
std::atomic<bool> is_forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked.store(true); });

}  // namespace

void parallel_for(int num_jobs, int threads, const std::function<void(int)>& job) {
  (void)registered;
  if (threads > num_jobs) threads = num_jobs;
  if (threads <= 1 || is_forked.load()) {
    for (int i = 0; i < num_jobs; ++i) job(i);
    return;
  }
  // An exception must not leave an OpenMP region.
  std::atomic<bool> has_failed{false};
  std::exception_ptr failure;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int i = 0; i < num_jobs; ++i) {
    if (has_failed.load()) continue;
    try {
      job(i);
    } catch (...) {
      if (!has_failed.exchange(true)) failure = std::current_exception();
    }
  }
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace mmgroupnet
