// Products of tokens that are sorted by expert with the matrix of each, and their gradients.
#include <algorithm>
#include <limits>
#include <vector>

#include "core/check.hpp"
#include "ops/experts.hpp"
#include "ops/many.hpp"

namespace ossia {

namespace {

// Tokens [first, first + count) of x times one matrix, `place` in vectors of which each expert has whole tiles.
struct Part {
    long expert, first, count, place;
};

std::vector<Part> parts_of(const std::int64_t* counts, long experts, long tokens) {
    std::vector<Part> parts;
    long first = 0, place = 0;
    for (long expert = 0; expert < experts; ++expert) {
        const std::int64_t count = counts[expert];
        require(count >= 0 && count <= tokens - first, "counts: they do not add up to the rows of x");
        for (long done = 0; done < count; done += kManyTokens) {
            const long some = std::min(kManyTokens, count - done);
            parts.push_back({expert, first + done, some, place});
            place += pieces(some, kTileTokens) * kTileTokens;
        }
        first += count;
    }
    require(first == tokens, "counts: they do not add up to the rows of x");
    return parts;
}

AnyMatrix matrix_of(const Stack& stack, long expert, bool turned) {
    if (stack.is_packed()) {
        const long blocks = stack.cols / kWordBlock, at = expert * stack.rows * blocks;
        const auto* codes = stack.weight.as<const std::uint8_t>() + at * 16;
        const auto* scales = stack.scales.as<const std::uint8_t>() + at;
        if (turned) return Turned{codes, scales, stack.rows, blocks};
        return Packed{codes, scales, stack.cols};
    }
    const long cols = turned ? stack.rows : stack.cols, at = expert * stack.expert_stride;
    if (stack.weight.type == Type::bf16)
        return Dense<bf16>{stack.weight.as<const bf16>() + at, stack.stride, cols, stack.transposed != turned};
    return Dense<float>{stack.weight.as<const float>() + at, stack.stride, cols, stack.transposed != turned};
}

}  // namespace

void Machine::grouped(const Array& x, const Array& counts, const Stack& stack, const Array& y, bool turned) {
    const long cols = turned ? stack.rows : stack.cols, rows = turned ? stack.cols : stack.rows;
    expect_floats("x", x);
    expect("x", x, x.type, {kAny, cols});
    const long tokens = x.shape[0];
    expect("y", y, x.type, {tokens, rows});
    expect("counts", counts, Type::int64, {stack.experts});
    require(stack.weight.type != Type::f32 || x.type == Type::f32, "x: expected float32, as the stack's");
    const bool biased = stack.bias && !turned;
    require(!biased || stack.bias.type == x.type, "bias: expected x's type");
    const std::vector<Part> parts = parts_of(counts.as<const std::int64_t>(), stack.experts, tokens);
    if (parts.empty()) return;

    const Format format = x.type == Type::f32 ? Format::floats : gemm_.tiles ? Format::tiles : Format::words;
    std::vector<long> sources(parts.back().place + pieces(parts.back().count, kTileTokens) * kTileTokens, -1);
    for (const Part& part : parts)
        for (long i = 0; i < part.count; ++i) sources[part.place + i] = part.first + i;
    const bool in_tiles = format == Format::tiles;
    const long places = static_cast<long>(sources.size());
    const auto source = [&](long i) { return sources[i]; };
    const Vectors vectors = in_tiles ? vectors_of(pool_, gemm_, format, x.data, x.type, places, cols, source)
                                     : vectors_of(pool_, gemm_, format, x.data, x.type, tokens, cols);

    const long panels = pieces(rows, kPanelRows), size = x.type == Type::bf16 ? sizeof(bf16) : sizeof(float);
    each(pool_, static_cast<long>(parts.size()) * panels, [&](long item, Scratch& scratch) {
        const Part& part = parts[item / panels];
        const long begin = item % panels * kPanelRows, end = std::min(rows, begin + kPanelRows);
        const long first = in_tiles ? part.place : part.first;
        multiply(
            gemm_, matrix_of(stack, part.expert, turned), vectors, part.count, [&](long i) { return first + i; }, begin,
            end, scratch);
        const void* bias =
            biased ? static_cast<const char*>(stack.bias.data) + (part.expert * rows + begin) * size : nullptr;
        for (long i = 0; i < part.count; ++i)
            finish(kernels_, scratch.tile + i * kPanelRows, bias, nullptr, end - begin, y.data, y.type,
                   (part.first + i) * rows + begin);
    });
}

}  // namespace ossia
