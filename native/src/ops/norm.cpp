// Norms and rotation.
#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

void Machine::rms_norm(const Array& x, const Array& weight, const Array& y, float eps, bool round_before_weight) {
    const long size = weight.size(), rows = expect_rows("x", x, size);
    expect("weight", weight, x.type, {size});
    expect_like("y", y, x.type, x);
    with_type(x.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(rows * size, [&](int thread, int threads) {
            const Share mine = share(rows, 1, thread, threads);
            for (long row = mine.begin; row < mine.end; ++row)
                kernels_.rowwise(&element).rms_norm(x.as<const Element>() + row * size, weight.as<const Element>(),
                                                    y.as<Element>() + row * size, size, eps, round_before_weight);
        });
    });
}

void Machine::layer_norm(const Array& x, const Array& weight, const Array& bias, const Array& y, float eps) {
    const long size = weight.size(), rows = expect_rows("x", x, size);
    expect("weight", weight, x.type, {size});
    expect("bias", bias, x.type, {size});
    expect_like("y", y, x.type, x);
    with_type(x.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(rows * size, [&](int thread, int threads) {
            const Share mine = share(rows, 1, thread, threads);
            for (long row = mine.begin; row < mine.end; ++row)
                kernels_.rowwise(&element).layer_norm(x.as<const Element>() + row * size, weight.as<const Element>(),
                                                      bias.as<const Element>(), y.as<Element>() + row * size, size,
                                                      eps);
        });
    });
}

void Machine::rotate(const Array& x, const Array& cosines, const Array& sines, const Array& y) {
    require(x.has_floats() && x.dims == 3 && x.is_contiguous() && x.last() % 2 == 0,
            "x: expected contiguous bfloat16 or float32 (tokens, heads, head_dim), head_dim even");
    const long tokens = x.shape[0], heads = x.shape[1], head_dim = x.shape[2], half = head_dim / 2;
    expect("cosines", cosines, Type::f32, {tokens, half});
    expect("sines", sines, Type::f32, {tokens, half});
    expect_like("y", y, x.type, x);
    with_type(x.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(tokens * heads * head_dim, [&](int thread, int threads) {
            const Share mine = share(tokens, 1, thread, threads);
            for (long token = mine.begin; token < mine.end; ++token)
                for (long head = token * heads; head < (token + 1) * heads; ++head)
                    kernels_.rowwise(&element).rotate(
                        x.as<const Element>() + head * head_dim, cosines.as<const float>() + token * half,
                        sines.as<const float>() + token * half, y.as<Element>() + head * head_dim, half);
        });
    });
}

}  // namespace ossia
