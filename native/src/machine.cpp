#include "machine.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace ossia {

namespace {

const Kernels& choose(const std::string& isa) {
    std::vector<const Kernels*> known{&kernels_portable()};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) known.push_back(&kernels_avx2());
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
        known.push_back(&kernels_avx512());
    }
#elif defined(__aarch64__)
    known.push_back(&kernels_neon());
#endif
    if (isa.empty()) return *known.back();
    std::string names;
    for (const Kernels* kernels : known) {
        if (isa == kernels->name) return *kernels;
        names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    throw std::invalid_argument("OSSIA_CPU_ISA=" + isa + ": this processor runs " + names);
}

}  // namespace

Machine::Machine(int threads, const std::string& isa) : kernels_(choose(isa)), pool_(std::max(threads, 1)) {}

std::uint64_t Machine::sum(const std::uint64_t* words, long count) {
    std::vector<std::uint64_t> sums(pool_.size());
    pool_.run([&](int thread, int threads) {
        const Share mine = share(count, 512, thread, threads);
        sums[thread] = kernels_.sum(words + mine.begin, mine.end - mine.begin);
    });
    return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
}

}  // namespace ossia
