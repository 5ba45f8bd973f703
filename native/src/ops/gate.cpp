// SwiGLU of alternating gates and ups, as an expert's first matrix yields them, and its gradient.
#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

namespace {

constexpr long kPiece = 64;  // blocks that a thread takes at a time

// Tokens of x, whose rows are twice as long as those of the other array.
void expect_pairs(const Array& x, const char* name, const Array& other) {
    expect_floats("x", x);
    expect(name, other, x.type, {kAny, kAny});
    require(other.shape[1] % kWordBlock == 0, "units: expected a multiple of 32");
    expect("x", x, x.type, {other.shape[0], 2 * other.shape[1]});
}

}  // namespace

void Machine::gate_pairs(const Array& x, const Array& y, bool clamped, float limit, float alpha) {
    expect_pairs(x, "y", y);
    const Activation activation{clamped, limit, alpha};
    Pieces pieces(y.size() / kWordBlock, 1, kPiece, threads_for(y.size()));
    run_if_large(y.size(), [&](int thread, int) {
        pieces.take(thread, [&](long begin, long end) {
            for (long block = begin; block < end; ++block) {
                const long at = block * kWordBlock;
                float units[kWordBlock];
                if (x.type == Type::bf16) {
                    gemm_.gate_bf16(activation, x.as<const bf16>() + 2 * at, units);
                } else {
                    gemm_.gate_f32(activation, x.as<const float>() + 2 * at, units);
                }
                for (long i = 0; i < kWordBlock; ++i) write(y.data, y.type, at + i, units[i]);
            }
        });
    });
}

void Machine::gate_gradient(const Array& x, const Array& gradient, const Array& y, bool clamped, float limit,
                            float alpha) {
    expect_pairs(x, "gradient", gradient);
    expect_like("y", y, x.type, x);
    const Activation activation{clamped, limit, alpha};
    Pieces pieces(gradient.size() / kWordBlock, 1, kPiece, threads_for(y.size()));
    run_if_large(y.size(), [&](int thread, int) {
        pieces.take(thread, [&](long begin, long end) {
            for (long block = begin; block < end; ++block) {
                const long at = block * kWordBlock;
                float pairs[2 * kWordBlock];
                if (x.type == Type::bf16) {
                    gemm_.gate_gradient_bf16(activation, x.as<const bf16>() + 2 * at, gradient.as<const bf16>() + at,
                                             pairs);
                } else {
                    gemm_.gate_gradient_f32(activation, x.as<const float>() + 2 * at, gradient.as<const float>() + at,
                                            pairs);
                }
                for (long i = 0; i < 2 * kWordBlock; ++i) write(y.data, y.type, 2 * at + i, pairs[i]);
            }
        });
    });
}

}  // namespace ossia
