#include "core/numbers.hpp"

namespace ossia {

void Machine::gelu(const void* x, void* y, Type type, long count) {
    with_type(type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int threads) {
            const Share mine = share(count, 64, thread, threads);
            kernels_.rowwise(&element).gelu(static_cast<const Element*>(x) + mine.begin,
                                            static_cast<Element*>(y) + mine.begin, mine.end - mine.begin);
        });
    });
}

void Machine::swiglu(const void* gate, const void* up, void* y, Type type, long count) {
    with_type(type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int threads) {
            const Share mine = share(count, 64, thread, threads);
            kernels_.rowwise(&element).swiglu(static_cast<const Element*>(gate) + mine.begin,
                                              static_cast<const Element*>(up) + mine.begin,
                                              static_cast<Element*>(y) + mine.begin, mine.end - mine.begin);
        });
    });
}

void Machine::clamped_swiglu(const void* gate, const void* up, void* y, Type type, long count, float limit,
                             float alpha) {
    with_type(type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int threads) {
            const Share mine = share(count, 64, thread, threads);
            kernels_.rowwise(&element).clamped_swiglu(
                static_cast<const Element*>(gate) + mine.begin, static_cast<const Element*>(up) + mine.begin,
                static_cast<Element*>(y) + mine.begin, mine.end - mine.begin, limit, alpha);
        });
    });
}

}  // namespace ossia
