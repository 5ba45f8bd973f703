#include "operations.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace ossia {

namespace {

const Kernels& choose(const std::string& isa) {
    std::vector<const Kernels*> known{&kernels_portable()};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) known.push_back(&kernels_avx2());
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni")) {
        known.push_back(&kernels_avx512());
    }
#endif
    if (isa.empty()) return *known.back();
    std::string names;
    for (const Kernels* kernels : known) {
        if (isa == kernels->name) return *kernels;
        names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    throw std::invalid_argument("OSSIA_CPU_ISA=" + isa + ": this processor runs " + names);
}

// To nearest, ties to even, as everyone rounds to bfloat16.
void narrow(float value, bf16* out) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    *out = std::isnan(value) ? 0x7FC0 : static_cast<bf16>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
void narrow(float value, float* out) { *out = value; }

float read(const void* data, Type type, long i) {
    return type == Type::bf16 ? widen(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
}
void write(void* data, Type type, long i, float value) {
    if (type == Type::bf16) {
        narrow(value, static_cast<bf16*>(data) + i);
    } else {
        static_cast<float*>(data)[i] = value;
    }
}

// As float32, without a copy where it is that already.
const float* floats(const void* data, Type type, long count, std::vector<float>& storage) {
    if (type == Type::f32) return static_cast<const float*>(data);
    storage.resize(count);
    for (long i = 0; i < count; ++i) storage[i] = widen(static_cast<const bf16*>(data)[i]);
    return storage.data();
}

}  // namespace

Machine::Machine(int threads, const std::string& isa) : kernels_(choose(isa)), pool_(std::max(threads, 1)) {}

void Machine::linear(const Linear& w, const void* x, void* y, Type type, long tokens) {
    std::vector<float> storage, result(tokens * w.rows);
    const float* wide = floats(x, type, tokens * w.cols, storage);
    run_if_large(w.rows * w.cols, [&](int thread, int threads) {
        const Share rows = share(w.rows, 16, thread, threads);
        if (w.weight_type == Type::bf16) {
            const Dense<bf16> matrix{static_cast<const bf16*>(w.weight), w.stride, w.cols, w.transposed};
            kernels_.dense_bf16(matrix, wide, tokens, result.data(), w.rows, rows.begin, rows.end);
        } else {
            const Dense<float> matrix{static_cast<const float*>(w.weight), w.stride, w.cols, w.transposed};
            kernels_.dense_f32(matrix, wide, tokens, result.data(), w.rows, rows.begin, rows.end);
        }
        for (long t = 0; t < tokens; ++t)
            for (long r = rows.begin; r < rows.end; ++r) {
                const float bias = w.bias ? read(w.bias, w.weight_type, r) : 0.0f;
                write(y, type, t * w.rows + r, result[t * w.rows + r] + bias);
            }
    });
}

namespace {

float mean_square(const float* x, long size) {
    constexpr int kLanes = 16;
    float lanes[kLanes] = {};
    long i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
    float sum = 0;
    for (float lane : lanes) sum += lane;
    for (; i < size; ++i) sum += x[i] * x[i];
    return sum / static_cast<float>(size);
}

float rounded(float value, Type type) {
    if (type == Type::f32) return value;
    bf16 narrowed;
    narrow(value, &narrowed);
    return widen(narrowed);
}

}  // namespace

void Machine::rms_norm(const void* x, const void* weight, void* y, Type type, long rows, long size, float eps,
                       bool round_before_weight) {
    run_if_large(rows * size, [&](int thread, int threads) {
        const Share mine = share(rows, 1, thread, threads);
        std::vector<float> wide(size);
        for (long row = mine.begin; row < mine.end; ++row) {
            for (long i = 0; i < size; ++i) wide[i] = read(x, type, row * size + i);
            const float scale = 1 / std::sqrt(mean_square(wide.data(), size) + eps);
            for (long i = 0; i < size; ++i) {
                const float normal = wide[i] * scale;
                write(y, type, row * size + i, (round_before_weight ? rounded(normal, type) : normal) * read(weight, type, i));
            }
        }
    });
}

void Machine::rotate(const void* x, const float* cosines, const float* sines, void* y, Type type, long tokens, long heads,
                     long head_dim) {
    const long half = head_dim / 2;
    run_if_large(tokens * heads * head_dim, [&](int thread, int threads) {
        const Share mine = share(tokens, 1, thread, threads);
        for (long token = mine.begin; token < mine.end; ++token)
            for (long head = 0; head < heads; ++head) {
                const long first = (token * heads + head) * head_dim, second = first + half;
                for (long i = 0; i < half; ++i) {
                    const float c = cosines[token * half + i], s = sines[token * half + i];
                    const float a = read(x, type, first + i), b = read(x, type, second + i);
                    write(y, type, first + i, a * c - b * s);
                    write(y, type, second + i, b * c + a * s);
                }
            }
    });
}

