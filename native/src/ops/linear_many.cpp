// Linear layers over many tokens.
#include <algorithm>
#include <optional>

#include "ops/many.hpp"
#include "ops/product.hpp"

namespace ossia {

namespace {

AnyMatrix matrix_of(const Product& w) {
    if (w.weight_type == Type::int8) return w.int8();
    if (w.weight_type == Type::bf16)
        return Dense<bf16>{static_cast<const bf16*>(w.weight), w.stride, w.cols, w.transposed};
    return Dense<float>{static_cast<const float*>(w.weight), w.stride, w.cols, w.transposed};
}

}  // namespace

void Machine::linear_many(const std::vector<Product>& matrices, const void* x, Type type, long tokens, bool rounds) {
    const long cols = matrices.front().cols;
    const bool words = type == Type::bf16 || matrices.front().weight_type == Type::int8;
    const Format format = rounds              ? format_of_bytes(gemm_, Order::plain)
                          : !words            ? Format::floats
                          : type == Type::f32 ? Format::two_words
                          : gemm_.tiles       ? Format::tiles
                                              : Format::words;
    const bool pairs = gemm_.bf16_pairs && cols % 2 == 0 && matrices.front().weight_type == Type::bf16;
    std::optional<Vectors> inputs;  // pairs are read as they lie
    if (!pairs) {
        const Stage stage(stages_, kLayout);
        inputs.emplace(vectors_of(pool_, gemm_, format, x, type, tokens, cols));
    }
    struct Panel {
        const Product& w;
        long begin;
    };
    std::vector<Panel> panels;
    for (const Product& w : matrices)
        for (long begin = 0; begin < w.rows; begin += kPanelRows) panels.push_back({w, begin});
    // A few items for each thread, if there are enough tokens.
    const long count = static_cast<long>(panels.size());
    const long some_tokens = std::clamp(pieces(tokens, pieces(4L * pool_.size(), count)), 24L, kManyTokens);
    const long size = has_tiles(format) ? pieces(some_tokens, 2 * kTileTokens) * 2 * kTileTokens : some_tokens;
    each(pool_, count * pieces(tokens, size), [&](long item, Scratch& scratch) {
        const auto& [w, begin] = panels[item % count];
        const long rows = std::min(kPanelRows, w.rows - begin);
        const long first = item / count * size, some = std::min(size, tokens - first);
        if (pairs) {
            gemm_.bf16_pairs(std::get<Dense<bf16>>(matrix_of(w)), {static_cast<const bf16*>(x) + first * cols, cols},
                             some, begin, begin + rows, scratch.panel, scratch.tile);
        } else {
            multiply(
                gemm_, matrix_of(w), *inputs, some, [&](long i) { return first + i; }, begin, begin + rows, scratch);
        }
        const char* bias = static_cast<const char*>(w.bias);
        if (bias) bias += begin * (w.y_type == Type::bf16 ? sizeof(bf16) : sizeof(float));
        for (long i = 0; i < some; ++i)
            finish(kernels_, scratch.tile + i * kPanelRows, bias, w.residual, rows, w.y, w.y_type,
                   (first + i) * w.rows + begin);
    });
}

}  // namespace ossia
