#include <memory>

#include "numbers.hpp"

namespace ossia {

namespace {

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
    std::vector<float> storage;
    const float* wide = floats(x, type, tokens * matrices.front().cols, storage);
    // The products, which float32 takes as they are.
    long elements = 0, size = 0;
    for (const Linear& w : matrices) {
        elements += w.rows * w.cols;
        if (w.y_type != Type::f32) size += tokens * w.rows;
    }
    const std::unique_ptr<float[]> products(new float[size]);
    run_if_large(elements, [&](int thread, int threads) {
        float* free = products.get();
        for (const Linear& w : matrices) {
            const Share rows = share(w.rows, 16, thread, threads);
            float* own = static_cast<float*>(w.y);
            if (w.y_type != Type::f32) {
                own = free;
                free += tokens * w.rows;
            }
            const bool narrow = w.weight_type == Type::bf16;
            if (narrow && w.y_type == Type::bf16) {
                linear_rows<bf16, bf16>(kernels_, w, wide, own, tokens, rows);
            } else if (narrow) {
                linear_rows<bf16, float>(kernels_, w, wide, own, tokens, rows);
            } else {
                linear_rows<float, float>(kernels_, w, wide, own, tokens, rows);
            }
        }
    });
}

}  // namespace ossia
