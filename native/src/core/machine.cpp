#include "core/machine.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "amx/amx.hpp"
#include "core/check.hpp"

namespace ossia {

namespace {

// From the slowest to the fastest.
std::vector<Machine::Form> forms() {
    std::vector<Machine::Form> known{{"portable", kernels_portable(), gemm_portable()}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        known.push_back({"avx2", kernels_avx2(), gemm_avx2()});
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
        // A product of 32 pairs takes the place of two multiply-adds and four operations that widen. It issues as often
        // as a multiply-add on AMD's processors since Zen 4, and a quarter as often on Intel's (Emerald Rapids). By the
        // maker, not by timing: the two forms round differently, and a processor's results must not vary.
        const bool pairs = __builtin_cpu_supports("avx512bf16"), fast = __builtin_cpu_is("amd");
        const auto add_pairs = [&] { known.push_back({"avx512+bf16", kernels_avx512_bf16(), gemm_avx512_bf16()}); };
        if (pairs && !fast) add_pairs();
        known.push_back({"avx512", kernels_avx512(), gemm_avx512()});
        if (pairs && fast) add_pairs();
    }
#elif defined(__aarch64__)
    known.push_back({"neon", kernels_neon(), gemm_portable()});
#endif
    return known;
}

#if defined(__x86_64__)
// AVX-512 with a matrix unit for the products of many tokens.
Gemm with(const TileGemm& tiles) {
    Gemm gemm = gemm_avx512();
    gemm.tiles = &tiles;
    return gemm;
}
TileGemm without_bytes(TileGemm tiles) {
    tiles.bytes = nullptr;
    return tiles;
}
#endif

Machine::Form choose(const std::string& isa) {
    std::vector<Machine::Form> known = forms();
    const auto named = [&] {
        return std::find_if(known.begin(), known.end(), [&](const auto& form) { return isa == form.name; });
    };
    if (named() != known.end()) return *named();
#if defined(__x86_64__)
    // AMX is probed last, so that asking for another instruction set never touches it.
    if (std::string(known.back().name).rfind("avx512", 0) == 0) {
#if defined(OSSIA_EMULATE_AMX)
        static const Gemm emulated = with(gemm_amx_emulated());
        if (isa == "amx-emulated") return {"amx-emulated", kernels_avx512(), emulated};
#endif
        const AmxState& state = amx_state();
        static const TileGemm tiles = state.multiplies_bytes ? gemm_amx() : without_bytes(gemm_amx());
        static const Gemm amx = with(tiles);
        if (state.usable) known.push_back({"avx512+amx", kernels_avx512(), amx});
        known.back().remark = state.remark;
    }
#endif
    if (isa.empty()) return known.back();
    if (named() != known.end()) return *named();
    std::string names;
    for (const Machine::Form& form : known) names += std::string(names.empty() ? "" : ", ") + form.name;
    throw std::invalid_argument("OSSIA_CPU_ISA=" + isa + ": this processor runs " + names);
}

int checked(int threads) {
    require(threads > 0, "threads: expected at least 1");
    return threads;
}

}  // namespace

Machine::Machine(int threads, const std::string& isa) : Machine(threads, choose(isa)) {}

Machine::Machine(int threads, const Form& form)
    : name_(form.name), remark_(form.remark), kernels_(form.kernels), gemm_(form.gemm), pool_(checked(threads)) {}

std::uint64_t Machine::sum(const Array& words) {
    const long count = words.size();
    expect("words", words, Type::int64, {count});
    std::vector<std::uint64_t> sums(pool_.size());
    pool_.run([&](int thread, int threads) {
        const Share mine = share(count, 512, thread, threads);
        sums[thread] = kernels_.sum(words.as<const std::uint64_t>() + mine.begin, mine.end - mine.begin);
    });
    return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
}

}  // namespace ossia
