// One pool of threads that runs a task on all of them at once; the caller is one of them.
#pragma once

#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace ossia {

// A contiguous share of [0, count) in whole multiples of `grain`.
struct Share {
    long begin, end;
};

inline Share share(long count, long grain, int thread, int threads) {
    const long pieces = (count + grain - 1) / grain;
    const long begin = pieces * thread / threads * grain, end = pieces * (thread + 1) / threads * grain;
    return {begin < count ? begin : count, end < count ? end : count};
}

class Pool {
  public:
    // Throws std::invalid_argument if the system does not start so many threads.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const { return threads_; }

    // Pins each worker to one of the processors the caller may use. The caller is not pinned, because processes it
    // starts would inherit that. Does nothing where the system cannot.
    void pin();

    // Runs tasks on the threads of the OpenMP runtime that torch has loaded, from now on, if there is one with GCC's
    // entry points. Between two of torch's operations its threads wait busily, and a second pool would have to wait for
    // them; two such pools on two processors are half as fast as one thread.
    void share_threads();

    // Calls task(thread, threads) on every thread and returns when all are done. Callers take turns; a task must not
    // call run(). Throws what a thread threw, once all are done.
    template <class Task>
    void run(const Task& task) {
        run_erased(&task, [](const void* erased, int thread, int threads) {
            (*static_cast<const Task*>(erased))(thread, threads);
        });
    }

  private:
    using Call = void (*)(const void*, int, int);

    // The workers, what they wait on, and the task they are given.
    struct Crew {
        explicit Crew(int size);
        ~Crew();
        void pin();
        void run(const void* task, Call call);
        void work(int thread);
        void call_task(int thread) noexcept;
        void dismiss();

        std::vector<std::thread> workers;
        std::mutex mutex;
        std::condition_variable wake;
        std::atomic<unsigned> epoch{0};
        std::atomic<int> busy{0};
        std::atomic<int> sleeping{0};
        std::atomic<bool> stop{false};
        const int threads;  // with the caller
        const void* task = nullptr;
        Call call = nullptr;
        std::exception_ptr failure;  // the first that the task threw
        bool timed = false;          // whether `spent` is wanted
        std::atomic<long> spent{0};  // nanoseconds of all threads in the task
    };
    struct Forks;
    struct OpenMP;

    void run_erased(const void* task, Call call);

    const int threads_;
    bool pinned_ = false;
    const OpenMP* shared_ = nullptr;
    std::mutex turn_;             // of the callers; held while the process forks
    std::unique_ptr<Crew> crew_;  // null in a child process until its first task: threads do not survive a fork
};

// Pieces of [0, count) that threads take one by one: each thread first those of its own share, in order, then what the
// others have left. No one waits for a thread that lost its processor for a while, and a thread that keeps it reads the
// same memory each time.
class Pieces {
  public:
    // Pieces of `size`, a multiple of `grain`.
    Pieces(long count, long grain, long size, int threads) : size_(size), left_(threads) {
        for (int thread = 0; thread < threads; ++thread) {
            const Share own = share(count, grain, thread, threads);
            left_[thread].next.store(own.begin, std::memory_order_relaxed);
            left_[thread].end = own.end;
        }
    }

    // Calls task(begin, end) for the pieces that this thread gets.
    template <class Task>
    void take(int thread, const Task& task) {
        const int threads = static_cast<int>(left_.size());
        for (int turn = 0; turn < threads; ++turn) {
            Left& left = left_[(thread + turn) % threads];
            while (left.next.load(std::memory_order_relaxed) < left.end) {
                const long begin = left.next.fetch_add(size_, std::memory_order_relaxed);
                if (begin < left.end) task(begin, begin + size_ < left.end ? begin + size_ : left.end);
            }
        }
    }

  private:
    struct alignas(64) Left {
        std::atomic<long> next{0};
        long end = 0;
    };
    long size_;
    std::vector<Left> left_;
};

}  // namespace ossia
