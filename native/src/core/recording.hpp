// The operations of a step, recorded with their arguments and replayed on the same memory.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ossia {

class Recording {
  public:
    // Operations of this thread between begin() and end() are recorded. A recording is made once: what has begun does
    // not begin again, and only what has ended runs, so no thread reads what another is adding to.
    void begin() {
        if (!current_.expired()) throw std::invalid_argument("a recording is under way already");
        State fresh = State::fresh;
        if (!state_.compare_exchange_strong(fresh, State::begun))
            throw std::invalid_argument("a recording cannot begin twice");
        current_ = operations_;
    }
    // Does nothing if it is not under way on this thread.
    void end() {
        if (current_.lock() != operations_) return;
        current_.reset();
        state_ = State::ended;
    }

    void run() const {
        if (state_ != State::ended) throw std::invalid_argument("a recording runs once it has ended");
        for (const Operation& operation : *operations_) operation.run();
    }

    long size() const { return state_ == State::ended ? static_cast<long>(operations_->size()) : 0; }

    static bool under_way() { return !current_.expired(); }

    // Adds an operation to this thread's recording, and keeps what it uses alive.
    static void keep(std::function<void()> operation, std::shared_ptr<void> used) {
        if (const auto operations = current_.lock()) operations->push_back({std::move(operation), std::move(used)});
    }

  private:
    enum class State { fresh, begun, ended };
    struct Operation {
        std::function<void()> run;
        std::shared_ptr<void> used;
    };
    using Operations = std::vector<Operation>;

    // Of this thread's recording, if that still exists.
    static thread_local std::weak_ptr<Operations> current_;
    const std::shared_ptr<Operations> operations_ = std::make_shared<Operations>();
    std::atomic<State> state_{State::fresh};
};

inline thread_local std::weak_ptr<Recording::Operations> Recording::current_;

}  // namespace ossia
