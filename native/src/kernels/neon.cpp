// NEON, which every 64-bit ARM processor has.
#include "kernels/kernels.hpp"

#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ossia {
namespace {

struct Vec {
    static constexpr int kWidth = 8;
    static constexpr int kRows = 2;  // times four tokens fill sixteen of the thirty-two registers
    static constexpr int kTileRows = 8, kTileColumns = 1;
    float32x4_t low, high;

    static Vec zero() { return fill(0); }
    static Vec fill(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
    static Vec load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
    static Vec load(const bf16* p) {
        const uint16x8_t words = vld1q_u16(p);
        return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(words), 16)),
                vreinterpretq_f32_u32(vshll_high_n_u16(words, 16))};
    }
    static Vec load(const std::int8_t* p) {
        const int16x8_t words = vmovl_s8(vld1_s8(p));
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), vcvtq_f32_s32(vmovl_high_s16(words))};
    }
    static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
    static Vec max(Vec a, Vec b) {
        return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
    }
    static Vec min(Vec a, Vec b) {
        return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
    }
    static Vec if_less(Vec a, Vec b, Vec then, Vec other) {
        return {vbslq_f32(vcltq_f32(a.low, b.low), then.low, other.low),
                vbslq_f32(vcltq_f32(a.high, b.high), then.high, other.high)};
    }
    // The sum of the lanes of each.
    static Vec sums(const Vec (&rows)[kWidth]) {
        float32x4_t pairs[kWidth];
        for (int i = 0; i < kWidth; ++i) pairs[i] = vaddq_f32(rows[i].low, rows[i].high);
        const auto four = [&pairs](int i) {
            return vpaddq_f32(vpaddq_f32(pairs[i], pairs[i + 1]), vpaddq_f32(pairs[i + 2], pairs[i + 3]));
        };
        return {four(0), four(4)};
    }
    void store(float* p) const {
        vst1q_f32(p, low);
        vst1q_f32(p + 4, high);
    }
    float sum() const { return vaddvq_f32(vaddq_f32(low, high)); }
    // In two steps, because 2^n itself may not be a float32.
    Vec scaled(Vec n) const {
        const auto power = [](int32x4_t e) {
            return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
        };
        const auto times = [&](float32x4_t x, float32x4_t exponent) {
            const int32x4_t whole = vcvtq_s32_f32(exponent), half = vshrq_n_s32(whole, 1);
            return vmulq_f32(vmulq_f32(x, power(half)), power(vsubq_s32(whole, half)));
        };
        return {times(low, n.low), times(high, n.high)};
    }
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }

struct Codes {
    static constexpr int kCount = 16;
    int16x8_t first, last;

    static Codes load(const std::int8_t* p) {
        const int8x16_t codes = vld1q_s8(p);
        return {vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes)};
    }
};

struct Dots {
    static constexpr int kSums = 4;
    int32x4_t low, high;

    static Dots zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
    void add(const Codes& codes, const std::int16_t* words) {
        const int16x8_t x = vld1q_s16(words), rest = vld1q_s16(words + 8);
        low = vmlal_s16(low, vget_low_s16(codes.first), vget_low_s16(x));
        high = vmlal_high_s16(high, codes.first, x);
        low = vmlal_s16(low, vget_low_s16(codes.last), vget_low_s16(rest));
        high = vmlal_high_s16(high, codes.last, rest);
    }
    Vec floats() const { return {vcvtq_f32_s32(low), vcvtq_f32_s32(high)}; }
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

// The products of sixteen codes' values and sixteen words, summed in four lanes.
inline int32x4_t add_products(int32x4_t sum, int8x16_t weights, const std::int16_t* words) {
    const int16x8_t first = vmovl_s8(vget_low_s8(weights)), last = vmovl_high_s8(weights);
    const int16x8_t x = vld1q_s16(words), rest = vld1q_s16(words + 8);
    sum = vmlal_s16(sum, vget_low_s16(first), vget_low_s16(x));
    sum = vmlal_high_s16(sum, first, x);
    sum = vmlal_s16(sum, vget_low_s16(last), vget_low_s16(rest));
    return vmlal_high_s16(sum, last, rest);
}

template <int kRows, int kTokens>
inline void packed_block(const Packed& w, const std::int16_t* const* words, const float* scales, float* const* y,
                         long row, long column) {
    constexpr std::int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int8x16_t table = vld1q_s8(kTwice);
    const long groups = w.cols / kBlock;
    float32x4_t sums[kRows][kTokens];
    for (auto& of_row : sums)
        for (float32x4_t& sum : of_row) sum = vdupq_n_f32(0);
    for (long g = 0; g < groups; ++g) {
        for (int r = 0; r < kRows; ++r) {
            const long block = (row + r) * groups + g;
            const uint8x16_t bytes = vld1q_u8(w.blocks + block * 16);
            const int8x16_t even = vqtbl1q_s8(table, vandq_u8(bytes, vdupq_n_u8(15)));
            const int8x16_t odd = vqtbl1q_s8(table, vshrq_n_u8(bytes, 4));
            const float32x4_t power = vdupq_n_f32(kPowers.of[w.scales[block]]);
            for (int t = 0; t < kTokens; ++t) {
                const std::int16_t* x = words[t] + g * kBlock;
                const int32x4_t dot = add_products(add_products(vdupq_n_s32(0), even, x), odd, x + 16);
                sums[r][t] = vfmaq_f32(sums[r][t], vcvtq_f32_s32(dot), power);
            }
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) y[t][column + r] = vaddvq_f32(sums[r][t]) * scales[t];
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

const Kernels& kernels_neon() {
    static constexpr Kernels kernels = table("neon");
    return kernels;
}

}  // namespace ossia
