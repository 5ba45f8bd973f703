#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "numbers.hpp"

namespace ossia {

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
