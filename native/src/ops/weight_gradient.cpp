// The gradient of matrices: the product of each expert's gradients, transposed, with its inputs.
#include <algorithm>
#include <limits>

#include "core/check.hpp"
#include "ops/many.hpp"

namespace ossia {

namespace {

constexpr long kSquare = 32;  // rows and columns that are transposed together

// Columns [begin, begin + kSquare) of `gradient` (tokens, rows) as vectors, and their sums unless `sums` is null.
void transpose(const bf16* gradient, long tokens, long rows, long begin, Vectors& vectors, float* sums) {
    const long count = std::min(kSquare, rows - begin);
    alignas(64) bf16 square[kSquare][kSquare];
    for (long token = 0; token < tokens; token += kSquare) {
        const long some = std::min(kSquare, tokens - token);
        for (long t = 0; t < some; ++t) {
            const bf16* from = gradient + (token + t) * rows + begin;
            for (long i = 0; i < count; ++i) square[i][t] = from[i];
        }
        for (long i = 0; i < count; ++i) {
            vectors.set(begin + i, token, square[i], some);
            if (sums)
                for (long t = 0; t < some; ++t) sums[begin + i] += widen(square[i][t]);
        }
    }
}

}  // namespace

void Machine::weight_gradient(const Array& gradient, const Array& x, const Array& counts, const Array& y,
                              const Array& bias, bool add) {
    expect("gradient", gradient, Type::bf16, {kAny, kAny});
    const long tokens = gradient.shape[0], rows = gradient.shape[1];
    expect("x", x, Type::bf16, {tokens, kAny});
    const long cols = x.shape[1];
    expect("counts", counts, Type::int64, {kAny});
    const long experts = counts.shape[0];
    expect("y", y, Type::f32, {experts, rows, cols});
    if (bias) expect("bias", bias, Type::f32, {experts, rows});
    expect_apart("y", y, counts);
    if (bias) expect_apart("bias", bias, counts);
    const std::vector<std::int64_t> sizes(counts.as<const std::int64_t>(), counts.as<const std::int64_t>() + experts);
    long left = tokens;
    for (const std::int64_t size : sizes) {
        require(size >= 0 && size <= left, "counts: they do not add up to the rows of x");
        left -= size;
    }
    require(left == 0, "counts: they do not add up to the rows of x");
    if (!y.is_occupied()) return;

    long first = 0;
    for (long expert = 0; expert < experts; ++expert) {
        const long size = sizes[expert];
        float* out = y.as<float>() + expert * rows * cols;
        float* sums = bias ? bias.as<float>() + expert * rows : nullptr;
        if (sums && !add) std::fill(sums, sums + rows, 0.0f);
        if (!size && !add) std::fill(out, out + rows * cols, 0.0f);
        if (!size) continue;
        Vectors vectors(gemm_, gemm_.tiles ? Format::tiles : Format::words, rows, size);
        each(pool_, pieces(rows, kSquare), [&](long item, Scratch&) {
            transpose(gradient.as<const bf16>() + first * rows, size, rows, item * kSquare, vectors, sums);
        });
        const Dense<bf16> inputs{x.as<const bf16>() + first * cols, cols, size, true};
        const long panels = pieces(cols, kPanelRows);
        // A few items for each thread, if there are enough rows, in whole tiles.
        const long wanted = std::clamp(pieces(rows, pieces(4L * pool_.size(), panels)), 32L, kManyTokens);
        const long some = pieces(wanted, 2 * kTileTokens) * 2 * kTileTokens;
        each(pool_, panels * pieces(rows, some), [&](long item, Scratch& scratch) {
            const long begin = item % panels * kPanelRows, end = std::min(cols, begin + kPanelRows);
            const long from = item / panels * some, count = std::min(some, rows - from);
            multiply(gemm_, inputs, vectors, count, [&](long i) { return from + i; }, begin, end, scratch);
            for (long i = 0; i < count; ++i)
                finish(kernels_, scratch.tile + i * kPanelRows, nullptr, add ? out : nullptr, end - begin, out,
                       Type::f32, (from + i) * cols + begin);
        });
        first += size;
    }
}

}  // namespace ossia
