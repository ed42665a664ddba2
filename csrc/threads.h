// Jobs on several threads. Not for files of an instruction set, see kernels.h.
#ifndef MMGROUPNET_THREADS_H_
#define MMGROUPNET_THREADS_H_

#include <algorithm>
#include <cstdint>
#include <functional>

namespace mmgroupnet {

// Runs job(0) ... job(num_jobs - 1), each once, on up to `threads` threads, the caller's among them, and returns when
// all are done. In a forked child the caller works alone: the threads of its parent are not there. The first exception
// of a job goes to the caller; jobs that have not begun by then are left out.
void parallel_for(int num_jobs, int threads, const std::function<void(int)>& job);

// Pixels of one job.
constexpr int64_t kPixelsPerJob = 256;

// Calls `job(first, last)` for pieces of the pixels [first, last).
inline void for_pixels(int64_t first, int64_t last, int threads, const std::function<void(int64_t, int64_t)>& job) {
  const int jobs = static_cast<int>((last - first + kPixelsPerJob - 1) / kPixelsPerJob);
  parallel_for(jobs, threads,
               [&](int i) { job(first + i * kPixelsPerJob, std::min(first + (i + 1) * kPixelsPerJob, last)); });
}

}  // namespace mmgroupnet

#endif  // MMGROUPNET_THREADS_H_
