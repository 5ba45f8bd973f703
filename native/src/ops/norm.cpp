#include "core/numbers.hpp"

namespace ossia {

void Machine::rms_norm(const void* x, const void* weight, void* y, Type type, long rows, long size, float eps,
                       bool round_before_weight) {
    with_type(type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(rows * size, [&](int thread, int threads) {
            const Share mine = share(rows, 1, thread, threads);
            for (long row = mine.begin; row < mine.end; ++row)
                kernels_.rowwise(&element).rms_norm(
                    static_cast<const Element*>(x) + row * size, static_cast<const Element*>(weight),
                    static_cast<Element*>(y) + row * size, size, eps, round_before_weight);
        });
    });
}

void Machine::layer_norm(const void* x, const void* weight, const void* bias, void* y, Type type, long rows, long size,
                         float eps) {
    with_type(type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(rows * size, [&](int thread, int threads) {
            const Share mine = share(rows, 1, thread, threads);
            for (long row = mine.begin; row < mine.end; ++row)
                kernels_.rowwise(&element).layer_norm(
                    static_cast<const Element*>(x) + row * size, static_cast<const Element*>(weight),
                    static_cast<const Element*>(bias), static_cast<Element*>(y) + row * size, size, eps);
        });
    });
}

void Machine::rotate(const void* x, const float* cosines, const float* sines, void* y, Type type, long tokens,
                     long heads, long head_dim) {
    const long half = head_dim / 2;
    with_type(type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(tokens * heads * head_dim, [&](int thread, int threads) {
            const Share mine = share(tokens, 1, thread, threads);
            for (long token = mine.begin; token < mine.end; ++token)
                for (long head = token * heads; head < (token + 1) * heads; ++head)
                    kernels_.rowwise(&element).rotate(static_cast<const Element*>(x) + head * head_dim,
                                                      cosines + token * half, sines + token * half,
                                                      static_cast<Element*>(y) + head * head_dim, half);
        });
    });
}

}  // namespace ossia
