// Attention over pages.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <tuple>

#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

// The arguments of one call, checked except for the tables' contents.
struct PagedStep {
    const void *q, *k, *v;
    void* y;
    long tokens;
    void *keys, *values;
    float *key_scales, *value_scales;  // of int8, or null
    const std::int32_t* page_table;    // (sequences, columns)
    const std::int64_t *lengths, *query_lengths;
    long pages, page_size, columns, sequences, heads, kv_heads, head_dim;
    long window;  // 0: none
    Array sinks;
    const float *cosines, *sines;  // or null: q and k are rotated already
};

namespace {

// Rows (heads times queries) that share one pass over the keys: many, so that keys are read and widened seldom, but few
// enough for the second-level cache and, of integers, which take more to convert, for every thread to have some blocks.
constexpr long kBlockRows = 192, kMostWordRows = 768;
constexpr long kBlocksPerThread = 4;
// Keys of one query per task: long texts keep all threads busy, and the order of a sum does not depend on the number of
// threads.
constexpr long kPartKeys = 1024;

constexpr float kLog2E = 1.44269504f;

// One sequence of a step: `count` new tokens, packed from index `token` on, the first at `position`.
struct Sequence {
    const std::int32_t* pages;
    long token, count, position;
};

// Queries [query, query + queries) of a sequence under one key head over positions [first, last); a single query yields
// part number `part`, which is joined with the others.
struct Task {
    const Sequence* sequence;
    long query, queries, kv_head, first, last;
    long part;  // -1: a block of queries

    long cost() const { return queries * (last - first); }
};

// The partial softmax of a single query's head group over each part.
struct Parts {
    std::vector<float> maxima, totals;  // (parts, group)
    std::vector<float> sums;            // (parts, group, head_dim)
};

// Checks every page a step will read or write against the pool.
std::vector<Sequence> sequences(const PagedStep& p) {
    std::vector<Sequence> found;
    long token = 0;
    for (long s = 0; s < p.sequences; ++s) {
        const std::int32_t* pages = p.page_table + s * p.columns;
        const long length = p.lengths[s], count = p.query_lengths[s];
        if (count < 0 || count > length || length > p.columns * p.page_size)
            throw std::out_of_range("a sequence is longer than its page table");
        if (count == 0) continue;
        if (count > p.tokens - token) throw std::out_of_range("query lengths add up to more than the tokens");
        const long oldest = p.window ? std::max(0L, length - count - p.window + 1) : 0;
        for (long page = oldest / p.page_size; page * p.page_size < length; ++page)
            if (pages[page] < 0 || pages[page] >= p.pages) throw std::out_of_range("a visible page is missing");
        found.push_back({pages, token, count, length - count});
        token += count;
    }
    if (token != p.tokens) throw std::out_of_range("query lengths add up to less than the tokens");
    return found;
}

inline void store(const float* x, long count, bf16* y, float*) {
    for (long i = 0; i < count; ++i) narrow(x[i], y + i);
}
inline void store(const float* x, long count, float* y, float*) { std::copy_n(x, count, y); }

// Quantizes by the largest magnitude, which becomes 127. A vector with NaN or infinity becomes all NaN.
inline void store(const float* x, long count, std::int8_t* y, float* scale) {
    float largest = 0;
    bool finite = true;
    for (long i = 0; i < count; ++i) {
        largest = std::max(largest, std::fabs(x[i]));
        finite = finite && std::isfinite(x[i]);
    }
    *scale = finite ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
    if (!(*scale > 0)) return static_cast<void>(std::fill_n(y, count, std::int8_t{0}));
    for (long i = 0; i < count; ++i)
        y[i] = static_cast<std::int8_t>(std::min(127.0f, std::max(-127.0f, std::nearbyint(x[i] / *scale))));
}

}  // namespace

template <class Element, class Stored>
class PagedAttention {
  public:
    using Turn = void (*)(const Element*, const float*, const float*, long, float, float*);

