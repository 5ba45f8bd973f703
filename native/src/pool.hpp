// One pool of threads that runs a task on all of them at once; the caller is one of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace ossia {

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(thread, threads) on every thread, returns when all have. Callers take turns; a task must not call run().
    template <class Task>
    void run(const Task& task) {
        run_erased(&task, [](const void* erased, int thread, int threads) {
            (*static_cast<const Task*>(erased))(thread, threads);
        });
    }

  private:
    using Call = void (*)(const void*, int, int);
    void run_erased(const void* task, Call call);
    void work(int thread);

    std::vector<std::thread> workers_;
    std::mutex turn_;  // of the callers
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<unsigned> epoch_{0};
    std::atomic<int> busy_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stop_{false};
    const void* task_ = nullptr;
    Call call_ = nullptr;
};

// A contiguous share of [0, count) in whole multiples of `grain`.
struct Share {
    long begin, end;
};

inline Share share(long count, long grain, int thread, int threads) {
    const long pieces = (count + grain - 1) / grain;
    const long begin = pieces * thread / threads * grain, end = pieces * (thread + 1) / threads * grain;
    return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace ossia
