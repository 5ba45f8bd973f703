// AVX-512 with VNNI: Ice Lake and later, Zen 4 and later.
#include "kernels/kernels.hpp"

#include <immintrin.h>

#include <algorithm>
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
    // The sum of the lanes of each.
    static Vec sums(const Vec (&rows)[kWidth]) {
        __m512 pairs[8], fours[4];
        for (int i = 0; i < 8; ++i) {
            const __m512 a = rows[2 * i].v, b = rows[2 * i + 1].v;
            pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        }
        for (int i = 0; i < 4; ++i) {
            const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
            fours[i] =
                _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
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

#include "kernels/exp.inl"
#include "kernels/transpose.inl"

// These call exp2 and exp.
#include "kernels/attend.inl"
#include "kernels/attend_block.inl"
#include "kernels/attend_integers.inl"
#include "kernels/attend_words.inl"
#include "kernels/dense.inl"
#include "kernels/columns.inl"
#include "kernels/int8.inl"
#include "kernels/int8_bytes.inl"
#include "kernels/mxfp4.inl"
#include "kernels/packed.inl"
#include "kernels/rope.inl"
#include "kernels/rowwise.inl"
#include "kernels/gradients.inl"
#include "kernels/sampling.inl"

// MXFP4 by bytes. A 64-byte load of codes holds the even columns of a group of 128 in its low nibbles and the odd ones
// in its high nibbles. Weights are looked up as unsigned bytes, 2 * value + 12; an activation of 16 bits is 256 * high
// + low, two signed bytes. The contribution of the 12 does not depend on the weights: the sums of the high bytes start
// with it subtracted, and that of the low bytes is subtracted block by block.
constexpr int kBlock = 32;
constexpr int kGroup = 128;    // columns of one load
constexpr int kSixteen = 512;  // columns of sixteen blocks, whose scales fill one vector
constexpr int kOffset = 12;
constexpr int kLargest = 127 * 257;  // keeps both bytes within a signed byte

struct GroupWords {
    std::int8_t high[2][64], low[2][64];  // even columns, odd columns
    std::int32_t start[16];               // -12 times the sums of the high bytes that meet in a lane
};

// A token's layout: its groups, then for each block -12 times the sum of its low bytes.
struct Token {
    const GroupWords* groups;
    const float* low;

    Token(const std::int16_t* words, long cols)
        : groups(reinterpret_cast<const GroupWords*>(words)),
          low(reinterpret_cast<const float*>(groups + (cols + kGroup - 1) / kGroup)) {}
};

long quantized_size(long cols) {
    const long groups = (cols + kGroup - 1) / kGroup, sixteens = (cols + kSixteen - 1) / kSixteen;
    return (groups * sizeof(GroupWords) + sixteens * 16 * sizeof(float)) / sizeof(std::int16_t);
}

void quantize(const float* x, long cols, std::int16_t* words, float* scale, float* rest) {
    std::memset(words, 0, quantized_size(cols) * sizeof(std::int16_t));
    const Step step = step_of(x, cols, kLargest, scale);
    if (step.size == 0) {
        if (rest) std::memset(rest, 0, cols * sizeof(float));
        return;
    }
    GroupWords* const groups = reinterpret_cast<GroupWords*>(words);
    const Token token(words, cols);
    float* const low = const_cast<float*>(token.low);
    const __m512 lift = _mm512_set1_ps(step.lift), inverse = _mm512_set1_ps(step.inverse),
                 size = _mm512_set1_ps(step.size);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    const __m512i twelve = _mm512_set1_epi8(kOffset);
    const auto sixteen = [&](long column) {
        const __m512 values = _mm512_loadu_ps(x + column);
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_mul_ps(values, lift), inverse));
        if (rest) _mm512_storeu_ps(rest + column, _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), size, values));
        return whole;
    };
    const auto split = [](__m512i whole, std::int8_t* high, std::int8_t* low) {
        const __m512i lows = _mm512_srai_epi32(_mm512_slli_epi32(whole, 24), 24);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(lows));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(high),
                         _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(whole, lows), 8)));
    };
    for (long c = 0; c < cols; c += kBlock) {
        GroupWords& group = groups[c / kGroup];
        const long at = c % kGroup / 2;
        const __m512i first = sixteen(c), last = sixteen(c + 16);
        split(_mm512_permutex2var_epi32(first, even, last), group.high[0] + at, group.low[0] + at);
        split(_mm512_permutex2var_epi32(first, odd, last), group.high[1] + at, group.low[1] + at);
    }
    for (long g = 0; g * kGroup < cols; ++g) {
        const auto sums = [&](const std::int8_t (&bytes)[2][64]) {
            const __m512i evens = _mm512_dpbusd_epi32(_mm512_setzero_si512(), twelve, _mm512_loadu_si512(bytes[0]));
            return _mm512_sub_epi32(_mm512_setzero_si512(),
                                    _mm512_dpbusd_epi32(evens, twelve, _mm512_loadu_si512(bytes[1])));
        };
        _mm512_storeu_si512(groups[g].start, sums(groups[g].high));
        std::int32_t lanes[16];
        _mm512_storeu_si512(lanes, sums(groups[g].low));
        for (int b = 0; b < 4; ++b)
            low[g * 4 + b] = static_cast<float>(lanes[4 * b] + lanes[4 * b + 1] + lanes[4 * b + 2] + lanes[4 * b + 3]);
    }
}