namespace {

// Vectors quantized for the packed kernel. int16 is finer than bfloat16 by far, but not than float32: of a float32 vector the
// remainder is quantized too, and its products are added.
class Quantized {
  public:
    Quantized(const Kernels& kernels, Type type, long count, long cols)
        : kernels_(kernels),
          parts_(type == Type::f32 ? 2 : 1),
          count_(count),
          cols_(cols),
          size_(kernels.quantized_size(cols)),
          words_(parts_ * count * size_),
          scales_(parts_ * count) {}

    int parts() const { return parts_; }
    const std::int16_t* words(int part, long i) const { return words_.data() + (part * count_ + i) * size_; }
    float scale(int part, long i) const { return scales_[part * count_ + i]; }

    void set(long i, const float* x) {
        if (parts_ == 1) return set_part(0, i, x);
        std::vector<float> high(cols_), low(cols_);
        float largest = 0;
        for (long c = 0; c < cols_; ++c) largest = std::max(largest, std::fabs(x[c]));
        const double step = largest / 32767.0;
        for (long c = 0; c < cols_; ++c) {
            high[c] = largest > 0 ? static_cast<float>(std::nearbyint(x[c] / step) * step) : x[c];
            low[c] = x[c] - high[c];
        }
        set_part(0, i, high.data());
        set_part(1, i, low.data());
    }

  private:
    void set_part(int part, long i, const float* x) {
        kernels_.quantize(x, cols_, words_.data() + (part * count_ + i) * size_, &scales_[part * count_ + i]);
    }

    const Kernels& kernels_;
    int parts_;
    long count_, cols_, size_;
    std::vector<std::int16_t> words_;
    std::vector<float> scales_;
};

// The slots (token * chosen + choice) that chose one expert.
struct Group {
    long expert;
    std::vector<long> slots;
};

std::vector<Group> by_expert(const std::int64_t* ids, long slots, long experts) {
    std::vector<long> order(slots);
    std::iota(order.begin(), order.end(), 0L);
    std::stable_sort(order.begin(), order.end(), [&](long a, long b) { return ids[a] < ids[b]; });
    std::vector<Group> groups;
    for (long slot : order) {
        if (ids[slot] < 0 || ids[slot] >= experts) throw std::out_of_range("an expert id is outside the experts");
        if (groups.empty() || groups.back().expert != ids[slot]) groups.push_back({static_cast<long>(ids[slot]), {}});
        groups.back().slots.push_back(slot);
    }
    return groups;
}

// Rows [begin, end) of one expert times the quantized vectors of some slots, plus bias, into out[slot][row - begin].
void expert_rows(const Kernels& kernels, const Machine::Experts& m, Type type, const Group& group, const Quantized& x,
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
    const Packed matrix{m.blocks + group.expert * m.rows * blocks * 16, m.scales + group.expert * m.rows * blocks, m.cols};
    kernels.packed(matrix, words.data(), scales.data(), vectors, to.data(), begin, end);
    for (long i = slots; i < vectors; ++i)
        for (long r = 0; r < rows; ++r) to[i - slots][r] += to[i][r];
    if (!m.bias) return;
    for (long i = 0; i < slots; ++i)
        for (long r = 0; r < rows; ++r) to[i][r] += read(m.bias, type, group.expert * m.rows + begin + r);
}

}  // namespace

