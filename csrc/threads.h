// Jobs on several threads. Not for files of an instruction set: see ceil_div in kernels.h.
#ifndef MMGROUPNET_THREADS_H_
#define MMGROUPNET_THREADS_H_

#include <algorithm>
#include <cstdint>
#include <functional>

namespace mmgroupnet {

// Runs job(0) ... job(num_jobs - 1), each once, on up to `threads` threads including the caller's, and returns when all
// are done. A forked child does not have the threads of its parent, so there the caller runs all jobs. The first
// exception of a job is thrown to the caller; jobs that have not begun by then are skipped.
void parallel_for(int num_jobs, int threads, const std::function<void(int)>& job);

// Pixels of one job.
constexpr int64_t kPixelsPerJob = 256;

// Calls `job(first, end)` for pieces of the pixels [first, end).
inline void for_pixels(int64_t first, int64_t end, int threads, const std::function<void(int64_t, int64_t)>& job) {
  const int jobs = static_cast<int>((end - first + kPixelsPerJob - 1) / kPixelsPerJob);
  parallel_for(jobs, threads,
               [&](int i) { job(first + i * kPixelsPerJob, std::min(first + (i + 1) * kPixelsPerJob, end)); });
}

}  // namespace mmgroupnet

#endif  // MMGROUPNET_THREADS_H_
