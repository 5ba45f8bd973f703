#include "pool.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ossia {

namespace {

// Half a millisecond or so, longer than what lies between two operations of a layer: waking a thread costs a tenth of one.
constexpr int kSpins = 10000;

// Between two looks: a moment's rest, and now and then the core for whoever else wants it, such as torch's threads.
void rest(int spin) {
    if (spin % 32 == 31) {
        std::this_thread::yield();
        return;
    }

#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

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
    for (int spin = 0; busy_.load(std::memory_order_acquire) > 0; ++spin) rest(spin);
}

void Pool::work(int thread) {
    unsigned seen = 0;
    for (;;) {
        for (int spin = 0; spin < kSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin) rest(spin);
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