struct Tables {
    __m512i values;     // 2 * value + 12 of each code, in every quarter
    __m512i spread[4];  // the scales of a group's four blocks, out of sixteen, to four lanes each
    __m512i repair;
    __m512 smallest;
};

inline Tables tables() {
    Tables table;
    table.values = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const __m512i quarters = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    for (int i = 0; i < 4; ++i) table.spread[i] = _mm512_add_epi32(quarters, _mm512_set1_epi32(4 * i));
    // Of bits in the exponent field alone, zero stands for 2**-127, which float32 encodes differently, and infinity for
    // NaN.
    constexpr int kSource = 1, kNaN = 2, kDestination = 0;
    constexpr int kZeroAt = 2 * 4, kOneAt = 3 * 4, kInfinityAt = 5 * 4, kPositiveAt = 7 * 4;
    table.repair =
        _mm512_set1_epi32(kDestination << kZeroAt | kSource << kOneAt | kNaN << kInfinityAt | kSource << kPositiveAt);
    table.smallest = _mm512_set1_ps(0x1p-127f);
    return table;
}

inline __m512 powers_of(const Tables& table, __m128i scales) {
    const __m512i exponents = _mm512_slli_epi32(_mm512_cvtepu8_epi32(scales), 23);
    return _mm512_fixupimm_ps(table.smallest, _mm512_castsi512_ps(exponents), table.repair, 0);
}

template <int kRows, int kTokens>
inline void accumulate(const Tables& table, const __m512i (&codes)[kRows], const __m512 (&powers)[kRows], int quarter,
                       const Token (&x)[kTokens], long g, __m512 (&sums)[kRows][kTokens]) {
    const __m512i low_nibbles = _mm512_set1_epi8(15);
    __m512i even[kRows], odd[kRows];
    __m512 power[kRows];
    for (int r = 0; r < kRows; ++r) {
        even[r] = _mm512_shuffle_epi8(table.values, _mm512_and_si512(codes[r], low_nibbles));
        odd[r] = _mm512_shuffle_epi8(table.values, _mm512_and_si512(_mm512_srli_epi16(codes[r], 4), low_nibbles));
        power[r] = _mm512_permutexvar_ps(table.spread[quarter], powers[r]);
    }
    for (int t = 0; t < kTokens; ++t) {
        const GroupWords& words = x[t].groups[g];
        const auto bytes = [](const std::int8_t* p) { return _mm512_loadu_si512(p); };
        __m512i dots[kRows];
        for (__m512i& dot : dots) dot = _mm512_loadu_si512(words.start);
        for (int r = 0; r < kRows; ++r) dots[r] = _mm512_dpbusd_epi32(dots[r], even[r], bytes(words.high[0]));
        for (int r = 0; r < kRows; ++r) dots[r] = _mm512_dpbusd_epi32(dots[r], odd[r], bytes(words.high[1]));
        for (int r = 0; r < kRows; ++r) dots[r] = _mm512_slli_epi32(dots[r], 8);
        for (int r = 0; r < kRows; ++r) dots[r] = _mm512_dpbusd_epi32(dots[r], even[r], bytes(words.low[0]));
        for (int r = 0; r < kRows; ++r) dots[r] = _mm512_dpbusd_epi32(dots[r], odd[r], bytes(words.low[1]));
        for (int r = 0; r < kRows; ++r) sums[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[r]), power[r], sums[r][t]);
    }
}

