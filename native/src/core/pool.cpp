#include "core/pool.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "core/stages.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace ossia {

namespace {

// Spins at first, then yields the processor between polls to other threads, such as torch's.
class Wait {
  public:
    // Whether less than half a millisecond has passed: longer than the gap between two operations of a layer, and ten
    // times the cost of waking a thread.
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
    static constexpr int kLooks = 32;  // between two readings of the clock
    Clock::duration elapsed() const { return Clock::now() - start_; }

    const Clock::time_point start_ = Clock::now();
    int looks_ = 0;
};

}  // namespace

// All pools, for what must happen to them when the process forks: no task may be under way then, and the child has to
// start workers of its own.
struct Pool::Forks {
    std::mutex mutex;  // of `pools`
    std::vector<Pool*> pools;

    // Never destroyed: a pool may be, after the static objects.
    static Forks& all() {
        static Forks& forks = *new Forks;
        return forks;
    }

    Forks() {
#if !defined(_WIN32)
        pthread_atfork([] { all().before(); }, [] { all().after(); }, [] { all().in_child(); });
#endif
    }

    void add(Pool* pool) {
        std::lock_guard<std::mutex> lock(mutex);
        pools.push_back(pool);
    }

    void remove(Pool* pool) {
        std::lock_guard<std::mutex> lock(mutex);
        pools.erase(std::find(pools.begin(), pools.end(), pool));
    }

    void before() {
        mutex.lock();
        for (Pool* pool : pools) pool->turn_.lock();
    }

    void after() {
        for (Pool* pool : pools) pool->turn_.unlock();
        mutex.unlock();
    }

    // The parent's threads can be neither joined nor detached here, so the crew is left as it is. OpenMP's threads do
    // not survive a fork either.
    void in_child() {
        for (Pool* pool : pools) {
            static_cast<void>(pool->crew_.release());
            pool->shared_ = nullptr;
        }
        after();
    }
};

// The runtime's functions, and a task on its threads: it may start fewer than it is asked for.
struct Pool::OpenMP {
    void (*parallel)(void (*task)(void*), void* data, unsigned threads, unsigned flags);
    int (*thread)();
    int (*threads)();

    struct Job {
        const OpenMP& runtime;
        const void* task;
        Call call;
        int threads;
        std::mutex mutex;
        std::exception_ptr failure;
    };

    static void work(void* data) noexcept {
        Job& job = *static_cast<Job*>(data);
        for (int thread = job.runtime.thread(); thread < job.threads; thread += job.runtime.threads()) {
            try {
                job.call(job.task, thread, job.threads);
            } catch (...) {
                std::lock_guard<std::mutex> lock(job.mutex);
                if (!job.failure) job.failure = std::current_exception();
            }
        }
    }

    static const OpenMP* found() {
#if defined(_WIN32)
        return nullptr;
#else
        static const OpenMP runtime{
            reinterpret_cast<decltype(OpenMP::parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel")),
            reinterpret_cast<decltype(OpenMP::thread)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num")),
            reinterpret_cast<decltype(OpenMP::threads)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"))};
        return runtime.parallel && runtime.thread && runtime.threads ? &runtime : nullptr;
#endif
    }
};

Pool::Pool(int threads) : threads_(threads), crew_(new Crew(threads)) { Forks::all().add(this); }

Pool::~Pool() { Forks::all().remove(this); }

void Pool::pin() {
    std::lock_guard<std::mutex> turn(turn_);
    pinned_ = true;
    if (crew_) crew_->pin();
}

void Pool::share_threads() {
    std::lock_guard<std::mutex> turn(turn_);
    shared_ = OpenMP::found();
    if (shared_) crew_.reset();
}

void Pool::run_erased(const void* task, Call call) {
    std::lock_guard<std::mutex> turn(turn_);
    if (shared_) {
        OpenMP::Job job{*shared_, task, call, threads_, {}, {}};
        shared_->parallel(OpenMP::work, &job, static_cast<unsigned>(threads_), 0);
        if (job.failure) std::rethrow_exception(job.failure);
        return;
    }
    if (!crew_) {
        crew_.reset(new Crew(threads_));
        if (pinned_) crew_->pin();
    }
    crew_->run(task, call);
}

Pool::Crew::Crew(int size) : threads(size) {
    try {
        for (int thread = 1; thread < threads; ++thread) {
            workers.emplace_back([this, thread] { work(thread); });
        }
    } catch (const std::system_error&) {
        dismiss();
        throw std::invalid_argument(std::to_string(size) + " threads are more than the system starts");
    } catch (...) {
        dismiss();
        throw;
    }
}

Pool::Crew::~Crew() { dismiss(); }

void Pool::Crew::dismiss() {
    {
        std::lock_guard<std::mutex> lock(mutex);
        stop = true;
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
}

void Pool::Crew::pin() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    std::vector<int> processors;
    for (int processor = 0; processor < CPU_SETSIZE; ++processor)
        if (CPU_ISSET(processor, &allowed)) processors.push_back(processor);
    for (std::size_t worker = 0; worker < workers.size(); ++worker) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(processors[(worker + 1) % processors.size()], &one);
        pthread_setaffinity_np(workers[worker].native_handle(), sizeof one, &one);
    }
#endif
}

void Pool::Crew::run(const void* new_task, Call new_call) {
    task = new_task;
    call = new_call;
    Stage* const stage = Stage::current();
    const Stages::Clock::time_point start = stage ? Stages::Clock::now() : Stages::Clock::time_point();
    timed = stage != nullptr;
    spent.store(0, std::memory_order_relaxed);
    busy.store(static_cast<int>(workers.size()), std::memory_order_relaxed);
    // Sequentially consistent, like the store by which a worker goes to sleep: either it sees the new epoch or we see
    // it asleep.
    epoch.fetch_add(1);
    if (sleeping.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex);
        wake.notify_all();
    }
    call_task(0);
    for (Wait wait; busy.load(std::memory_order_acquire) > 0;) wait.rest();
    if (stage)
        stage->shared(std::chrono::duration<double>(Stages::Clock::now() - start).count(),
                      1e-9 * static_cast<double>(spent.load(std::memory_order_relaxed)));
    if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
}

// An exception, such as of memory that there is not, must leave neither a worker nor the caller while others still use
// the task.
void Pool::Crew::call_task(int thread) noexcept {
    const Stages::Clock::time_point start = timed ? Stages::Clock::now() : Stages::Clock::time_point();
    try {
        call(task, thread, threads);
    } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!failure) failure = std::current_exception();
    }
    if (timed) {
        const auto passed = std::chrono::duration_cast<std::chrono::nanoseconds>(Stages::Clock::now() - start);
        spent.fetch_add(passed.count(), std::memory_order_relaxed);
    }
}

void Pool::Crew::work(int thread) {
    // Allocates what the C++ library needs to throw in this thread: without memory it would end the process.
    static_cast<void>(std::uncaught_exceptions());
    unsigned seen = 0;
    for (;;) {
        for (Wait wait; epoch.load(std::memory_order_acquire) == seen && wait.short_yet();) wait.rest();
        if (epoch.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex);
            sleeping.fetch_add(1);
            wake.wait(lock, [&] { return epoch.load() != seen || stop; });
            sleeping.fetch_sub(1);
            if (epoch.load() == seen) return;  // stopped
        }
        seen = epoch.load(std::memory_order_acquire);
        call_task(thread);
        busy.fetch_sub(1, std::memory_order_release);
    }
}

}  // namespace ossia
