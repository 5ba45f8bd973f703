#include <algorithm>
#include <memory>

#include "numbers.hpp"

namespace ossia {

namespace {

constexpr long kGrain = 16;  // rows

// Rows that one thread takes at a time: 128 KB, which memory delivers in ten times what taking costs. Of a transposed matrix each its
// whole share, as a column's part in it is what lies together.
long piece(const Machine::Linear& w) {
    if (w.transposed) return std::max(w.rows, 1L);
    const long size = w.weight_type == Type::bf16 ? 2 : 4, rows = (1L << 17) / (size * std::max(w.cols, 1L));
    return std::max(rows / kGrain * kGrain, kGrain);
}

// Rows [begin, end) of y = x w + bias + residual.
template <class Weight, class Out>
void linear_rows(const Kernels& kernels, const Machine::Linear& w, const float* x, float* products, long tokens, Share rows) {
    const Dense<Weight> matrix{static_cast<const Weight*>(w.weight), w.stride, w.cols, w.transposed};
    const auto dense = [&] {
        if constexpr (sizeof(Weight) == sizeof(bf16)) {
            return kernels.dense_bf16;
        } else {
            return kernels.dense_f32;
        }
    }();
    dense(matrix, x, tokens, products, w.rows, rows.begin, rows.end);
    Out* y = static_cast<Out*>(w.y);
    if (static_cast<void*>(products) == w.y && !w.bias && !w.residual) return;
    const Out *bias = static_cast<const Out*>(w.bias), *residual = static_cast<const Out*>(w.residual);
    for (long t = 0; t < tokens; ++t) {
        const long at = t * w.rows + rows.begin;
        kernels.rowwise(y).finish(products + at, bias ? bias + rows.begin : nullptr, residual ? residual + at : nullptr, y + at,
                                  rows.end - rows.begin);
    }
}

}  // namespace

void Machine::linear(const std::vector<Linear>& matrices, const void* x, Type type, long tokens) {
    if (tokens > kFewTokens) return linear_many(matrices, x, type, tokens);
    std::vector<float> storage;
    const float* wide = floats(x, type, tokens * matrices.front().cols, storage);
    // The products, which float32 takes as they are.
    long elements = 0, size = 0;
    for (const Linear& w : matrices) {
        elements += w.rows * w.cols;
        if (w.y_type != Type::f32) size += tokens * w.rows;
    }
    const std::unique_ptr<float[]> products(new float[size]);
    std::vector<Pieces> pieces;
    pieces.reserve(matrices.size());
    for (const Linear& w : matrices) pieces.emplace_back(w.rows, kGrain, piece(w), threads_for(elements));
    run_if_large(elements, [&](int thread, int) {
        float* free = products.get();
        for (std::size_t i = 0; i < matrices.size(); ++i) {
            const Linear& w = matrices[i];
            float* own = static_cast<float*>(w.y);
            if (w.y_type != Type::f32) {
                own = free;
                free += tokens * w.rows;
            }
            pieces[i].take(thread, [&](long begin, long end) {
                const bool narrow = w.weight_type == Type::bf16;
                if (narrow && w.y_type == Type::bf16) {
                    linear_rows<bf16, bf16>(kernels_, w, wide, own, tokens, {begin, end});
                } else if (narrow) {
                    linear_rows<bf16, float>(kernels_, w, wide, own, tokens, {begin, end});
                } else {
                    linear_rows<float, float>(kernels_, w, wide, own, tokens, {begin, end});
                }
            });
        }
    });
}

}  // namespace ossia