    PagedAttention(const PagedStep& p, const Kernels& kernels, const Attend<Stored>& attend, Turn turn, int threads)
        : p_(p),
          kernels_(kernels),
          attend_(attend),
          turn_(turn),
          q_(static_cast<const Element*>(p.q)),
          k_(static_cast<const Element*>(p.k)),
          v_(static_cast<const Element*>(p.v)),
          y_(static_cast<Element*>(p.y)),
          group_(p.heads / p.kv_heads),
          in_words_(sizeof(Element) < sizeof(float) && attend.words),
          block_rows_(in_words_
                          ? std::clamp(p.tokens * p.heads / (kBlocksPerThread * threads), kBlockRows, kMostWordRows)
                          : kBlockRows),
          sequences_(sequences(p)),
          sinks_(p.sinks ? p.heads : 0) {
        for (std::size_t h = 0; h < sinks_.size(); ++h)
            sinks_[h] = read(p.sinks.data, p.sinks.type, static_cast<long>(h)) * kLog2E;
        long part = 0;
        for (const Sequence& sequence : sequences_) part = add_tasks(sequence, part);
        // Most expensive first, so that all threads finish at about the same time. Of equal ones, those that read the
        // same keys follow each other: drafts of one text, or texts with one beginning.
        std::stable_sort(tasks_.begin(), tasks_.end(), [](const Task& a, const Task& b) {
            return std::make_tuple(-a.cost(), a.kv_head, a.first) < std::make_tuple(-b.cost(), b.kv_head, b.first);
        });
        parts_.maxima.resize(part * group_);
        parts_.totals.resize(part * group_);
        parts_.sums.resize(part * group_ * p.head_dim);
    }

    // An estimate, in multiply-adds.
    long cost() const {
        long sum = 0;
        for (const Task& task : tasks_) sum += task.cost();
        return sum * group_ * p_.head_dim;
    }

    // Writes the keys and values of tokens [begin, end) to their pages.
    void append(long begin, long end) const {
        const long dim = p_.head_dim;
        std::vector<float> turned(dim);
        for (const Sequence& s : sequences_)
            for (long token = std::max(begin, s.token); token < std::min(end, s.token + s.count); ++token) {
                const long position = s.position + token - s.token;
                const long slot = s.pages[position / p_.page_size] * p_.page_size + position % p_.page_size;
                for (long head = 0; head < p_.kv_heads; ++head) {
                    const long from = (token * p_.kv_heads + head) * dim, to = slot * p_.kv_heads + head;
                    turn_(k_ + from, cosines(token), sines(token), dim, 1, turned.data());
                    store(turned.data(), dim, static_cast<Stored*>(p_.keys) + to * dim, at(p_.key_scales, to));
                    turn_(v_ + from, nullptr, nullptr, dim, 1, turned.data());
                    store(turned.data(), dim, static_cast<Stored*>(p_.values) + to * dim, at(p_.value_scales, to));
                }
            }
    }

    // Runs tasks until none is left.
    void attend() {
        const long dim = p_.head_dim;
        std::vector<float> q, out;
        Lines<float> scratch;
        long scratch_size = 0;
        for (long i; (i = next_.fetch_add(1)) < static_cast<long>(tasks_.size());) {
            const Task& task = tasks_[i];
            const Sequence& sequence = *task.sequence;
            const Cache<Stored> cache{static_cast<const Stored*>(p_.keys),
                                      static_cast<const Stored*>(p_.values),
                                      p_.key_scales,
                                      p_.value_scales,
                                      sequence.pages,
                                      p_.page_size,
                                      p_.kv_heads,
                                      dim};
            const long rows = task.queries * group_;
            q.resize(std::max<long>(q.size(), rows * dim));
            for (long row = 0; row < rows; ++row) {
                const long token = sequence.token + task.query + row / group_;
                turn_(q_ + (token * p_.heads + task.kv_head * group_ + row % group_) * dim, cosines(token),
                      sines(token), dim, kLog2E / std::sqrt(static_cast<float>(dim)), q.data() + row * dim);
            }
            if (task.part >= 0) {
                attend_.token(cache, q.data(), group_, task.kv_head, task.first, task.last,
                              &parts_.maxima[task.part * group_], &parts_.totals[task.part * group_],
                              &parts_.sums[task.part * group_ * dim]);
                continue;
            }
            out.resize(std::max<long>(out.size(), rows * dim));
            const long size = (in_words_ ? kernels_.words_scratch : kernels_.attend_scratch)(rows, dim);
            if (size > scratch_size) scratch = lines<float>(scratch_size = size);
            const float* sinks = sinks_.empty() ? nullptr : sinks_.data() + task.kv_head * group_;
            (in_words_ ? attend_.words : attend_.block)(cache, q.data(), sinks, group_, task.queries, task.kv_head,
                                                        sequence.position + task.query, p_.window, scratch.get(),
                                                        out.data());
            for (long query = 0; query < task.queries; ++query)
                write_out(out.data() + query * group_ * dim, sequence.token + task.query + query, task.kv_head);
        }
    }

