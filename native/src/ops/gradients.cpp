// What training computes between its products: gradients of activations, norms and their gradients, and the loss.
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

namespace {

constexpr long kElements = 4096;  // that a thread takes at a time
constexpr long kRows = 64;        // whose gradients of a norm's weights are summed together, whatever the threads

template <class Task>
void with_types(Type in, Type out, const Task& task) {
    with_type(out, [&](auto narrow) {
        if (in == Type::f32) {
            task(float{}, narrow);
        } else {
            task(bf16{}, bf16{});
        }
    });
}

// Rows of x (..., size) and of a result or its gradient: float32 x with either type, bfloat16 with its own.
long expect_norm(const Array& x, const Array& weight, const Array& bias, const char* name, const Array& other) {
    const long size = weight.size(), rows = expect_rows("x", x, size);
    expect("weight", weight, Type::f32, {size});
    if (bias) expect("bias", bias, Type::f32, {size});
    expect_floats(name, other);
    expect_like(name, other, x.type == Type::bf16 ? Type::bf16 : other.type, x);
    return rows;
}

}  // namespace

void Machine::gelu_gradient(const Array& x, const Array& gradient, const Array& y) {
    expect_floats("x", x);
    expect_like("gradient", gradient, x.type, x);
    expect_like("y", y, x.type, x);
    const long count = x.size();
    Pieces pieces(count, 64, kElements, threads_for(count));
    with_type(x.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int) {
            pieces.take(thread, [&](long begin, long end) {
                kernels_.training.gradients(&element).gelu(x.as<const Element>() + begin,
                                                           gradient.as<const Element>() + begin,
                                                           y.as<Element>() + begin, end - begin);
            });
        });
    });
}

void Machine::gated_gradient(const Array& gate, const Array& up, const Array& gradient, const Array& d_gate,
                             const Array& d_up, bool clamped, float limit, float alpha) {
    expect_floats("gate", gate);
    expect_like("up", up, gate.type, gate);
    expect_like("gradient", gradient, gate.type, gate);
    expect_like("d_gate", d_gate, gate.type, gate);
    expect_like("d_up", d_up, gate.type, gate);
    const long count = gate.size();
    Pieces pieces(count, 64, kElements, threads_for(count));
    with_type(gate.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(count, [&](int thread, int) {
            pieces.take(thread, [&](long begin, long end) {
                kernels_.training.gradients(&element).gated(
                    gate.as<const Element>() + begin, up.as<const Element>() + begin,
                    gradient.as<const Element>() + begin, d_gate.as<Element>() + begin, d_up.as<Element>() + begin,
                    end - begin, clamped, limit, alpha);
            });
        });
    });
}

void Machine::norm(const Array& x, const Array& weight, const Array& bias, const Array& y, float eps,
                   bool round_before_weight) {
    const long rows = expect_norm(x, weight, bias, "y", y), size = weight.size();
    Pieces pieces(rows, 1, kRows, threads_for(x.size()));
    with_types(x.type, y.type, [&](auto in, auto out) {
        using In = decltype(in);
        using Out = decltype(out);
        run_if_large(x.size(), [&](int thread, int) {
            pieces.take(thread, [&](long begin, long end) {
                for (long at = begin * size; at < end * size; at += size)
                    kernels_.training.normal(&in, &out).norm(x.as<const In>() + at, weight.as<const float>(),
                                                             bias ? bias.as<const float>() : nullptr, y.as<Out>() + at,
                                                             size, eps, round_before_weight);
            });
        });
    });
}

void Machine::norm_gradient(const Array& x, const Array& weight, const Array& gradient, const Array& y,
                            const Array& d_weight, const Array& d_bias, float eps) {
    const long rows = expect_norm(x, weight, d_bias, "gradient", gradient), size = weight.size();
    expect_like("y", y, x.type, x);
    expect("d_weight", d_weight, Type::f32, {size});
    const long groups = (rows + kRows - 1) / kRows, parts = d_bias ? 2 : 1;
    std::vector<float> sums(groups * parts * size);
    Pieces pieces(groups, 1, 1, threads_for(x.size()));
    with_types(x.type, gradient.type, [&](auto in, auto out) {
        using In = decltype(in);
        using Out = decltype(out);
        run_if_large(x.size(), [&](int thread, int) {
            pieces.take(thread, [&](long group, long) {
                float* sum = sums.data() + group * parts * size;
                for (long row = group * kRows; row < rows && row < (group + 1) * kRows; ++row)
                    kernels_.training.normal(&in, &out).gradient(
                        x.as<const In>() + row * size, weight.as<const float>(), gradient.as<const Out>() + row * size,
                        y.as<In>() + row * size, sum, d_bias ? sum + size : nullptr, size, eps);
            });
        });
    });
    for (int part = 0; part < parts; ++part) {
        float* total = (part ? d_bias : d_weight).as<float>();
        std::fill(total, total + size, 0.0f);
        for (long group = 0; group < groups; ++group)
            for (long i = 0; i < size; ++i) total[i] += sums[(group * parts + part) * size + i];
    }
}

void Machine::softmax_loss(const Array& logits, const Array& targets, const Array& losses, float scale, float z_loss,
                           bool slopes) {
    expect_floats("logits", logits);
    require(logits.dims == 2 && logits.shape[1] > 0, "logits: expected (rows, vocab)");
    const long rows = logits.shape[0], vocab = logits.shape[1];
    expect("targets", targets, Type::int64, {rows});
    expect("losses", losses, Type::f32, {rows, 2});
    expect_apart("losses", losses, targets);
    expect_apart("logits", logits, targets);
    const auto* ids = targets.as<const std::int64_t>();
    for (long row = 0; row < rows; ++row)
        if (ids[row] < 0 || ids[row] >= vocab)
            throw std::out_of_range("targets: " + std::to_string(ids[row]) + " is outside the vocabulary");
    Pieces pieces(rows, 1, 4, threads_for(logits.size()));
    with_type(logits.type, [&](auto element) {
        using Element = decltype(element);
        run_if_large(logits.size(), [&](int thread, int) {
            const auto scratch = lines<float>(vocab);
            pieces.take(thread, [&](long begin, long end) {
                for (long row = begin; row < end; ++row)
                    kernels_.training.gradients(&element).softmax_loss(logits.as<Element>() + row * vocab, vocab,
                                                                       ids[row], scale, z_loss, slopes, scratch.get(),
                                                                       losses.as<float>() + 2 * row);
            });
        });
    });
}

}  // namespace ossia
