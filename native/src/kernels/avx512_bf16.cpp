// AVX-512 with products of pairs of bfloat16 numbers: Zen 4 and later, Cooper Lake, Sapphire Rapids and later.
#include "kernels/kernels.hpp"

#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace ossia {
namespace {

// Sums of the products of pairs of adjacent columns.
struct Vec {
    static constexpr int kWidth = 32;
    static constexpr int kRows = 4;
    __m512 v;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static __m512bh load(const bf16* p) {
        __m512bh pairs;
        std::memcpy(&pairs, p, sizeof pairs);
        return pairs;
    }
    static Vec fma(__m512bh a, __m512bh b, Vec c) { return {_mm512_dpbf16_ps(c.v, a, b)}; }
    float sum() const { return _mm512_reduce_add_ps(v); }
};

#include "kernels/dense.inl"

// Nanoseconds that many times `step` take, which adds to eight sums that do not wait for each other; the least of some
// tries, because a try may lose its processor.
template <class Step>
double time_of(const Step& step) {
    constexpr int kTries = 8, kSteps = 2000;
    double least = 1e30;
    for (int i = 0; i < kTries; ++i) {
        __m512 a = {}, b = a, c = a, d = a, e = a, f = a, g = a, h = a;
        const auto start = std::chrono::steady_clock::now();
        for (int j = 0; j < kSteps; ++j) {
            a = step(a), b = step(b), c = step(c), d = step(d), e = step(e), f = step(f), g = step(g), h = step(h);
            // Or the compiler would know the result.
            asm volatile("" : "+v"(a), "+v"(b), "+v"(c), "+v"(d), "+v"(e), "+v"(f), "+v"(g), "+v"(h));
        }
        const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
        least = std::min(least, spent.count());
    }
    return least;
}

}  // namespace

// A product of 32 pairs takes the place of two multiply-adds and four operations that widen. It issues as often as one
// multiply-add on AMD's processors, a quarter as often on Intel's without a matrix unit.
bool bf16_pairs_are_fast() {
    static const bool fast = [] {
        const __m512 ones = _mm512_set1_ps(1);
        const __m512bh pairs = Vec::load(reinterpret_cast<const bf16*>(&ones));
        const double of_pairs = time_of([&](__m512 sum) { return _mm512_dpbf16_ps(sum, pairs, pairs); });
        return of_pairs < 2 * time_of([&](__m512 sum) { return _mm512_fmadd_ps(ones, ones, sum); });
    }();
    return fast;
}

const Kernels& kernels_avx512_bf16() {
    static const Kernels kernels = [] {
        Kernels form = kernels_avx512();
        form.name = "avx512+bf16";
        form.dense_pairs = dense<bf16, bf16>;
        return form;
    }();
    return kernels;
}

}  // namespace ossia