    // Joins the parts of single queries, in order.
    void join() const {
        const long dim = p_.head_dim;
        std::vector<float> out(group_ * dim);
        for (const Joined& joined : joined_) {
            for (long g = 0; g < group_; ++g) {
                // A sink is a score without a value.
                const float sink =
                    sinks_.empty() ? -std::numeric_limits<float>::infinity() : sinks_[joined.kv_head * group_ + g];
                float maximum = sink, total = 0;
                for (long part = joined.begin; part < joined.end; ++part)
                    maximum = std::max(parts_.maxima[part * group_ + g], maximum);
                if (!sinks_.empty()) total = std::exp2(sink - maximum);
                float* sum = out.data() + g * dim;
                std::fill_n(sum, dim, 0.0f);
                for (long part = joined.begin; part < joined.end; ++part) {
                    const float fade = std::exp2(parts_.maxima[part * group_ + g] - maximum);
                    const float* of_part = &parts_.sums[(part * group_ + g) * dim];
                    total += parts_.totals[part * group_ + g] * fade;
                    for (long d = 0; d < dim; ++d) sum[d] += of_part[d] * fade;
                }
                for (long d = 0; d < dim; ++d) sum[d] /= total;
            }
            write_out(out.data(), joined.token, joined.kv_head);
        }
    }

  private:
    // The parts [begin, end) of one token under one key head.
    struct Joined {
        long token, kv_head, begin, end;
    };

    // Returns the number of the next part. One query has too few rows for a block unless heads are many.
    long add_tasks(const Sequence& sequence, long part) {
        const auto oldest = [&](long position) { return p_.window ? std::max(0L, position - p_.window + 1) : 0; };
        const long step = std::max(1L, block_rows_ / group_);
        for (long kv_head = 0; kv_head < p_.kv_heads; ++kv_head) {
            if (sequence.count > 1) {
                for (long query = 0; query < sequence.count; query += step) {
                    const long queries = std::min(step, sequence.count - query), position = sequence.position + query;
                    tasks_.push_back({&sequence, query, queries, kv_head, oldest(position), position + queries, -1});
                }
                continue;
            }
            const long begin = part, last = sequence.position + 1;
            for (long first = oldest(sequence.position); first < last; ++part) {
                const long end = std::min(last, (first / kPartKeys + 1) * kPartKeys);
                tasks_.push_back({&sequence, 0, 1, kv_head, first, end, part});
                first = end;
            }
            joined_.push_back({sequence.token, kv_head, begin, part});
        }
        return part;
    }

    void write_out(const float* out, long token, long kv_head) const {
        Element* y = y_ + (token * p_.heads + kv_head * group_) * p_.head_dim;
        kernels_.rowwise(y).finish(out, nullptr, nullptr, y, group_ * p_.head_dim);
    }

    // Keeps null pointers null.
    template <class T>
    static T* at(T* data, long i) {
        return data ? data + i : nullptr;
    }
    const float* cosines(long token) const { return at(p_.cosines, token * (p_.head_dim / 2)); }
    const float* sines(long token) const { return at(p_.sines, token * (p_.head_dim / 2)); }

    const PagedStep& p_;
    const Kernels& kernels_;
    const Attend<Stored>& attend_;
    const Turn turn_;
    const Element *q_, *k_, *v_;
    Element* y_;
    const long group_;
    const bool in_words_;  // several queries of a sequence, as exactly as bfloat16 needs
    const long block_rows_;
    const std::vector<Sequence> sequences_;
    std::vector<float> sinks_;
    std::vector<Task> tasks_;
    std::vector<Joined> joined_;
    Parts parts_;
    std::atomic<long> next_{0};
};

template <class Element, class Stored>
void Machine::paged_attention_of(const PagedStep& p, const Attend<Stored>& attend,
                                 void (*turn)(const Element*, const float*, const float*, long, float, float*)) {
    PagedAttention<Element, Stored> step(p, kernels_, attend, turn, pool_.size());
    run_if_large(p.tokens * p.kv_heads * p.head_dim, [&](int thread, int threads) {
        const Share mine = share(p.tokens, 1, thread, threads);
        step.append(mine.begin, mine.end);
    });
    run_if_large(step.cost(), [&](int, int) { step.attend(); });
    step.join();
}

