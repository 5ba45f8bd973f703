#include "core/pool.hpp"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace ossia {

namespace {

// Waits for what comes soon without leaving the processor, and then offers it, between looks, to whoever wants it, such
// as torch's threads.
class Wait {
  public:
    // Whether less than half a millisecond has gone by: longer than what lies between two operations of a layer, and
    // ten times what waking a thread costs.
    bool short_yet() const { return looks_ % kLooks || elapsed() < std::chrono::microseconds(500); }

    void rest() {
        if (++looks_ % kLooks == 0 && elapsed() > std::chrono::microseconds(50)) {
            std::this_thread::yield();
            return;
        }
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

  private:
    using Clock = std::chrono::steady_clock;
    static constexpr int kLooks = 32;  // between two at the clock
    Clock::duration elapsed() const { return Clock::now() - start_; }

    const Clock::time_point start_ = Clock::now();
    int looks_ = 0;
};

}  // namespace

Pool::Pool(int threads) {
    for (int thread = 1; thread < threads; ++thread) {
        workers_.emplace_back([this, thread] { work(thread); });
    }
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::pin() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    std::vector<int> processors;
    for (int processor = 0; processor < CPU_SETSIZE; ++processor)
        if (CPU_ISSET(processor, &allowed)) processors.push_back(processor);
    for (std::size_t worker = 0; worker < workers_.size(); ++worker) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(processors[(worker + 1) % processors.size()], &one);
        pthread_setaffinity_np(workers_[worker].native_handle(), sizeof one, &one);
    }
#endif
}

void Pool::run_erased(const void* task, Call call) {
    std::lock_guard<std::mutex> turn(turn_);
    task_ = task;
    call_ = call;
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    // Sequentially consistent, as is a worker's going to sleep: either it sees the new epoch or we see it asleep.
    epoch_.fetch_add(1);
    if (sleeping_.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    call(task, 0, size());
    for (Wait wait; busy_.load(std::memory_order_acquire) > 0;) wait.rest();
}

void Pool::work(int thread) {
    unsigned seen = 0;
    for (;;) {
        for (Wait wait; epoch_.load(std::memory_order_acquire) == seen && wait.short_yet();) wait.rest();
        if (epoch_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleeping_.fetch_add(1);
            wake_.wait(lock, [&] { return epoch_.load() != seen || stop_; });
            sleeping_.fetch_sub(1);
            if (epoch_.load() == seen) return;  // stopped
        }
        seen = epoch_.load(std::memory_order_acquire);
        call_(task_, thread, size());
        busy_.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace ossia
