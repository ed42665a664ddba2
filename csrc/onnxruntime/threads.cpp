// Jobs on the threads of the session that runs a node: other threads would compete with them for the cores.
#include "threads.h"

#include <atomic>
#include <exception>

#include "ort.h"

namespace mmgroupnet {
namespace {

thread_local const OrtApi* session_api = nullptr;
thread_local const OrtKernelContext* session_context = nullptr;

}  // namespace

SessionThreads::SessionThreads(const OrtApi& api, const OrtKernelContext& context) {
  session_api = &api;
  session_context = &context;
}

SessionThreads::~SessionThreads() { session_api = nullptr; }

void parallel_for(int num_jobs, int threads, const std::function<void(int)>& job) {
  if (threads <= 1 || num_jobs <= 1 || session_api == nullptr) {
    for (int i = 0; i < num_jobs; ++i) job(i);
    return;
  }
  // An exception must not propagate into ONNX Runtime.
  struct Work {
    const std::function<void(int)>& job;
    std::atomic<bool> has_failed{false};
    std::exception_ptr failure{};
  } work{job};
  const auto run = [](void* data, size_t i) {
    Work& work = *static_cast<Work*>(data);
    if (work.has_failed.load()) return;
    try {
      work.job(static_cast<int>(i));
    } catch (...) {
      if (!work.has_failed.exchange(true)) work.failure = std::current_exception();
    }
  };
  check(*session_api, session_api->KernelContext_ParallelFor(session_context, run, num_jobs, 0, &work));
  if (work.failure != nullptr) std::rethrow_exception(work.failure);
}

}  // namespace mmgroupnet
