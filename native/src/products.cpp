// Linear layers and experts over many tokens, by the products of gemm.hpp; experts in bfloat16 and float32 over few tokens, too.
#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <type_traits>

#include "experts.hpp"
#include "gemm.hpp"
#include "numbers.hpp"

namespace ossia {

namespace {

struct Scratch {
    alignas(64) char panel[std::max(kPanelBytes, kTileMemoryBytes)];
    float tile[kManyTokens * kPanelRows];
    const void* tokens[kManyTokens];
    float bias[kPanelRows];
};

// Calls task(item, scratch) for each item, whoever of the threads is free.
template <class Task>
void each(Pool& pool, long items, const Task& task) {
    std::atomic<long> next{0};
    pool.run([&](int, int) {
        std::unique_ptr<Scratch> scratch;
        for (long item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
            if (!scratch) scratch.reset(new Scratch);
            task(item, *scratch);
        }
    });
}

constexpr long pieces(long count, long size) { return (count + size - 1) / size; }

// Vectors as a product reads them: tiles of bfloat16, words, of float32 also the words of what rounding them left, or floats as they are.
enum class Format { tiles, words, two_words, floats };
static_assert(kPlaces == kTileTokens);

class Vectors {
  public:
    Vectors(const Gemm& gemm, Format format, long count, long cols)
        : gemm_(gemm),
          format_(format),
          count_(count),
          cols_(cols),
          size_(format == Format::floats  ? cols * static_cast<long>(sizeof(float))
                : format == Format::tiles ? word_blocks(cols) * kWordBlock * static_cast<long>(sizeof(bf16))
                                          : words_size(cols)),
          own_(new (kLine) char[parts() * pieces(count, kTileTokens) * kTileTokens * size_]),
          data_(own_.get()) {}

    // Floats that lie one after another already.
    Vectors(const Gemm& gemm, const float* x, long count, long cols)
        : gemm_(gemm),
          format_(Format::floats),
          count_(count),
          cols_(cols),
          size_(cols * static_cast<long>(sizeof(float))),
          data_(reinterpret_cast<const char*>(x)) {}

    int parts() const { return format_ == Format::two_words ? 2 : 1; }
    bool are_tiles() const { return format_ == Format::tiles; }
    const void* at(int part, long i) const { return data_ + (part * count_ + i) * size_; }  // of tiles, the first of one

    // Elements [column, column + count) of vector i; `column` is a multiple of kWordBlock, and so is `count` except at the end.
    template <class Element>
    void set(long i, long column, const Element* x, long count) {
        const long block = column / kWordBlock;
        if (format_ == Format::tiles) {
            for (long c = 0; c < count; c += kWordBlock)
                put(x + c, std::min(kWordBlock, count - c),
                    own_.get() + place_in_tiles(i, block + c / kWordBlock, word_blocks(cols_)));
        } else if (format_ == Format::floats) {
            float* to = reinterpret_cast<float*>(to_part(0, i)) + column;
            for (long c = 0; c < count; ++c) to[c] = widen(x[c]);
        } else if (format_ == Format::words) {
            quantize(x, count, block, to_part(0, i), nullptr);
        } else {
            std::unique_ptr<float[]> rest(new float[count]);
            quantize(x, count, block, to_part(0, i), rest.get());
            quantize(rest.get(), count, block, to_part(1, i), nullptr);
        }
    }

  private:
    char* to_part(int part, long i) { return own_.get() + (part * count_ + i) * size_; }
    void quantize(const bf16* x, long count, long block, void* to, float* rest) {
        gemm_.quantize_bf16(x, count, cols_, block, to, rest);
    }
    void quantize(const float* x, long count, long block, void* to, float* rest) {
        gemm_.quantize_f32(x, count, cols_, block, to, rest);
    }
    void put(const bf16* x, long count, void* to) { gemm_.tiles->put_bf16(x, count, to); }
    void put(const float* x, long count, void* to) { gemm_.tiles->put_f32(x, count, to); }

