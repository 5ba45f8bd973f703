#include "core/mapped.hpp"

#if defined(_WIN32)

namespace ossia {

void watch(std::uintptr_t, std::uintptr_t, const std::string&) {}
void unwatch(std::uintptr_t) {}

}  // namespace ossia

#else

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

namespace ossia {

namespace {

constexpr int kExitCode = 2;  // of all that is wrong with a file

// Entries are reused but never freed, so that the handler needs no lock.
struct Watched {
    std::atomic<std::uintptr_t> begin{0}, end{0};
    std::string line;
    Watched* next = nullptr;
};

std::atomic<Watched*> all{nullptr};
std::mutex changes;
struct sigaction before;

void on_bus_error(int, siginfo_t* info, void*) {
    const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
    for (const Watched* entry = all; entry; entry = entry->next) {
        if (address < entry->begin || address >= entry->end) continue;
        [[maybe_unused]] const auto written = write(STDERR_FILENO, entry->line.data(), entry->line.size());
        _exit(kExitCode);
    }
    sigaction(SIGBUS, &before, nullptr);  // which gets it when the read is tried again
}

void install() {
    struct sigaction action{};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &before);
}

}  // namespace

void watch(std::uintptr_t begin, std::uintptr_t size, const std::string& line) {
    const std::lock_guard<std::mutex> lock(changes);
    if (!all) install();
    Watched* entry = all;
    while (entry && entry->end) entry = entry->next;
    if (!entry) {
        entry = new Watched;
        entry->next = all;
        all = entry;
    }
    entry->line = line;
    entry->begin = begin;
    entry->end = begin + size;
}

void unwatch(std::uintptr_t begin) {
    const std::lock_guard<std::mutex> lock(changes);
    for (Watched* entry = all; entry; entry = entry->next)
        if (entry->begin == begin) entry->end = 0;
}

}  // namespace ossia

#endif
