// Where the time of a pass goes: by stage, on the clock and summed over the threads.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace ossia {

class Stages {
  public:
    using Clock = std::chrono::steady_clock;
    struct Entry {
        std::string name;
        long calls;
        double seconds, busy;  // busy: of all threads together
    };

    // Forgets what was measured, and measures from now on.
    void start() {
        std::lock_guard<std::mutex> lock(mutex_);
        entries_.clear();
        on_ = true;
    }
    // What was measured, in the order in which the stages first ended; measures no more.
    std::vector<Entry> end() {
        on_ = false;
        std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(entries_, {});
    }

  private:
    friend class Stage;
    void add(const char* name, double seconds, double busy) {
        std::lock_guard<std::mutex> lock(mutex_);
        for (Entry& entry : entries_) {
            if (entry.name != name) continue;
            ++entry.calls;
            entry.seconds += seconds;
            entry.busy += busy;
            return;
        }
        entries_.push_back({name, 1, seconds, busy});
    }

    std::atomic<bool> on_{false};
    std::mutex mutex_;
    std::vector<Entry> entries_;
};

// What a thread does in a scope, less the stages within it. Costs a look at a flag unless stages are measured.
class Stage {
  public:
    Stage(Stages& stages, const char* name)
        : stages_(stages.on_.load(std::memory_order_relaxed) ? &stages : nullptr), name_(name) {
        if (!stages_) return;
        outer_ = std::exchange(current(), this);
        start_ = Stages::Clock::now();
    }
    ~Stage() {
        if (!stages_) return;
        const double all = std::chrono::duration<double>(Stages::Clock::now() - start_).count(), own = all - inner_;
        current() = outer_;
        if (outer_) outer_->inner_ += all;
        try {
            stages_->add(name_, own, own - shared_ + busy_);
        } catch (...) {  // without memory for its name, a stage is not counted
        }
    }
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;

    // The innermost of this thread, or null.
    static Stage*& current() {
        static thread_local Stage* own = nullptr;
        return own;
    }

    // All threads worked on a task for `seconds`, of which they were busy for `busy` in sum.
    void shared(double seconds, double busy) {
        shared_ += seconds;
        busy_ += busy;
    }

  private:
    Stages* const stages_;
    const char* const name_;
    Stage* outer_ = nullptr;
    Stages::Clock::time_point start_;
    double inner_ = 0, shared_ = 0, busy_ = 0;
};

}  // namespace ossia
