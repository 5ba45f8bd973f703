// Experts over many tokens; in bfloat16 and float32 over few tokens, too.
#include <algorithm>

#include "ops/experts.hpp"
#include "ops/many.hpp"

namespace ossia {

static_assert(kPlaces == kTileTokens);

namespace {

// The same by the kernels for few tokens, which read dense weights as they lie: faster until a weight is used often.
template <class Of>
void multiply_few(const Kernels& kernels, const Matrix& matrix, const Vectors& x, long count, const Of& of, long begin,
                  long end, Scratch& scratch) {
    const auto dense = [&](const auto& w, auto kernel) {
        auto rows = w;
        rows.data += begin * (w.transposed ? 1 : w.stride);
        for (long i = 0; i < count; ++i)
            kernel(rows, static_cast<const float*>(x.at(0, of(i))), 1, scratch.tile + i * kPanelRows, kPanelRows, 0,
                   end - begin);
    };
    if (const auto* narrow = std::get_if<Dense<bf16>>(&matrix)) dense(*narrow, kernels.dense_bf16);
    if (const auto* wide = std::get_if<Dense<float>>(&matrix)) dense(*wide, kernels.dense_f32);
}

// Elements [begin, end) of a bias, zeros if there is none.
void read_bias(const void* bias, Type type, long begin, long end, float* out) {
    std::fill_n(out, kPanelRows, 0.0f);
    for (long i = begin; bias && i < end; ++i) out[i - begin] = read(bias, type, i);
}

}  // namespace

void Machine::moe_many(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, const void* residual,
                       void* y, Type type, Type y_type, long tokens) {
    const long hidden = m.gate_up.cols, inter = m.down.cols, slots = tokens * m.chosen;
    const std::vector<Group> groups = by_expert(ids, slots, m.experts);
    const bool packed = m.gate_up.scales, few = !packed && tokens <= kFewTokens;
    const Format format = few || (!packed && type == Type::f32) ? Format::floats
                          : type == Type::f32                   ? Format::two_words
                          : gemm_.tiles                         ? Format::tiles
                                                                : Format::words;
    const auto matrix_of = [&](const Experts& e, long expert) -> Matrix {
        const auto* bytes = static_cast<const std::uint8_t*>(e.weights);
        const long blocks = e.cols / kWordBlock, at = expert * e.rows * blocks, element = expert * e.expert_stride;
        if (packed) return Packed{bytes + at * 16, e.scales + at, e.cols};
        if (type == Type::bf16)
            return Dense<bf16>{static_cast<const bf16*>(e.weights) + element, e.stride, e.cols, e.transposed};
        return Dense<float>{static_cast<const float*>(e.weights) + element, e.stride, e.cols, e.transposed};
    };
    const auto multiply_group = [&](const Experts& e, const Vectors& vectors, const Group& group, long first,
                                    long count, bool shared, long begin, long end, Scratch& scratch) {
        const auto of = [&](long i) { return shared ? group.slots[first + i] / m.chosen : group.place + first + i; };
        if (few) {
            multiply_few(kernels_, matrix_of(e, group.expert), vectors, count, of, begin, end, scratch);
        } else {
            multiply(gemm_, matrix_of(e, group.expert), vectors, count, of, begin, end, scratch);
        }
        read_bias(e.bias, type, group.expert * e.rows + begin, group.expert * e.rows + end, scratch.bias);
    };
    const auto tiles = [](const Group& group, const auto& task) {
        const long count = static_cast<long>(group.slots.size());
        for (long first = 0; first < count; first += kManyTokens) task(first, std::min(kManyTokens, count - first));
    };

    // Tiles hold the tokens of one expert, so each expert has its own copy of them. Else all share the tokens.
    const long places = groups.empty() ? 0 : groups.back().end();
    std::vector<long> sources;
    if (format == Format::tiles) {
        sources.assign(places, -1);
        for (const Group& group : groups)
            for (std::size_t i = 0; i < group.slots.size(); ++i) sources[group.place + i] = group.slots[i] / m.chosen;
    }
    const bool shared = format != Format::tiles;
    const Vectors inputs =
        shared ? vectors_of(pool_, gemm_, format, x, type, tokens, hidden)
               : vectors_of(pool_, gemm_, format, x, type, places, hidden, [&](long i) { return sources[i]; });
    Vectors middles(gemm_, format, places, inter);

    // Gate and up lie in alternate rows: a panel of them makes one block of the hidden units.
    const Activation activation{m.clamped, m.limit, m.alpha};
    const long panels = pieces(2 * inter, kPanelRows);
    each(pool_, static_cast<long>(groups.size()) * panels, [&](long item, Scratch& scratch) {
        const Group& group = groups[item / panels];
        const long begin = item % panels * kPanelRows, end = std::min(2 * inter, begin + kPanelRows);
        tiles(group, [&](long first, long count) {
            multiply_group(m.gate_up, inputs, group, first, count, shared, begin, end, scratch);
            for (long i = 0; i < count; ++i) {
                float units[kWordBlock];
                gemm_.gate(activation, scratch.tile + i * kPanelRows, scratch.bias, units);
                middles.set(group.place + first + i, begin / 2, units, (end - begin) / 2);
            }
        });
    });

    // Whoever has a panel of the result sums all experts' parts of it, in the order of their ids.
    each(pool_, pieces(hidden, kPanelRows), [&](long item, Scratch& scratch) {
        const long begin = item * kPanelRows, end = std::min(hidden, begin + kPanelRows);
        std::vector<float> sums(tokens * kPanelRows);
        for (const Group& group : groups)
            tiles(group, [&](long first, long count) {
                multiply_group(m.down, middles, group, first, count, false, begin, end, scratch);
                for (long i = 0; i < count; ++i) {
                    const long slot = group.slots[first + i];
                    gemm_.accumulate(scratch.tile + i * kPanelRows, scratch.bias, weights[slot],
                                     sums.data() + slot / m.chosen * kPanelRows);
                }
            });
        for (long t = 0; t < tokens; ++t) {
            float* sum = sums.data() + t * kPanelRows;
            for (long r = 0; residual && r < end - begin; ++r) sum[r] += read(residual, type, t * hidden + begin + r);
            finish(kernels_, sum, nullptr, nullptr, end - begin, y, y_type, t * hidden + begin);
        }
    });
}

}  // namespace ossia