    struct Free {
        void operator()(char* data) const { ::operator delete[](data, kLine); }
    };
    static constexpr std::align_val_t kLine{64};

    const Gemm& gemm_;
    Format format_;
    long count_, cols_, size_;
    std::unique_ptr<char[], Free> own_;
    const char* data_;
};

// `count` vectors of `cols` elements of type `type`: the i-th is row `source(i)` of x, and not read where that is negative.
template <class Source>
Vectors vectors_of(Pool& pool, const Gemm& gemm, Format format, const void* x, Type type, long count, long cols,
                   const Source& source) {
    Vectors vectors(gemm, format, count, cols);
    const long step = format == Format::tiles ? kWordBlock : cols;  // what a tile's tokens have side by side is written together
    each(pool, pieces(count, kTileTokens), [&](long item, Scratch&) {
        const long first = item * kTileTokens, last = std::min(count, first + kTileTokens);
        for (long column = 0; column < cols; column += step)
            for (long i = first; i < last; ++i) {
                const long row = source(i), size = std::min(step, cols - column);
                if (row < 0) continue;
                if (type == Type::bf16) {
                    vectors.set(i, column, static_cast<const bf16*>(x) + row * cols + column, size);
                } else {
                    vectors.set(i, column, static_cast<const float*>(x) + row * cols + column, size);
                }
            }
    });
    return vectors;
}

// The vectors x (tokens, cols) of type `type`.
Vectors vectors_of(Pool& pool, const Gemm& gemm, Format format, const void* x, Type type, long tokens, long cols) {
    if (format == Format::floats && type == Type::f32) return {gemm, static_cast<const float*>(x), tokens, cols};
    return vectors_of(pool, gemm, format, x, type, tokens, cols, [](long i) { return i; });
}

auto product(const TileGemm& gemm, const Packed&) { return gemm.packed; }
auto product(const TileGemm& gemm, const Dense<bf16>&) { return gemm.dense; }
auto product(const TileGemm& gemm, const Int8&) { return gemm.int8; }
auto product(const Gemm& gemm, const Packed&) { return gemm.packed; }
auto product(const Gemm& gemm, const Dense<bf16>&) { return gemm.bf16_words; }
auto product(const Gemm& gemm, const Int8&) { return gemm.int8_words; }
auto product(const Gemm& gemm, const Dense<float>&) { return gemm.f32_floats; }

// scratch.tile gets rows [begin, end) of the matrix times vectors of(0) to of(count - 1).
template <class Of>
void multiply(const Gemm& gemm, const Matrix& matrix, const Vectors& x, long count, const Of& of, long begin, long end,
              Scratch& scratch) {
    if (x.are_tiles()) {
        std::visit(
            [&](const auto& w) {
                if constexpr (!std::is_same_v<decltype(w), const Dense<float>&>)
                    product(*gemm.tiles, w)(w, x.at(0, of(0)), count, begin, end, scratch.panel, scratch.tile);
            },
            matrix);
        return;
    }
    for (int part = 0; part < x.parts(); ++part) {
        for (long i = 0; i < count; ++i) scratch.tokens[i] = x.at(part, of(i));
        std::visit(
            [&](const auto& w) {
                product(gemm, w)(w, scratch.tokens, count, begin, end, part > 0, scratch.panel, scratch.tile);
            },
            matrix);
    }
}

// The same by the kernels for few tokens, which read dense weights as they lie: faster until a weight is used often.
template <class Of>
void multiply_few(const Kernels& kernels, const Matrix& matrix, const Vectors& x, long count, const Of& of, long begin, long end,
                  Scratch& scratch) {
    const auto dense = [&](const auto& w, auto kernel) {
        auto rows = w;
        rows.data += begin * (w.transposed ? 1 : w.stride);
        for (long i = 0; i < count; ++i)
            kernel(rows, static_cast<const float*>(x.at(0, of(i))), 1, scratch.tile + i * kPanelRows, kPanelRows, 0, end - begin);
    };
    if (const auto* narrow = std::get_if<Dense<bf16>>(&matrix)) dense(*narrow, kernels.dense_bf16);
    if (const auto* wide = std::get_if<Dense<float>>(&matrix)) dense(*wide, kernels.dense_f32);
}

// y[at + i] = x[i] + bias[i] + residual[at + i] for i below count, where they are.
void finish(const Kernels& kernels, const float* x, const void* bias, const void* residual, long count, void* y, Type y_type,
            long at) {
    with_type(y_type, [&](auto element) {
        using Element = decltype(element);
        const auto *own = static_cast<const Element*>(bias), *added = static_cast<const Element*>(residual);
        Element* out = static_cast<Element*>(y) + at;
        kernels.rowwise(out).finish(x, own, added ? added + at : nullptr, out, count);
    });
}

// Elements [begin, end) of a bias, zeros if there is none.
void read_bias(const void* bias, Type type, long begin, long end, float* out) {
    std::fill_n(out, kPanelRows, 0.0f);
    for (long i = begin; bias && i < end; ++i) out[i - begin] = read(bias, type, i);
}

Matrix matrix_of(const Machine::Linear& w) {
    if (w.weight_type == Type::int8) return int8_of(w);
    if (w.weight_type == Type::bf16) return Dense<bf16>{static_cast<const bf16*>(w.weight), w.stride, w.cols, w.transposed};
    return Dense<float>{static_cast<const float*>(w.weight), w.stride, w.cols, w.transposed};
}

}  // namespace

void Machine::linear_many(const std::vector<Linear>& matrices, const void* x, Type type, long tokens) {
    const long cols = matrices.front().cols;
    const bool words = type == Type::bf16 || matrices.front().weight_type == Type::int8;
    const Format format = !words              ? Format::floats
                          : type == Type::f32 ? Format::two_words
                          : gemm_.tiles       ? Format::tiles
                                              : Format::words;
    const Vectors inputs = vectors_of(pool_, gemm_, format, x, type, tokens, cols);
    struct Panel {
        const Linear& w;
        long begin;
    };
    std::vector<Panel> panels;
    for (const Linear& w : matrices)
        for (long begin = 0; begin < w.rows; begin += kPanelRows) panels.push_back({w, begin});
    // A few items for each thread, where there are so many tokens.
    const long count = static_cast<long>(panels.size());
    const long some_tokens = std::clamp(pieces(tokens, pieces(4L * pool_.size(), count)), 24L, kManyTokens);
    const long size = gemm_.tiles ? pieces(some_tokens, 2 * kTileTokens) * 2 * kTileTokens : some_tokens;
    each(pool_, count * pieces(tokens, size), [&](long item, Scratch& scratch) {
        const auto& [w, begin] = panels[item % count];
        const long rows = std::min(kPanelRows, w.rows - begin);
        const long first = item / count * size, some = std::min(size, tokens - first);
        multiply(gemm_, matrix_of(w), inputs, some, [&](long i) { return first + i; }, begin, begin + rows, scratch);
        const char* bias = static_cast<const char*>(w.bias);
        if (bias) bias += begin * (w.y_type == Type::bf16 ? sizeof(bf16) : sizeof(float));
        for (long i = 0; i < some; ++i)
            finish(kernels_, scratch.tile + i * kPanelRows, bias, w.residual, rows, w.y, w.y_type, (first + i) * w.rows + begin);
    });
}

void Machine::moe_many(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, const void* residual, void* y,
                       Type type, Type y_type, long tokens) {
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
        if (type == Type::bf16) return Dense<bf16>{static_cast<const bf16*>(e.weights) + element, e.stride, e.cols, e.transposed};
        return Dense<float>{static_cast<const float*>(e.weights) + element, e.stride, e.cols, e.transposed};
    };
    const auto multiply_group = [&](const Experts& e, const Vectors& vectors, const Group& group, long first, long count,
                                    bool shared, long begin, long end, Scratch& scratch) {
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
    const Vectors inputs = shared ? vectors_of(pool_, gemm_, format, x, type, tokens, hidden)
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
