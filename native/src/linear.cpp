#include "numbers.hpp"

namespace ossia {

void Machine::linear(const Linear& w, const void* x, void* y, Type type, long tokens) {
    if (tokens > kFewTokens) return linear_many(w, x, y, type, tokens);
    std::vector<float> storage, result(tokens * w.rows);
    const float* wide = floats(x, type, tokens * w.cols, storage);
    run_if_large(w.rows * w.cols, [&](int thread, int threads) {
        const Share rows = share(w.rows, 16, thread, threads);
        if (w.weight_type == Type::bf16) {
            const Dense<bf16> matrix{static_cast<const bf16*>(w.weight), w.stride, w.cols, w.transposed};
            kernels_.dense_bf16(matrix, wide, tokens, result.data(), w.rows, rows.begin, rows.end);
        } else {
            const Dense<float> matrix{static_cast<const float*>(w.weight), w.stride, w.cols, w.transposed};
            kernels_.dense_f32(matrix, wide, tokens, result.data(), w.rows, rows.begin, rows.end);
        }
        for (long t = 0; t < tokens; ++t)
            for (long r = rows.begin; r < rows.end; ++r) {
                const float bias = w.bias ? read(w.bias, w.weight_type, r) : 0.0f;
                write(y, type, t * w.rows + r, result[t * w.rows + r] + bias);
            }
    });
}

}  // namespace ossia
