// Attention over pages, the same for every instruction set, over its `Vec`: a vector of kWidth floats. Included by each
// form inside an unnamed namespace, after its Vec and exp.inl. Scores are in units of ln 2, so that the softmax is of
// powers of two; keys are processed in blocks with a running maximum (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135). There are two variants: `attend_token` has dimensions in its lanes and is faster
// if few rows share a key; `attend_block` (attend_block.inl) has rows in its lanes, a row being one head of one query,
// and reads a block of keys once for hundreds of rows. AVX-512 has a third for that, in integers (attend_words.inl).

constexpr long kBlockKeys = 64;
constexpr float kLowest =
    -std::numeric_limits<float>::max();  // below all scores, but finite, so that differences to it are not NaN

// The addresses of some positions' keys and values.
template <class Element>
struct Located {
    const Element* keys[kBlockKeys];
    const Element* values[kBlockKeys];
    float key_scales[kBlockKeys];  // of int8 only
    float value_scales[kBlockKeys];
};

template <class Element>
inline void locate(const Cache<Element>& cache, long kv_head, long begin, long end, Located<Element>& found) {
    for (long position = begin; position < end;) {
        const long page = position / cache.page_size, offset = position % cache.page_size,
                   left = cache.page_size - offset;
        const long count = left < end - position ? left : end - position;
        long slot = (static_cast<long>(cache.pages[page]) * cache.page_size + offset) * cache.kv_heads + kv_head;
        for (long i = position - begin; i < position - begin + count; ++i, slot += cache.kv_heads) {
            found.keys[i] = cache.keys + slot * cache.head_dim;
            found.values[i] = cache.values + slot * cache.head_dim;
            if constexpr (sizeof(Element) == 1) {
                found.key_scales[i] = cache.key_scales[slot];
                found.value_scales[i] = cache.value_scales[slot];
            }
        }
        position += count;
    }
}

// y = scale * x, its pairs (i, i + dim/2) rotated first unless cosines are null.
template <class Element>
void turn(const Element* x, const float* cosines, const float* sines, long dim, float scale, float* y) {
    const Vec scales = Vec::fill(scale);
    long i = 0;
    if (!cosines) {
        for (; i + Vec::kWidth <= dim; i += Vec::kWidth) (Vec::load(x + i) * scales).store(y + i);
        for (; i < dim; ++i) y[i] = widen(x[i]) * scale;
        return;
    }
    const long half = dim / 2;
    for (; i + Vec::kWidth <= half; i += Vec::kWidth) {
        const Vec a = Vec::load(x + i), b = Vec::load(x + half + i), c = Vec::load(cosines + i),
                  s = Vec::load(sines + i);
        ((a * c - b * s) * scales).store(y + i);
        ((b * c + a * s) * scales).store(y + half + i);
    }
    for (; i < half; ++i) {
        const float a = widen(x[i]), b = widen(x[half + i]), c = cosines[i], s = sines[i];
        y[i] = (a * c - b * s) * scale;
        y[half + i] = (b * c + a * s) * scale;
    }
}

// Elements [d, d + kWidth) of a key or value.
template <class Element>
inline Vec load_row(const Element* row, float scale, long d) {
    const Vec x = Vec::load(row + d);
    return sizeof(Element) == 1 ? x * Vec::fill(scale) : x;
}

template <class Element>
inline float read_row(const Element* row, float scale, long d) {
    return sizeof(Element) == 1 ? widen(row[d]) * scale : widen(row[d]);
}

