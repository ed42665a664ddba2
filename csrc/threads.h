// A pool of threads that lives as long as the process.
#ifndef MMGROUPNET_THREADS_H_
#define MMGROUPNET_THREADS_H_

#include <functional>

namespace mmgroupnet {

// Runs job(0) ... job(num_jobs - 1), each once, on up to `threads` threads, the caller's among them, and returns when
// all are done. Safe in forked workers, which get a pool of their own, and when several threads call it: the first has
// the pool, the others work alone.
void parallel_for(int num_jobs, int threads, const std::function<void(int)>& job);

}  // namespace mmgroupnet

#endif  // MMGROUPNET_THREADS_H_
