// AVX-512 with products of pairs of bfloat16 numbers: Zen 4 and later, Cooper Lake, Sapphire Rapids and later.
#include "kernels/kernels.hpp"

#include <immintrin.h>

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

}  // namespace

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
