#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mmgroupnet {
namespace {

class Pool {
 public:
  // Whether this call got the pool.
  bool run(int num_jobs, int threads, const std::function<void(int)>& job) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    while (static_cast<int>(workers_.size()) < threads - 1) {
      const int index = static_cast<int>(workers_.size());
      workers_.emplace_back([this, index] { work(index); });
      workers_.back().detach();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      num_jobs_ = num_jobs;
      next_.store(0, std::memory_order_relaxed);
      wanted_ = threads - 1;
      round_.fetch_add(1, std::memory_order_release);
    }
    start_.notify_all();
    take_jobs(job, num_jobs);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // a worker that wakes up only now finds nothing to do
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

 private:
  void take_jobs(const std::function<void(int)>& job, int num_jobs) {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < num_jobs;) job(i);
  }

  void work(int index) {
    uint64_t seen = 0;
    for (;;) {
      // Calls of a network come close behind each other: look for the next one for a while before going to sleep.
      for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; ++spin) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      const std::function<void(int)>* job;
      int num_jobs;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
        seen = round_.load(std::memory_order_relaxed);
        if (index >= wanted_ || job_ == nullptr) continue;
        ++active_;
        job = job_;
        num_jobs = num_jobs_;
      }
      take_jobs(*job, num_jobs);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--active_ == 0) done_.notify_one();
    }
  }

  static constexpr int kSpins = 2000;

  std::mutex owner_;
  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* job_ = nullptr;
  int num_jobs_ = 0;
  int wanted_ = 0;
  int active_ = 0;
  std::atomic<int> next_{0};
  std::atomic<uint64_t> round_{0};
};

// Never destroyed: its threads may still run when the process ends. A forked child has none of the threads and perhaps
// locked mutexes: it leaves the parent's pool alone and makes its own.
std::atomic<Pool*> pool{nullptr};

Pool& current_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  Pool* found = pool.load();
  if (found == nullptr) {
    Pool* made = new Pool;
    if (pool.compare_exchange_strong(found, made)) return *made;
    delete made;
  }
  return *found;
}

}  // namespace

void parallel_for(int num_jobs, int threads, const std::function<void(int)>& job) {
  if (threads > num_jobs) threads = num_jobs;
  if (threads > 1 && current_pool().run(num_jobs, threads, job)) return;
  for (int i = 0; i < num_jobs; ++i) job(i);
}

}  // namespace mmgroupnet