// Loads the codes at `place` and prefetches those 8 KB ahead into the second-level cache, further than the hardware
// prefetches.
inline __m512i load_codes(const std::uint8_t* place, __mmask64 valid) {
    _mm_prefetch(reinterpret_cast<const char*>(place + 8192), _MM_HINT_T1);
    return _mm512_maskz_loadu_epi8(valid, place);
}

template <int kRows, int kTokens>
inline void packed_block(const Tables& table, const Packed& w, const Token (&x)[kTokens], const float* scales,
                         float* const* y, long row, long column) {
    const long blocks = w.cols / kBlock, whole = blocks / 16 * 16;
    const std::uint8_t* codes_of[kRows];
    const std::uint8_t* scales_of[kRows];
    __m512 sums[kRows][kTokens];
    for (int r = 0; r < kRows; ++r) {
        codes_of[r] = w.blocks + (row + r) * blocks * 16;
        scales_of[r] = w.scales + (row + r) * blocks;
        for (int t = 0; t < kTokens; ++t) sums[r][t] = _mm512_setzero_ps();
    }
    __m512 powers[kRows];
    __m512i codes[kRows];
    const auto subtract_lows = [&](long block) {
        for (int t = 0; t < kTokens; ++t) {
            const __m512 low = _mm512_loadu_ps(x[t].low + block);
            for (int r = 0; r < kRows; ++r) sums[r][t] = _mm512_fmadd_ps(powers[r], low, sums[r][t]);
        }
    };
    for (long b = 0; b < whole; b += 16) {
        for (int r = 0; r < kRows; ++r)
            powers[r] = powers_of(table, _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales_of[r] + b)));
        subtract_lows(b);
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) {
            for (int r = 0; r < kRows; ++r) codes[r] = load_codes(codes_of[r] + b * 16 + quarter * 64, ~0ULL);
            accumulate<kRows, kTokens>(table, codes, powers, quarter, x, b / 4 + quarter, sums);
        }
    }
    if (whole < blocks) {
        const __mmask16 present = (1U << (blocks - whole)) - 1;
        for (int r = 0; r < kRows; ++r)
            powers[r] = powers_of(table, _mm_mask_loadu_epi8(_mm_set1_epi8(127), present, scales_of[r] + whole));
        subtract_lows(whole);
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) {
            const long left = blocks - whole - quarter * 4;
            if (left <= 0) break;
            const __mmask64 valid = left < 4 ? (1ULL << (left * 16)) - 1 : ~0ULL;
            for (int r = 0; r < kRows; ++r) codes[r] = load_codes(codes_of[r] + whole * 16 + quarter * 64, valid);
            accumulate<kRows, kTokens>(table, codes, powers, quarter, x, whole / 4 + quarter, sums);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) y[t][column + r] = _mm512_reduce_add_ps(sums[r][t]) * scales[t];
}

template <int kRows>
inline void packed_tokens(const Tables& table, const Packed& w, const std::int16_t* const* words, const float* scales,
                          long tokens, float* const* y, long row, long column) {
    const auto token = [&](int t) { return Token(words[t], w.cols); };
    switch (tokens) {
        case 1:
            return packed_block<kRows, 1>(table, w, {token(0)}, scales, y, row, column);
        case 2:
            return packed_block<kRows, 2>(table, w, {token(0), token(1)}, scales, y, row, column);
        case 3:
            return packed_block<kRows, 3>(table, w, {token(0), token(1), token(2)}, scales, y, row, column);
        default:
            return packed_block<kRows, 4>(table, w, {token(0), token(1), token(2), token(3)}, scales, y, row, column);
    }
}

void packed(const Packed& w, const std::int16_t* const* words, const float* scales, long tokens, float* const* y,
            long begin, long end) {
    const Tables table = tables();
    by_rows_and_tokens<4>(
        tokens, begin, end,
        [&](long row, long t, long n) {
            packed_tokens<4>(table, w, words + t, scales + t, n, y + t, row, row - begin);
        },
        [&](long row, long t, long n) {
            packed_tokens<1>(table, w, words + t, scales + t, n, y + t, row, row - begin);
        });
}

#include "kernels/table.inl"

}  // namespace

const Kernels& kernels_avx512() {
    static const Kernels kernels = [] {
        Kernels form = table("avx512");
        form.words_scratch = words_scratch;
        form.attend_bf16.words = attend_words<bf16>;
        form.attend_int8.words = attend_words<std::int8_t>;
        return form;
    }();
    return kernels;
}

}  // namespace ossia