Pages::Pages(const Array& keys, const Array& values, const Array& key_scales, const Array& value_scales)
    : keys(keys), values(values), key_scales(key_scales), value_scales(value_scales) {
    const bool scaled = keys.type == Type::int8;
    require(keys.has_floats() || scaled, "keys: expected bfloat16, float32 or int8");
    expect("keys", keys, keys.type, {kAny, kAny, kAny, kAny});
    require(keys.size() > 0, "keys: there are no pages, or they are empty");
    expect_like("values", values, keys.type, keys);
    count = keys.shape[0];
    page_size = keys.shape[1];
    kv_heads = keys.shape[2];
    head_dim = keys.shape[3];
    for (const Array* scales : {&key_scales, &value_scales}) {
        if (scaled) expect("scales", *scales, Type::f32, {count, page_size, kv_heads});
        require(scaled || !*scales, "scales: only int8 pages have them");
    }
}

Tables::Tables(const Array& page_table, const Array& lengths, const Array& query_lengths)
    : page_table(page_table), lengths(lengths), query_lengths(query_lengths) {
    expect("page_table", page_table, Type::int32, {kAny, kAny});
    sequences = page_table.shape[0];
    columns = page_table.shape[1];
    expect("lengths", lengths, Type::int64, {sequences});
    expect("query_lengths", query_lengths, Type::int64, {sequences});
}

void Machine::paged_attention(const Array& q, const Array& k, const Array& v, const Array& y, const Pages& pages,
                              const Tables& tables, long window, const Array& sinks, const Array& cosines,
                              const Array& sines) {
    expect_floats("q", q);
    expect("q", q, q.type, {kAny, kAny, pages.head_dim});
    const long tokens = q.shape[0], heads = q.shape[1];
    require(heads > 0 && heads % pages.kv_heads == 0, "q: expected a multiple of the key heads");
    expect("k", k, q.type, {tokens, pages.kv_heads, pages.head_dim});
    expect_like("v", v, q.type, k);
    expect_like("y", y, q.type, q);
    require(pages.key_scales || pages.keys.type == q.type, "keys: expected q's type or int8");
    require(window >= 0, "window: expected a positive number, or 0 for none");
    for (const Array* table : {&tables.page_table, &tables.lengths, &tables.query_lengths})
        for (const Array* written : {&y, &pages.keys, &pages.values, &pages.key_scales, &pages.value_scales})
            expect_apart("y and pages", *written, *table);
    if (sinks) {
        expect_floats("sinks", sinks);
        expect("sinks", sinks, sinks.type, {heads});
    }
    if (cosines || sines) {
        require(pages.head_dim % 2 == 0, "cosines: there are pairs to rotate only in an even head_dim");
        expect("cosines", cosines, Type::f32, {tokens, pages.head_dim / 2});
        expect("sines", sines, Type::f32, {tokens, pages.head_dim / 2});
    }
    const PagedStep step{q.data,
                         k.data,
                         v.data,
                         y.data,
                         tokens,
                         pages.keys.data,
                         pages.values.data,
                         pages.key_scales.as<float>(),
                         pages.value_scales.as<float>(),
                         tables.page_table.as<const std::int32_t>(),
                         tables.lengths.as<const std::int64_t>(),
                         tables.query_lengths.as<const std::int64_t>(),
                         pages.count,
                         pages.page_size,
                         tables.columns,
                         tables.sequences,
                         heads,
                         pages.kv_heads,
                         pages.head_dim,
                         window,
                         sinks,
                         cosines.as<const float>(),
                         sines.as<const float>()};
    const Kernels& kernels = kernels_;
    if (q.type == Type::bf16) {
        if (step.key_scales) return paged_attention_of(step, kernels.attend_int8, kernels.turn_bf16);
        return paged_attention_of(step, kernels.attend_bf16, kernels.turn_bf16);
    }
    if (step.key_scales) return paged_attention_of(step, kernels.attend_int8, kernels.turn_f32);
    paged_attention_of(step, kernels.attend_f32, kernels.turn_f32);
}

}  // namespace ossia
