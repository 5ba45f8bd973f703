// Experts in MXFP4 over few tokens.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "core/machine.hpp"
#include "core/numbers.hpp"
#include "ops/experts.hpp"

namespace ossia {

namespace {

// Vectors quantized for the packed kernel. int16 is far finer than bfloat16 but coarser than float32, so for float32
// the rounding error is quantized too and its products are added.
class Quantized {
  public:
    Quantized(const Kernels& kernels, Type type, long count, long cols)
        : kernels_(kernels),
          parts_(type == Type::f32 ? 2 : 1),
          count_(count),
          cols_(cols),
          size_((kernels.quantized_size(cols) + 31) / 32 * 32),
          words_(lines<std::int16_t>(parts_ * count * size_)),
          scales_(parts_ * count) {}

    int parts() const { return parts_; }
    const std::int16_t* words(int part, long i) const { return words_.get() + (part * count_ + i) * size_; }
    float scale(int part, long i) const { return scales_[part * count_ + i]; }

    void set(long i, const float* x) {
        if (parts_ == 1) return set_part(0, i, x, nullptr);
        std::vector<float> rest(cols_);
        set_part(0, i, x, rest.data());
        set_part(1, i, rest.data(), nullptr);
    }

  private:
    void set_part(int part, long i, const float* x, float* rest) {
        const long vector = part * count_ + i;
        kernels_.quantize(x, cols_, words_.get() + vector * size_, &scales_[vector], rest);
    }

    const Kernels& kernels_;
    int parts_;
    long count_, cols_, size_;
    Lines<std::int16_t> words_;
    std::vector<float> scales_;
};

// Rows [begin, end) of one expert times the quantized vectors of some slots, plus bias, into out[slot][row - begin].
void expert_rows(const Kernels& kernels, const Stack& m, Type type, const Group& group, const Quantized& x,
                 long x_per_slot, long begin, long end, std::vector<float>& out) {
    const long slots = static_cast<long>(group.slots.size()), rows = end - begin, blocks = m.cols / 32;
    const long vectors = x.parts() * slots;
    std::vector<const std::int16_t*> words(vectors);
    std::vector<float> scales(vectors);
    std::vector<float*> to(vectors);
    out.resize(vectors * rows);
    for (long i = 0; i < vectors; ++i) {
        const int part = static_cast<int>(i / slots);
        const long source = group.slots[i % slots] / x_per_slot;
        words[i] = x.words(part, source);
        scales[i] = x.scale(part, source);
        to[i] = out.data() + i * rows;
    }
    const auto* bytes = m.weight.as<const std::uint8_t>();
    const Packed matrix{bytes + group.expert * m.rows * blocks * 16,
                        m.scales.as<const std::uint8_t>() + group.expert * m.rows * blocks, m.cols};
    kernels.packed(matrix, words.data(), scales.data(), vectors, to.data(), begin, end);
    for (long i = slots; i < vectors; ++i)
        for (long r = 0; r < rows; ++r) to[i - slots][r] += to[i][r];
    if (!m.bias) return;
    for (long i = 0; i < slots; ++i)
        for (long r = 0; r < rows; ++r) to[i][r] += read(m.bias.data, type, group.expert * m.rows + begin + r);
}

}  // namespace

void Machine::moe_few(const Array& x, const Array& ids, const Array& weights, const Experts& m, const Array& y,
                      const Array& residual) {
    const Type type = x.type;
    const long tokens = x.shape[0], chosen = ids.shape[1], hidden = m.hidden, inter = m.inter, slots = tokens * chosen;
    const float* const factors = weights.as<const float>();
    const std::vector<Group> groups = by_expert(ids.as<const std::int64_t>(), slots, m.count);
    std::vector<float> storage;
    const float* wide = floats(x.data, type, tokens * hidden, storage);
    Quantized inputs(kernels_, type, tokens, hidden), middles(kernels_, type, slots, inter);
    for (long t = 0; t < tokens; ++t) inputs.set(t, wide + t * hidden);

    // Gate and up alternate: each hidden unit is a pair of rows.
    std::vector<float> middle(slots * inter);
    pool_.run([&](int thread, int threads) {
        const Share pairs = share(static_cast<long>(groups.size()) * inter, 16, thread, threads);
        std::vector<float> out;
        for (long first = pairs.begin; first < pairs.end;) {
            const long index = first / inter, begin = first % inter;
            const long end = std::min(inter, begin + (pairs.end - first));
            const Group& group = groups[index];
            expert_rows(kernels_, m.gate_up, type, group, inputs, chosen, 2 * begin, 2 * end, out);
            const long rows = 2 * (end - begin);
            for (std::size_t i = 0; i < group.slots.size(); ++i) {
                const float* of_slot = out.data() + static_cast<long>(i) * rows;
                float* to = middle.data() + group.slots[i] * inter + begin;
                for (long p = 0; p < end - begin; ++p) {
                    float gate = of_slot[2 * p], up = of_slot[2 * p + 1];
                    if (m.clamped) {
                        // The comparisons keep NaN, as torch's clamp does.
                        gate = gate > m.limit ? m.limit : gate;
                        up = up > m.limit ? m.limit : up < -m.limit ? -m.limit : up;
                        to[p] = gate / (1 + std::exp(-m.alpha * gate)) * (up + 1);
                    } else {
                        to[p] = gate / (1 + std::exp(-gate)) * up;
                    }
                }
            }
            first += end - begin;
        }
    });
    pool_.run([&](int thread, int threads) {
        const Share mine = share(slots, 1, thread, threads);
        for (long s = mine.begin; s < mine.end; ++s) middles.set(s, middle.data() + s * inter);
    });
    const long rows = m.down.rows;
    pool_.run([&](int thread, int threads) {
        const Share mine = share(rows, 16, thread, threads);
        const long count = mine.end - mine.begin;
        std::vector<float> out, products(slots * count);
        for (const Group& group : groups) {
            expert_rows(kernels_, m.down, type, group, middles, 1, mine.begin, mine.end, out);
            for (std::size_t i = 0; i < group.slots.size(); ++i)
                std::copy_n(out.data() + static_cast<long>(i) * count, count, products.data() + group.slots[i] * count);
        }
        // Summed in the order of each token's choices, whatever the order of the experts.
        for (long t = 0; t < tokens; ++t)
            for (long r = 0; r < count; ++r) {
                float sum = 0;
                for (long c = 0; c < chosen; ++c)
                    sum += factors[t * chosen + c] * products[(t * chosen + c) * count + r];
                const long at = t * rows + mine.begin + r;
                write(y.data, y.type, at, residual ? sum + read(residual.data, type, at) : sum);
            }
    });
}

}  // namespace ossia
