// The operations of a step, recorded with their arguments and replayed on the same memory.
#pragma once

#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ossia {

class Recording {
  public:
    ~Recording() {
        if (current_ == this) current_ = nullptr;
    }

    // Operations of this thread between begin() and end() are recorded.
    void begin() {
        if (current_) throw std::invalid_argument("a recording is under way already");
        current_ = this;
    }
    void end() {
        if (current_ == this) current_ = nullptr;
    }

    void run() const {
        for (const Operation& operation : operations_) operation.run();
    }

    long size() const { return static_cast<long>(operations_.size()); }

    // This thread's, or null.
    static Recording* current() { return current_; }

    // Adds an operation, and keeps what it uses alive.
    void keep(std::function<void()> operation, std::shared_ptr<void> used) {
        operations_.push_back({std::move(operation), std::move(used)});
    }

  private:
    struct Operation {
        std::function<void()> run;
        std::shared_ptr<void> used;
    };

    static thread_local Recording* current_;
    std::vector<Operation> operations_;
};

inline thread_local Recording* Recording::current_ = nullptr;

}  // namespace ossia