// Prefetches a row.
template <class Element>
inline void prefetch_row(const Element* row, long dim) {
    const char* bytes = reinterpret_cast<const char*>(row);
    for (long i = 0; i < dim * static_cast<long>(sizeof(Element)); i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

// A block of keys for kHeads heads. A vector of scores covers kHeads heads and kKeys keys, head by head.
template <int kHeads, class Element>
struct TokenBlock {
    static constexpr int kKeys = Vec::kWidth / kHeads;
    const Located<Element>& found;
    const Located<Element>* next;  // to be prefetched, or null
    const float* q;                // (kHeads, dim)
    long dim, count, next_count;
    float weights[kHeads * kBlockKeys];  // scores at first

    // The index of head h and key j.
    static long at(int h, long j) { return j / kKeys * Vec::kWidth + h * kKeys + j % kKeys; }

    // Returns the largest score of each lane.
    Vec score() {
        const long whole = dim / Vec::kWidth * Vec::kWidth;
        Vec largest = Vec::fill(kLowest);
        for (long j = 0; j < count; j += kKeys) {
            const long valid = count - j < kKeys ? count - j : kKeys;
            long key[kKeys];
            for (int i = 0; i < kKeys; ++i) key[i] = i < valid ? j + i : j;
            if (next)
                for (long i = j; i < j + kKeys && i < next_count; ++i) prefetch_row(next->keys[i], dim);
            Vec sums[Vec::kWidth];
            for (Vec& sum : sums) sum = Vec::zero();
            for (long d = 0; d < whole; d += Vec::kWidth) {
                Vec keys[kKeys];
                for (int i = 0; i < kKeys; ++i) keys[i] = load_row(found.keys[key[i]], found.key_scales[key[i]], d);
                for (int h = 0; h < kHeads; ++h) {
                    const Vec of_head = Vec::load(q + h * dim + d);
                    for (int i = 0; i < kKeys; ++i)
                        sums[h * kKeys + i] = Vec::fma(of_head, keys[i], sums[h * kKeys + i]);
                }
            }
            float* scores = weights + j * kHeads;
            Vec::sums(sums).store(scores);
            for (long d = whole; d < dim; ++d)
                for (int lane = 0; lane < Vec::kWidth; ++lane)
                    scores[lane] += q[lane / kKeys * dim + d] *
                                    read_row(found.keys[key[lane % kKeys]], found.key_scales[key[lane % kKeys]], d);
            for (int lane = 0; valid < kKeys && lane < Vec::kWidth; ++lane)
                if (lane % kKeys >= valid) scores[lane] = -std::numeric_limits<float>::infinity();
            largest = Vec::max(Vec::load(scores), largest);
        }
        return largest;
    }

    // Replaces scores by weights and updates the running maxima and totals.
    void soften(float* maxima, float* totals, float* fades) {
        float lanes[Vec::kWidth];
        score().store(lanes);
        for (int h = 0; h < kHeads; ++h) {
            float maximum = maxima[h];
            for (int i = 0; i < kKeys; ++i) maximum = lanes[h * kKeys + i] > maximum ? lanes[h * kKeys + i] : maximum;
            fades[h] = std::exp2(maxima[h] - maximum);
            maxima[h] = maximum;
            for (int i = 0; i < kKeys; ++i) lanes[h * kKeys + i] = maximum;
        }
        const Vec maximum = Vec::load(lanes);
        Vec total = Vec::zero();
        for (long i = 0; i < count * kHeads; i += Vec::kWidth) {
            const Vec weight = exp2(Vec::load(weights + i) - maximum);
            weight.store(weights + i);
            total = total + weight;
        }
        total.store(lanes);
        for (int h = 0; h < kHeads; ++h) {
            totals[h] *= fades[h];
            for (int i = 0; i < kKeys; ++i) totals[h] += lanes[h * kKeys + i];
        }
    }

    // out[h] = out[h] * fades[h] + sum_j weights[h][j] * values[j], kColumns vectors from dimension d on.
    template <int kColumns>
    void add_values(const float* fades, long d, float* out) const {
        Vec sums[kHeads][kColumns];
        for (int h = 0; h < kHeads; ++h)
            for (int c = 0; c < kColumns; ++c)
                sums[h][c] = Vec::fill(fades[h]) * Vec::load(out + h * dim + d + c * Vec::kWidth);
        for (long j = 0; j < count; ++j) {
            if (next && d == 0 && j < next_count) prefetch_row(next->values[j], dim);
            Vec values[kColumns];
            for (int c = 0; c < kColumns; ++c)
                values[c] = load_row(found.values[j], found.value_scales[j], d + c * Vec::kWidth);
            for (int h = 0; h < kHeads; ++h) {
                const Vec weight = Vec::fill(weights[at(h, j)]);
                for (int c = 0; c < kColumns; ++c) sums[h][c] = Vec::fma(weight, values[c], sums[h][c]);
            }
        }
        for (int h = 0; h < kHeads; ++h)
            for (int c = 0; c < kColumns; ++c) sums[h][c].store(out + h * dim + d + c * Vec::kWidth);
    }

    void add(const float* fades, float* out) const {
        long d = 0;
        for (; d + 4 * Vec::kWidth <= dim; d += 4 * Vec::kWidth) add_values<4>(fades, d, out);
        for (; d + Vec::kWidth <= dim; d += Vec::kWidth) add_values<1>(fades, d, out);
        for (; d < dim; ++d)
            for (int h = 0; h < kHeads; ++h) {
                float sum = out[h * dim + d] * fades[h];
                for (long j = 0; j < count; ++j)
                    sum += weights[at(h, j)] * read_row(found.values[j], found.value_scales[j], d);
                out[h * dim + d] = sum;
            }
    }
};

template <class Element>
void attend_token(const Cache<Element>& cache, const float* q, long group, long kv_head, long first, long last,
                  float* maxima, float* totals, float* out) {
    const long dim = cache.head_dim;
    for (long g = 0; g < group; ++g) {
        maxima[g] = kLowest;
        totals[g] = 0;
    }
    std::memset(out, 0, group * dim * sizeof(float));
    const auto size = [last](long begin) { return last - begin < kBlockKeys ? last - begin : kBlockKeys; };
    Located<Element> blocks[2]{};
    locate(cache, kv_head, first, first + size(first), blocks[0]);
    int which = 0;
    for (long begin = first; begin < last; begin += kBlockKeys, which = 1 - which) {
        const Located<Element>& found = blocks[which];
        const long count = size(begin), after = begin + count, next_count = after < last ? size(after) : 0;
        locate(cache, kv_head, after, after + next_count, blocks[1 - which]);
        const auto heads = [&](auto number, long g) {
            constexpr int kHeads = decltype(number)::value;
            const Located<Element>* next = g == 0 && next_count ? &blocks[1 - which] : nullptr;
            TokenBlock<kHeads, Element> block{found, next, q + g * dim, dim, count, next_count, {}};
            float fades[kHeads];
            block.soften(maxima + g, totals + g, fades);
            block.add(fades, out + g * dim);
        };
        long g = 0;
        for (; g + 4 <= group; g += 4) heads(std::integral_constant<int, 4>(), g);
        for (; g + 2 <= group; g += 2) heads(std::integral_constant<int, 2>(), g);
        for (; g < group; ++g) heads(std::integral_constant<int, 1>(), g);
    }
}
