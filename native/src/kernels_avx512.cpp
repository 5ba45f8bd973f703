// AVX-512 with VNNI: Ice Lake and later, Zen 4 and later.
#include "kernels.hpp"

#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ossia {
namespace {

struct Vec {
    static constexpr int kWidth = 16;
    static constexpr int kRows = 4;
    static constexpr int kTileRows = 8, kTileColumns = 3;  // of thirty-two registers
    __m512 v;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec fill(float value) { return {_mm512_set1_ps(value)}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const bf16* p) {
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
    }
    static Vec load(const std::int8_t* p) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
    }
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
    static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
    static Vec if_less(Vec a, Vec b, Vec then, Vec other) {
        return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), other.v, then.v)};
    }
    // The sum of each.
    static Vec sums(const Vec (&rows)[kWidth]) {
        __m512 pairs[8], fours[4];
        for (int i = 0; i < 8; ++i) {
            const __m512 a = rows[2 * i].v, b = rows[2 * i + 1].v;
            pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        for (int i = 0; i < 4; ++i) {
            const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
            fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
        }
        const auto joined = [](__m512 a, __m512 b) {
            return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
        };
        return {joined(joined(fours[0], fours[1]), joined(fours[2], fours[3]))};
    }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    float sum() const { return _mm512_reduce_add_ps(v); }
    Vec scaled(Vec n) const { return {_mm512_scalef_ps(v, n.v)}; }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }

#include "exp.inl"
#include "dense.inl"
#include "packed.inl"
#include "attend.inl"
#include "rowwise.inl"

constexpr int kBlock = 32;
constexpr int kGroup = 128;  // columns of one 64-byte load

long quantized_size(long cols) { return (cols + kGroup - 1) / kGroup * kGroup; }

// A 16-bit word of codes holds four columns, and a permutation looks up one of them in each of the 32 words of a load: first
// every column 4k of the group, then every column 4k + 1, and so on.
void quantize(const float* x, long cols, std::int16_t* words, float* scale) {
    quantize_to(x, cols, words, quantized_size(cols), scale,
                [](long c) { return c / kGroup * kGroup + c % 4 * 32 + c % kGroup / 4; });
}

struct Tables {
    __m512i twice;   // 2 * value of code i & 15 at i: doubled, so that the permutation's fifth index bit needs no mask
    __m512i turns;   // brings each scale byte of a group's four blocks to the exponent of its four lanes
    __m512i exponent;
};

inline Tables tables() {
    alignas(64) std::int16_t twice[32];
    alignas(64) std::int32_t turns[16];
    constexpr std::int16_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (int i = 0; i < 32; ++i) twice[i] = kTwice[i % 16];
    for (int i = 0; i < 16; ++i) turns[i] = (23 - i / 4 * 8 + 32) % 32;
    return {_mm512_load_si512(twice), _mm512_load_si512(turns), _mm512_set1_epi32(0x7F800000)};
}

template <int kRows, int kTokens>
inline void accumulate(const Tables& table, const __m512i (&codes)[kRows], const __m512 (&powers)[kRows],
                       const std::int16_t* const* words, long offset, __m512 (&sums)[kRows][kTokens]) {
    __m512i dots[kRows][kTokens];
    for (auto& of_row : dots)
        for (__m512i& dot : of_row) dot = _mm512_setzero_si512();
    for (int nibble = 0; nibble < 4; ++nibble) {
        __m512i weights[kRows];
        for (int r = 0; r < kRows; ++r)
            weights[r] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes[r], 4 * nibble), table.twice);
        for (int t = 0; t < kTokens; ++t) {
            const __m512i x = _mm512_loadu_si512(words[t] + offset + nibble * 32);
            for (int r = 0; r < kRows; ++r) dots[r][t] = _mm512_dpwssd_epi32(dots[r][t], weights[r], x);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t)
            sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r][t]), powers[r], sums[r][t]);
}

template <int kRows, int kTokens>
inline void packed_block(const Tables& table, const Packed& w, const std::int16_t* const* words, const float* scales,
                         float* const* y, long row, long column) {
    const long blocks = w.cols / kBlock, groups = w.cols / kGroup, rest = blocks % 4;
    const std::uint8_t* codes_of[kRows];
    const std::uint8_t* scales_of[kRows];
    __m512 sums[kRows][kTokens];
    for (int r = 0; r < kRows; ++r) {
        codes_of[r] = w.blocks + (row + r) * blocks * 16;
        scales_of[r] = w.scales + (row + r) * blocks;
        for (int t = 0; t < kTokens; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    const auto powers_of = [&](const void* four) {
        const __m512i turned = _mm512_rolv_epi32(_mm512_broadcastd_epi32(_mm_loadu_si32(four)), table.turns);
        return _mm512_castsi512_ps(_mm512_and_si512(turned, table.exponent));
    };
    __m512i codes[kRows];
    __m512 powers[kRows];
    for (long g = 0; g < groups; ++g) {
        for (int r = 0; r < kRows; ++r) {
            codes[r] = _mm512_loadu_si512(codes_of[r] + g * 64);
            _mm_prefetch(reinterpret_cast<const char*>(codes_of[r] + g * 64 + 8192), _MM_HINT_T1);
            powers[r] = powers_of(scales_of[r] + g * 4);
        }
        accumulate<kRows, kTokens>(table, codes, powers, words, g * kGroup, sums);
    }
    if (rest) {
        const __mmask64 valid = (1ULL << (rest * 16)) - 1;
        for (int r = 0; r < kRows; ++r) {
            codes[r] = _mm512_maskz_loadu_epi8(valid, codes_of[r] + groups * 64);
            std::uint32_t four = 0;
            std::memcpy(&four, scales_of[r] + groups * 4, rest);
            powers[r] = powers_of(&four);
        }
        accumulate<kRows, kTokens>(table, codes, powers, words, groups * kGroup, sums);
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) y[t][column + r] = _mm512_reduce_add_ps(sums[r][t]) * scales[t];
}

template <int kRows>
inline void packed_tokens(const Tables& table, const Packed& w, const std::int16_t* const* words, const float* scales,
                          long tokens, float* const* y, long row, long column) {
    switch (tokens) {
        case 1: return packed_block<kRows, 1>(table, w, words, scales, y, row, column);
        case 2: return packed_block<kRows, 2>(table, w, words, scales, y, row, column);
        case 3: return packed_block<kRows, 3>(table, w, words, scales, y, row, column);
        default: return packed_block<kRows, 4>(table, w, words, scales, y, row, column);
    }
}

void packed(const Packed& w, const std::int16_t* const* words, const float* scales, long tokens, float* const* y, long begin,
            long end) {
    const Tables table = tables();
    by_rows_and_tokens(
        tokens, begin, end,
        [&](long row, long t, long n) { packed_tokens<2>(table, w, words + t, scales + t, n, y + t, row, row - begin); },
        [&](long row, long t, long n) { packed_tokens<1>(table, w, words + t, scales + t, n, y + t, row, row - begin); });
}

}  // namespace

const Kernels& kernels_avx512() {
    static const Kernels kernels{"avx512", dense<bf16>, dense<float>, sum_words, quantized_size, quantize, packed,
                                 turn<bf16>, turn<float>, attend_scratch, kAttend<bf16>, kAttend<float>, kAttend<std::int8_t>,
                                 kRowwise<bf16>, kRowwise<float>};
    return kernels;
}

}  // namespace ossia
