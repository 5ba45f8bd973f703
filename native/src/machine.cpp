#include "machine.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace ossia {

namespace {

std::vector<Machine::Form> forms() {
    std::vector<Machine::Form> known{{"portable", kernels_portable(), gemm_portable()}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) known.push_back({"avx2", kernels_avx2(), gemm_avx2()});
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
        known.push_back({"avx512", kernels_avx512(), gemm_avx512()});
    }
#elif defined(__aarch64__)
    known.push_back({"neon", kernels_neon(), gemm_portable()});
#endif
    return known;
}

Machine::Form choose(const std::string& isa) {
    const std::vector<Machine::Form> known = forms();
    if (isa.empty()) return known.back();
    std::string names;
    for (const Machine::Form& form : known) {
        if (isa == form.name) return form;
        names += std::string(names.empty() ? "" : ", ") + form.name;
    }
    throw std::invalid_argument("OSSIA_CPU_ISA=" + isa + ": this processor runs " + names);
}

}  // namespace

Machine::Machine(int threads, const std::string& isa) : Machine(threads, choose(isa)) {}

Machine::Machine(int threads, const Form& form)
    : name_(form.name), kernels_(form.kernels), gemm_(form.gemm), pool_(std::max(threads, 1)) {}

std::uint64_t Machine::sum(const std::uint64_t* words, long count) {
    std::vector<std::uint64_t> sums(pool_.size());
    pool_.run([&](int thread, int threads) {
        const Share mine = share(count, 512, thread, threads);
        sums[thread] = kernels_.sum(words + mine.begin, mine.end - mine.begin);
    });
    return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
}

}  // namespace ossia
