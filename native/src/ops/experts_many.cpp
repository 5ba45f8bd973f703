// Experts over many tokens; dense ones over few tokens too.
#include <algorithm>

#include "ops/experts.hpp"
#include "ops/many.hpp"

namespace ossia {

static_assert(kPlaces == kTileTokens);

namespace {

// The same by the kernels for few tokens, which read dense weights in place: faster unless a weight is used often.
template <class Of>
void multiply_few(const Kernels& kernels, const AnyMatrix& matrix, const Vectors& x, long count, const Of& of,
                  long begin, long end, Scratch& scratch) {
    const auto dense = [&](const auto& w, auto kernel) {
        auto rows = w;
        rows.data += begin * (w.transposed ? 1 : w.stride);
        for (long i = 0; i < count; ++i)
            kernel(rows, {static_cast<const float*>(x.at(0, of(i))), w.cols}, 1, scratch.tile + i * kPanelRows,
                   kPanelRows, 0, end - begin);
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

void Machine::moe_many(const Array& x, const Array& ids, const Array& weights, const Experts& m, const Array& y,
                       const Array& residual, bool rounds) {
    const Type type = x.type;
    const long tokens = x.shape[0], chosen = ids.shape[1], hidden = m.hidden, inter = m.inter, slots = tokens * chosen;
    const float* const factors = weights.as<const float>();
    const std::vector<Group> groups = by_expert(ids.as<const std::int64_t>(), slots, m.count);
    const bool packed = m.gate_up.is_packed(), few = !packed && tokens <= kFewTokens;
    const Format format = rounds                                  ? format_of_bytes(gemm_, Order::even_first)
                          : few || (!packed && type == Type::f32) ? Format::floats
                          : type == Type::f32                     ? Format::two_words
                          : gemm_.tiles                           ? Format::tiles
                                                                  : Format::words;
    const auto matrix_of = [&](const Stack& e, long expert) -> AnyMatrix {
        const auto* bytes = e.weight.as<const std::uint8_t>();
        const long blocks = e.cols / kWordBlock, at = expert * e.rows * blocks, element = expert * e.expert_stride;
        if (packed) return Packed{bytes + at * 16, e.scales.as<const std::uint8_t>() + at, e.cols};
        if (type == Type::bf16) return Dense<bf16>{e.weight.as<const bf16>() + element, e.stride, e.cols, e.transposed};
        return Dense<float>{e.weight.as<const float>() + element, e.stride, e.cols, e.transposed};
    };
    const auto multiply_group = [&](const Stack& e, const Vectors& vectors, const Group& group, long first, long count,
                                    bool shared, long begin, long end, Scratch& scratch) {
        const auto of = [&](long i) { return shared ? group.slots[first + i] / chosen : group.place + first + i; };
        if (few) {
            multiply_few(kernels_, matrix_of(e, group.expert), vectors, count, of, begin, end, scratch);
        } else {
            multiply(gemm_, matrix_of(e, group.expert), vectors, count, of, begin, end, scratch);
        }
        read_bias(e.bias.data, type, group.expert * e.rows + begin, group.expert * e.rows + end, scratch.bias);
    };
    const auto tiles = [](const Group& group, const auto& task) {
        const long count = static_cast<long>(group.slots.size());
        for (long first = 0; first < count; first += kManyTokens) task(first, std::min(kManyTokens, count - first));
    };

    // A tile holds tokens of one expert, so each expert gets a copy of its tokens. Other layouts share the tokens.
    const long places = groups.empty() ? 0 : groups.back().end();
    std::vector<long> sources;
    if (has_tiles(format)) {
        sources.assign(places, -1);
        for (const Group& group : groups)
            for (std::size_t i = 0; i < group.slots.size(); ++i) sources[group.place + i] = group.slots[i] / chosen;
    }
    const bool shared = !has_tiles(format);
    const Vectors inputs = [&] {
        const Stage stage(stages_, kLayout);
        if (shared) return vectors_of(pool_, gemm_, format, x.data, type, tokens, hidden);
        return vectors_of(pool_, gemm_, format, x.data, type, places, hidden, [&](long i) { return sources[i]; });
    }();
    Vectors middles(gemm_, format, places, inter);

    // Gate and up alternate: a panel of rows yields one block of hidden units. Bytes take the blocks of a group at
    // once.
    const Activation activation{m.clamped, m.limit, m.alpha};
    const long units = rounds ? kByteGroup : kWordBlock, items = pieces(inter, units);
    const auto gate_and_up = [&](long item, Scratch& scratch) {
        const Group& group = groups[item / items];
        const long unit = item % items * units, last = std::min(inter, unit + units);
        const std::unique_ptr<float[]> activated(rounds ? new float[kManyTokens * units] : nullptr);
        tiles(group, [&](long first, long count) {
            for (long begin = 2 * unit; begin < 2 * last; begin += kPanelRows) {
                const long end = std::min(2 * last, begin + kPanelRows);
                multiply_group(m.gate_up, inputs, group, first, count, shared, begin, end, scratch);
                for (long i = 0; i < count; ++i) {
                    float block[kWordBlock];
                    float* const own = rounds ? activated.get() + i * units + begin / 2 - unit : block;
                    gemm_.gate(activation, scratch.tile + i * kPanelRows, scratch.bias, own);
                    if (!rounds) middles.set(group.place + first + i, unit, own, last - unit);
                }
            }
            for (long i = 0; rounds && i < count; ++i)
                middles.set(group.place + first + i, unit, activated.get() + i * units, last - unit);
        });
    };
    {
        const Stage stage(stages_, "experts: gate and up");
        each(pool_, static_cast<long>(groups.size()) * items, gate_and_up);
    }

    // The thread that owns a panel of the result sums all experts' contributions, in the order of their ids.
    const Stage stage(stages_, "experts: down");
    each(pool_, pieces(hidden, kPanelRows), [&](long item, Scratch& scratch) {
        const long begin = item * kPanelRows, end = std::min(hidden, begin + kPanelRows);
        std::vector<float> sums(tokens * kPanelRows);
        for (const Group& group : groups)
            tiles(group, [&](long first, long count) {
                multiply_group(m.down, middles, group, first, count, false, begin, end, scratch);
                for (long i = 0; i < count; ++i) {
                    const long slot = group.slots[first + i];
                    gemm_.accumulate(scratch.tile + i * kPanelRows, scratch.bias, factors[slot],
                                     sums.data() + slot / chosen * kPanelRows);
                }
            });
        for (long t = 0; t < tokens; ++t) {
            float* sum = sums.data() + t * kPanelRows;
            for (long r = 0; residual && r < end - begin; ++r)
                sum[r] += read(residual.data, type, t * hidden + begin + r);
            finish(kernels_, sum, nullptr, nullptr, end - begin, y.data, y.type, t * hidden + begin);
        }
    });
}

}  // namespace ossia
