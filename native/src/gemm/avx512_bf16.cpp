// Products of many tokens by pairs of bfloat16 numbers; see kernels/avx512_bf16.cpp.
#include "gemm/gemm.hpp"

#include <immintrin.h>

#include <cstring>

namespace ossia {
namespace {

#include "kernels/transpose.inl"

constexpr long kLanes = 16;                                        // rows of a vector
constexpr int kMostGroups = kPanelRows / kLanes, kMostTokens = 6;  // whose sums fill 24 registers
constexpr long kPairs = 64;                                        // of columns in a panel

struct Panel {
    __m512i pairs[kPairs][kMostGroups];
};
static_assert(sizeof(Panel) <= kPanelBytes);

// Sixteen rows from `row` on, at most up to `end`, of the panel's columns from `column` on. What is beyond is 0, or, of
// rows, a repeated one.
void unpack(const Dense<bf16>& w, long row, long end, long column, long columns, Panel& panel, long group) {
    if (w.transposed) {
        const __mmask16 valid = end - row < kLanes ? (1U << (end - row)) - 1 : 0xFFFF;
        for (long c = 0; c < columns; c += 2) {
            const auto values = [&](long at) {
                return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, w.data + (column + at) * w.stride + row));
            };
            panel.pairs[c / 2][group] = _mm512_or_si512(values(c), _mm512_slli_epi32(values(c + 1), 16));
        }
        return;
    }
    for (long c = 0; c < columns; c += 2 * kLanes) {
        const __mmask32 valid = columns - c < 2 * kLanes ? (1U << (columns - c)) - 1 : ~0U;
        __m512i tile[kLanes];
        for (long r = 0; r < kLanes; ++r) {
            const long from = row + r < end ? row + r : end - 1;
            tile[r] = _mm512_maskz_loadu_epi16(valid, w.data + from * w.stride + column + c);
        }
        transpose(tile);
        for (long i = 0; i < kLanes; ++i) panel.pairs[c / 2 + i][group] = tile[i];
    }
}

template <int kGroups, int kTokens>
void multiply(const Panel& panel, long pairs, const bf16* x, long stride, bool add, float* tile) {
    __m512 sums[kTokens][kGroups];
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroups; ++g)
            sums[t][g] = add ? _mm512_loadu_ps(tile + t * kPanelRows + g * kLanes) : _mm512_setzero_ps();
    for (long p = 0; p < pairs; ++p)
        for (int t = 0; t < kTokens; ++t) {
            std::int32_t pair;
            std::memcpy(&pair, x + t * stride + 2 * p, sizeof pair);
            const __m512bh values = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
            for (int g = 0; g < kGroups; ++g)
                sums[t][g] = _mm512_dpbf16_ps(sums[t][g], reinterpret_cast<__m512bh>(panel.pairs[p][g]), values);
        }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(tile + t * kPanelRows + g * kLanes, sums[t][g]);
}

template <int kGroups, int kTokens>
void multiply_some(const Panel& panel, long pairs, const bf16* x, long stride, long tokens, bool add, float* tile) {
    if (tokens >= kTokens) return multiply<kGroups, kTokens>(panel, pairs, x, stride, add, tile);
    if constexpr (kTokens > 1) multiply_some<kGroups, kTokens - 1>(panel, pairs, x, stride, tokens, add, tile);
}

template <int kGroups>
void multiply_rows(const Panel& panel, long groups, long pairs, const bf16* x, long stride, long tokens, bool add,
                   float* tile) {
    if (groups >= kGroups) return multiply_some<kGroups, kMostTokens>(panel, pairs, x, stride, tokens, add, tile);
    if constexpr (kGroups > 1) multiply_rows<kGroups - 1>(panel, groups, pairs, x, stride, tokens, add, tile);
}

void bf16_pairs(const Dense<bf16>& w, const Tokens<bf16>& x, long tokens, long begin, long end, void* memory,
                float* tile) {
    Panel& panel = *static_cast<Panel*>(memory);
    const long groups = (end - begin + kLanes - 1) / kLanes;
    for (long column = 0, columns; column < w.cols; column += columns) {
        columns = w.cols - column < 2 * kPairs ? w.cols - column : 2 * kPairs;
        for (long g = 0; g < groups; ++g) unpack(w, begin + g * kLanes, end, column, columns, panel, g);
        long row = begin;
        for (long t = 0; t < tokens; t += kMostTokens) {
            const long some = tokens - t < kMostTokens ? tokens - t : kMostTokens;
            // The next panel, and the next tokens: the hardware prefetcher sees neither coming.
            for (const long last = begin + (t + some) * (end - begin) / tokens; row < last && !w.transposed; ++row)
                for (long c = 0; c < 2 * kPairs; c += 32)
                    __builtin_prefetch(w.data + row * w.stride + column + columns + c, 0, 2);
            for (long next = t + some; next < tokens && next < t + 2 * some; ++next)
                for (long c = 0; c < columns; c += 32) __builtin_prefetch(x.data + next * x.stride + column + c);
            multiply_rows<kMostGroups>(panel, groups, columns / 2, x.data + t * x.stride + column, x.stride, some,
                                       column > 0, tile + t * kPanelRows);
        }
    }
}

}  // namespace

const Gemm& gemm_avx512_bf16() {
    static const Gemm gemm = [] {
        Gemm form = gemm_avx512();
        form.bf16_pairs = bf16_pairs;
        return form;
    }();
    return gemm;
}

}  // namespace ossia
