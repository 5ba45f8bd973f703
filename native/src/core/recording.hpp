// The operations of a step, kept with their arguments to be run again on the same memory.
#pragma once

#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace ossia {

class Recording {
  public:
    ~Recording() {
        if (current_ == this) current_ = nullptr;
    }

    // From begin() to end() the operations of this thread are kept.
    void begin() {
        if (current_) throw std::invalid_argument("a recording is under way already");
        current_ = this;
    }
    void end() {
        if (current_ == this) current_ = nullptr;
    }

    void run() const {
        for (const std::function<void()>& operation : operations_) operation();
    }

    long size() const { return static_cast<long>(operations_.size()); }

    // Keeps an operation if this thread is recording.
    template <class Operation>
    static void keep(Operation operation) {
        if (current_) current_->operations_.emplace_back(std::move(operation));
    }

  private:
    static thread_local Recording* current_;
    std::vector<std::function<void()>> operations_;
};

inline thread_local Recording* Recording::current_ = nullptr;

}  // namespace ossia
