// Work on several threads.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_THREADS_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_THREADS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace prottrans_x86 {

// Threads that run functions; implemented with XLA's pool.
class Threads {
 public:
  virtual ~Threads() = default;
  virtual int64_t Count() const = 0;
  virtual void Schedule(std::function<void()> work) const = 0;
};

// Runs work(0) to work(count - 1) on the threads and this one. False if any call
// returned false.
template <typename Work>
bool InParallel(const Threads& threads, int64_t count, const Work& work) {
  struct State {
    explicit State(const Work& work) : work(work) {}
    const Work work;
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    bool good = true;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  // Shared ownership: a pool thread may start after this call has returned.
  auto state = std::make_shared<State>(work);
  auto run = [state, count] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      const bool good = state->work(i);
      std::lock_guard<std::mutex> lock(state->mutex);
      state->good = state->good && good;
      if (++state->done == count) state->all_done.notify_all();
    }
  };
  const int64_t helpers = std::min<int64_t>(threads.Count(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) threads.Schedule(run);
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
  return state->good;
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_THREADS_H_
