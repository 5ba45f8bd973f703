// The functions between the two matrices of a feed-forward network.
#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

namespace {

constexpr long kGrain = 64;  // elements, the least that a thread takes

}  // namespace

void Machine::gelu(const Array& x, const Array& y) {
    expect_floats("x", x);
    expect_like("y", y, x.type, x);
    const long count = x.size();
    with_type(x.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int threads) {
            const Share mine = share(count, kGrain, thread, threads);
            kernels_.rowwise(&element).gelu(x.as<const Element>() + mine.begin, y.as<Element>() + mine.begin,
                                            mine.end - mine.begin);
        });
    });
}

void Machine::swiglu(const Array& gate, const Array& up, const Array& y) {
    expect_floats("gate", gate);
    expect_like("up", up, gate.type, gate);
    expect_like("y", y, gate.type, gate);
    const long count = gate.size();
    with_type(gate.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int threads) {
            const Share mine = share(count, kGrain, thread, threads);
            kernels_.rowwise(&element).swiglu(gate.as<const Element>() + mine.begin,
                                              up.as<const Element>() + mine.begin, y.as<Element>() + mine.begin,
                                              mine.end - mine.begin);
        });
    });
}

void Machine::clamped_swiglu(const Array& gate, const Array& up, const Array& y, float limit, float alpha) {
    expect_floats("gate", gate);
    expect_like("up", up, gate.type, gate);
    expect_like("y", y, gate.type, gate);
    const long count = gate.size();
    with_type(gate.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int threads) {
            const Share mine = share(count, kGrain, thread, threads);
            kernels_.rowwise(&element).clamped_swiglu(gate.as<const Element>() + mine.begin,
                                                      up.as<const Element>() + mine.begin, y.as<Element>() + mine.begin,
                                                      mine.end - mine.begin, limit, alpha);
        });
    });
}

}  // namespace ossia
