// AVX2 with FMA: any x86-64 of the last ten years.
#include "kernels/kernels.hpp"

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ossia {
namespace {

struct Vec {
    static constexpr int kWidth = 8;
    static constexpr int kRows = 2;  // times four tokens fill the sixteen registers
    static constexpr int kTileRows = 4, kTileColumns = 3;
    __m256 v;

    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec fill(float value) { return {_mm256_set1_ps(value)}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const bf16* p) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))};
    }
    static Vec load(const std::int8_t* p) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
    }
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
    static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
    static Vec if_less(Vec a, Vec b, Vec then, Vec other) {
        return {_mm256_blendv_ps(other.v, then.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
    }
    // The sum of the lanes of each.
    static Vec sums(const Vec (&rows)[kWidth]) {
        const auto four = [&rows](int i) {
            return _mm256_hadd_ps(_mm256_hadd_ps(rows[i].v, rows[i + 1].v),
                                  _mm256_hadd_ps(rows[i + 2].v, rows[i + 3].v));
        };
        const __m256 low = four(0), high = four(4);
        return {_mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31))};
    }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    float sum() const {
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    // In two steps, because 2^n itself may not be a float32.
    Vec scaled(Vec n) const {
        const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
        const auto power = [](__m256i e) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
        };
        return {_mm256_mul_ps(_mm256_mul_ps(v, power(half)), power(_mm256_sub_epi32(whole, half)))};
    }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }

struct Codes {
    static constexpr int kCount = 16;
    __m256i words;

    static Codes load(const std::int8_t* p) {
        return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
};

struct Dots {
    static constexpr int kSums = 4;
    __m256i v;

    static Dots zero() { return {_mm256_setzero_si256()}; }
    void add(Codes codes, const std::int16_t* words) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
        v = _mm256_add_epi32(v, _mm256_madd_epi16(codes.words, x));
        asm("" : "+x"(v));  // added now: GCC would put it off until all products are computed, and spill these
    }
    Vec floats() const { return {_mm256_cvtepi32_ps(v)}; }
};

#include "kernels/exp.inl"

// These call exp2 and exp.
#include "kernels/attend.inl"
#include "kernels/attend_block.inl"
#include "kernels/dense.inl"
#include "kernels/columns.inl"
#include "kernels/int8.inl"
#include "kernels/int8_words.inl"
#include "kernels/mxfp4.inl"
#include "kernels/packed.inl"
#include "kernels/packed_words.inl"
#include "kernels/rope.inl"
#include "kernels/rowwise.inl"
#include "kernels/gradients.inl"
#include "kernels/sampling.inl"

// Prefetches codes 8 KB ahead into the second-level cache: the hardware prefetcher stops at page boundaries.
template <int kRows, int kTokens>
inline void packed_block(const Packed& w, const std::int16_t* const* words, const float* scales, float* const* y,
                         long row, long column) {
    const __m128i table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    const __m128i low_nibbles = _mm_set1_epi8(15);
    constexpr long kAhead = 8192;
    const long groups = w.cols / kBlock;
    Vec sums[kRows][kTokens];
    for (auto& of_row : sums)
        for (Vec& sum : of_row) sum = Vec::zero();
#pragma GCC unroll 4
    for (long g = 0; g < groups; ++g) {
        for (int r = 0; r < kRows; ++r) {
            const long block = (row + r) * groups + g;
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w.blocks + block * 16));
            if (g % 4 == 0) _mm_prefetch(reinterpret_cast<const char*>(w.blocks + block * 16 + kAhead), _MM_HINT_T1);
            const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_nibbles);
            const __m256i even = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, _mm_and_si128(bytes, low_nibbles)));
            const __m256i odd = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, high));
            const __m256 power = _mm256_broadcast_ss(&kPowers.of[w.scales[block]]);
            for (int t = 0; t < kTokens; ++t) {
                const __m256i* x = reinterpret_cast<const __m256i*>(words[t] + g * kBlock);
                const __m256i dot = _mm256_add_epi32(_mm256_madd_epi16(even, _mm256_loadu_si256(x)),
                                                     _mm256_madd_epi16(odd, _mm256_loadu_si256(x + 1)));
                sums[r][t].v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), power, sums[r][t].v);
            }
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) y[t][column + r] = sums[r][t].sum() * scales[t];
}

template <int kRows>
inline void packed_tokens(const Packed& w, const std::int16_t* const* words, const float* scales, long tokens,
                          float* const* y, long row, long column) {
    switch (tokens) {
        case 1:
            return packed_block<kRows, 1>(w, words, scales, y, row, column);
        case 2:
            return packed_block<kRows, 2>(w, words, scales, y, row, column);
        case 3:
            return packed_block<kRows, 3>(w, words, scales, y, row, column);
        default:
            return packed_block<kRows, 4>(w, words, scales, y, row, column);
    }
}

void packed(const Packed& w, const std::int16_t* const* words, const float* scales, long tokens, float* const* y,
            long begin, long end) {
    by_rows_and_tokens<2>(
        tokens, begin, end,
        [&](long row, long t, long n) { packed_tokens<2>(w, words + t, scales + t, n, y + t, row, row - begin); },
        [&](long row, long t, long n) { packed_tokens<1>(w, words + t, scales + t, n, y + t, row, row - begin); });
}

#include "kernels/table.inl"

}  // namespace

const Kernels& kernels_avx2() {
    static constexpr Kernels kernels = table("avx2");
    return kernels;
}

}  // namespace ossia