void Machine::moe(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, void* y, Type type, long tokens) {
    const long hidden = m.gate_up.cols, inter = m.down.cols, slots = tokens * m.chosen;
    const std::vector<Group> groups = by_expert(ids, slots, m.experts);
    std::vector<float> storage;
    const float* wide = floats(x, type, tokens * hidden, storage);
    Quantized inputs(kernels_, type, tokens, hidden), middles(kernels_, type, slots, inter);
    for (long t = 0; t < tokens; ++t) inputs.set(t, wide + t * hidden);

    // Gate and up lie in alternate rows: a unit of the hidden layer is a pair.
    std::vector<float> middle(slots * inter);
    pool_.run([&](int thread, int threads) {
        const Share pairs = share(static_cast<long>(groups.size()) * inter, 16, thread, threads);
        std::vector<float> out;
        for (long first = pairs.begin; first < pairs.end;) {
            const long index = first / inter, begin = first % inter;
            const long end = std::min(inter, begin + (pairs.end - first));
            const Group& group = groups[index];
            expert_rows(kernels_, m.gate_up, type, group, inputs, m.chosen, 2 * begin, 2 * end, out);
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
        // In the order of each token's choices, whatever the order of the experts was.
        for (long t = 0; t < tokens; ++t)
            for (long r = 0; r < count; ++r) {
                float sum = 0;
                for (long c = 0; c < m.chosen; ++c)
                    sum += weights[t * m.chosen + c] * products[(t * m.chosen + c) * count + r];
                write(y, type, t * rows + mine.begin + r, sum);
            }
    });
}

std::uint64_t Machine::sum(const std::uint64_t* words, long count) {
    std::vector<std::uint64_t> sums(pool_.size());
    pool_.run([&](int thread, int threads) {
        const Share mine = share(count, 512, thread, threads);
        sums[thread] = kernels_.sum(words + mine.begin, mine.end - mine.begin);
    });
    return std::accumulate(sums.begin(), sums.end(), std::uint64_t{0});
}

template <class Element>
void Machine::paged_attention_of(const Paged& p, const Element* q, const Element* k, const Element* v, Element* y,
                                 long tokens) {
    // What each token is, and its own key and value into their page.
    struct Query {
        const std::int32_t* pages;
        long position;
    };
    std::vector<Query> queries;
    const long kv_size = p.kv_heads * p.head_dim;
    for (long s = 0; s < p.sequences; ++s) {
        const std::int32_t* pages = p.page_table + s * p.columns;
        const long length = p.lengths[s], count = p.query_lengths[s];
        if (count < 0 || count > length || length > p.columns * p.page_size)
            throw std::out_of_range("a sequence is longer than its page table");
        if (count == 0) continue;
        const long oldest = p.window ? std::max(0L, length - count - p.window + 1) : 0;
        for (long page = oldest / p.page_size; page * p.page_size < length; ++page)
            if (pages[page] < 0 || pages[page] >= p.pages) throw std::out_of_range("a visible page is missing");
        for (long position = length - count; position < length; ++position) {
            const long token = static_cast<long>(queries.size());
            if (token >= tokens) throw std::out_of_range("query lengths add up to more than the tokens");
            const long slot = (pages[position / p.page_size] * p.page_size + position % p.page_size) * kv_size;
            std::copy_n(k + token * kv_size, kv_size, static_cast<Element*>(p.keys) + slot);
            std::copy_n(v + token * kv_size, kv_size, static_cast<Element*>(p.values) + slot);
            queries.push_back({pages, position});
        }
    }
    if (static_cast<long>(queries.size()) != tokens) throw std::out_of_range("query lengths add up to less than the tokens");
    const long group = p.heads / p.kv_heads, size = group * p.head_dim;
    const float scale = 1 / std::sqrt(static_cast<float>(p.head_dim));
    pool_.run([&](int thread, int threads) {
        const Share tasks = share(tokens * p.kv_heads, 1, thread, threads);
        std::vector<float> scaled(size), out(size), scratch(group * (p.page_size + 2));
        for (long task = tasks.begin; task < tasks.end; ++task) {
            const long token = task / p.kv_heads, kv_head = task % p.kv_heads;
            const Query& query = queries[token];
            const long at = token * p.heads * p.head_dim + kv_head * size;
            for (long i = 0; i < size; ++i) scaled[i] = widen(q[at + i]) * scale;
            const long last = query.position + 1, first = p.window ? std::max(0L, last - p.window) : 0;
            const Cache<Element> cache{static_cast<const Element*>(p.keys), static_cast<const Element*>(p.values),
                                       query.pages, p.page_size, p.kv_heads, p.head_dim};
            const float* sinks = p.sinks ? p.sinks + kv_head * group : nullptr;
            if constexpr (sizeof(Element) == sizeof(bf16)) {
                kernels_.attend_bf16(cache, scaled.data(), sinks, group, kv_head, first, last, scratch.data(), out.data());
            } else {
                kernels_.attend_f32(cache, scaled.data(), sinks, group, kv_head, first, last, scratch.data(), out.data());
            }
            for (long i = 0; i < size; ++i) narrow(out[i], y + at + i);
        }
    });
}

void Machine::paged_attention(const Paged& p, const void* q, const void* k, const void* v, void* y, Type type, long tokens) {
    if (type == Type::bf16) {
        paged_attention_of(p, static_cast<const bf16*>(q), static_cast<const bf16*>(k), static_cast<const bf16*>(v),
                           static_cast<bf16*>(y), tokens);
    } else {
        paged_attention_of(p, static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v),
                           static_cast<float*>(y), tokens);
    }
}

}  // namespace ossia
