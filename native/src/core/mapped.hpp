// Memory mapped from files that another process may cut short. Reading what is gone then raises SIGBUS, in whichever
// thread and kernel that happens. Nothing can be thrown from there, so the process ends, with a line that says why.
#pragma once

#include <cstdint>
#include <string>

namespace ossia {

// From now on SIGBUS within [begin, begin + size) prints `line` to stderr and ends the process with exit code 2. Other
// addresses are left to the handler before this one.
void watch(std::uintptr_t begin, std::uintptr_t size, const std::string& line);

// Ends that for the memory that begins there.
void unwatch(std::uintptr_t begin);

}  // namespace ossia
