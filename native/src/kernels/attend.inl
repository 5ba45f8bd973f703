// Attention over pages, the same for every instruction set, over its `Vec`: a vector of kWidth floats. Included by each
// form inside an unnamed namespace, after its Vec and exp.inl. Scores are in units of ln 2, so that the softmax is of
// powers of two; keys are processed in blocks with a running maximum (Dao et al. 2022,
// https://arxiv.org/abs/2205.14135). There are two variants: `attend_token` has dimensions in its lanes and is faster
// if few rows share a key; `attend_block` has rows in its lanes, a row being one head of one query, and reads a block
// of keys once for hundreds of rows.

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

constexpr int kTileRows = Vec::kTileRows, kTileColumns = Vec::kTileColumns;
constexpr long kLanes = kTileColumns * Vec::kWidth;  // query rows per tile

inline long in_tiles(long rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// c (kTileRows, kLanes) = c * fades (kLanes), or 0 without, + a (kTileRows, depth) b (depth, kLanes). Row r of `a`
// begins at r * stride; if it is transposed, column k begins at k * stride.
template <bool kTransposed>
inline void tile(const float* a, long stride, const float* b, long depth, const float* fades, float* c) {
    Vec sums[kTileRows][kTileColumns];
    for (int r = 0; r < kTileRows; ++r)
        for (int i = 0; i < kTileColumns; ++i) {
            const long at = r * kLanes + i * Vec::kWidth;
            sums[r][i] = fades ? Vec::load(c + at) * Vec::load(fades + i * Vec::kWidth) : Vec::zero();
        }
    for (long k = 0; k < depth; ++k) {
        Vec columns[kTileColumns];
        for (int i = 0; i < kTileColumns; ++i) columns[i] = Vec::load(b + k * kLanes + i * Vec::kWidth);
        for (int r = 0; r < kTileRows; ++r) {
            const Vec element = Vec::fill(kTransposed ? a[k * stride + r] : a[r * stride + k]);
            for (int i = 0; i < kTileColumns; ++i) sums[r][i] = Vec::fma(element, columns[i], sums[r][i]);
        }
    }
    for (int r = 0; r < kTileRows; ++r)
        for (int i = 0; i < kTileColumns; ++i) sums[r][i].store(c + r * kLanes + i * Vec::kWidth);
}

// Replaces the scores (keys, kLanes) of keys [from, until) by weights and updates the running maxima and totals. A row
// sees key j iff oldest <= j <= newest; `all_seen` skips that test.
inline void soften(float* scores, long from, long until, bool all_seen, const float* oldest, const float* newest,
                   float* maxima, float* totals, float* fades) {
    const Vec none = Vec::fill(-std::numeric_limits<float>::infinity());
    for (long i = 0; i < kLanes; i += Vec::kWidth) {
        const Vec before = Vec::load(maxima + i);
        Vec maximum = before;
        if (all_seen) {
            for (long j = from; j < until; ++j) maximum = Vec::max(Vec::load(scores + j * kLanes + i), maximum);
        } else {
            const Vec low = Vec::load(oldest + i), high = Vec::load(newest + i);
            for (long j = from; j < until; ++j) {
                const Vec key = Vec::fill(static_cast<float>(j));
                const Vec score =
                    Vec::if_less(key, low, none, Vec::if_less(high, key, none, Vec::load(scores + j * kLanes + i)));
                score.store(scores + j * kLanes + i);
                maximum = Vec::max(score, maximum);
            }
        }
        const Vec fade = exp2(before - maximum);
        Vec total = Vec::load(totals + i) * fade;
        for (long j = from; j < until; ++j) {
            const Vec weight = exp2(Vec::load(scores + j * kLanes + i) - maximum);
            weight.store(scores + j * kLanes + i);
            total = total + weight;
        }
        maximum.store(maxima + i);
        total.store(totals + i);
        fade.store(fades + i);
    }
}

// c (dims, kLanes) = c * fades + values (until - from, dims) times their weights, in the order of `tile`, but without
// adding 0 times a value to a row that does not see its key, which would spread NaN and infinity.
inline void add_seen(const float* values, long dims, const float* weights, long from, long until, const float* oldest,
                     const float* newest, const float* fades, float* c) {
    for (long d = 0; d < dims; ++d)
        for (long i = 0; i < kLanes; i += Vec::kWidth) {
            const Vec low = Vec::load(oldest + i), high = Vec::load(newest + i);
            Vec sum = Vec::load(c + d * kLanes + i) * Vec::load(fades + i);
            for (long j = from; j < until; ++j) {
                const Vec key = Vec::fill(static_cast<float>(j));
                const Vec more = Vec::fma(Vec::fill(values[j * dims + d]), Vec::load(weights + j * kLanes + i), sum);
                sum = Vec::if_less(key, low, sum, Vec::if_less(high, key, sum, more));
            }
            sum.store(c + d * kLanes + i);
        }
}

// `count` keys or values as floats, `stride` apart. Returns whether all are finite.
template <class Element>
inline bool widen_rows(const Element* const* rows, const float* scales, long count, long dim, long stride, float* y) {
    Vec zeros = Vec::zero();
    float zero = 0;
    for (long j = 0; j < count; ++j) {
        long d = 0;
        for (; d + Vec::kWidth <= dim; d += Vec::kWidth) {
            const Vec row = load_row(rows[j], scales[j], d);
            zeros = Vec::fma(row, Vec::zero(), zeros);
            row.store(y + j * stride + d);
        }
        for (; d < dim; ++d) {
            y[j * stride + d] = read_row(rows[j], scales[j], d);
            zero += y[j * stride + d] * 0;
        }
    }
    return zeros.sum() + zero == 0;
}

long attend_scratch(long rows, long dim) {
    const long lanes = (rows + kLanes - 1) / kLanes * kLanes, dims = in_tiles(dim);
    return lanes * (2 * dims + 2) + kBlockKeys * (2 * dims + kLanes) + 3 * kLanes;
}

template <class Element>
void attend_block(const Cache<Element>& cache, const float* q, const float* sinks, long group, long queries,
                  long kv_head, long position, long window, float* scratch, float* out) {
    const long dim = cache.head_dim, dims = in_tiles(dim), rows = queries * group;
    const long tiles = (rows + kLanes - 1) / kLanes;
    const auto take = [&scratch](long count) {
        float* taken = scratch;
        scratch += count;
        return taken;
    };
    float* turned =
        take(tiles * kLanes * dims);  // tile by tile: the queries (dims, kLanes), and the sums of values alike
    float* sums = take(tiles * kLanes * dims);
    float* maxima = take(tiles * kLanes);
    float* totals = take(tiles * kLanes);
    float* keys = take(kBlockKeys * dims);
    float* values = take(kBlockKeys * dims);
    float* scores = take(kBlockKeys * kLanes);
    float* fades = take(kLanes);
    float* oldest = take(kLanes);
    float* newest = take(kLanes);

    // Lanes of the last tile beyond the rows repeat the last row.
    const auto row_of = [&](long t, long lane) { return t * kLanes + lane < rows ? t * kLanes + lane : rows - 1; };
    for (long t = 0; t < tiles; ++t)
        for (long lane = 0; lane < kLanes; ++lane) {
            const long row = row_of(t, lane);
            for (long d = 0; d < dim; ++d) turned[(t * dims + d) * kLanes + lane] = q[row * dim + d];
            const float sink = sinks ? sinks[row % group] : -std::numeric_limits<float>::infinity();
            maxima[t * kLanes + lane] = sink > kLowest ? sink : kLowest;
            totals[t * kLanes + lane] = sinks ? std::exp2(sink - maxima[t * kLanes + lane]) : 0.0f;
        }
    std::memset(sums, 0, tiles * kLanes * dims * sizeof(float));
    for (long j = 0; j < kBlockKeys; ++j)
        for (long d = dim; d < dims; ++d) values[j * dims + d] = 0;

    const auto oldest_of = [&](long query) {
        return window && position + query >= window ? position + query - window + 1 : 0;
    };
    const long end = position + queries;
    Located<Element> found{};
    // Blocks begin at multiples of their size, so that the order of a token's sum does not depend on how its queries
    // are divided.
    for (long base = oldest_of(0) / kBlockKeys * kBlockKeys; base < end; base += kBlockKeys) {
        const long begin = base < oldest_of(0) ? oldest_of(0) : base;
        const long count = (end - base < kBlockKeys ? end - base : kBlockKeys) - (begin - base);
        locate(cache, kv_head, begin, begin + count, found);
        widen_rows(found.keys, found.key_scales, count, dim, dims, keys + (begin - base) * dims);
        const bool finite =
            widen_rows(found.values, found.value_scales, count, dim, dims, values + (begin - base) * dims);
        for (long t = 0; t < tiles; ++t) {
            const long first = row_of(t, 0) / group, last = row_of(t, kLanes - 1) / group;  // queries
            const long from = oldest_of(first) > base ? oldest_of(first) - base : 0;
            const long until = position + last + 1 - base < kBlockKeys ? position + last + 1 - base : kBlockKeys;
            if (from >= until) continue;
            for (long j = from / kTileRows * kTileRows; j < until; j += kTileRows)
                tile<false>(keys + j * dims, dims, turned + t * dims * kLanes, dim, nullptr, scores + j * kLanes);
            const bool all_seen = base + until - 1 <= position + first && oldest_of(last) <= base + from;
            if (!all_seen)
                for (long lane = 0; lane < kLanes; ++lane) {
                    const long query = row_of(t, lane) / group;
                    oldest[lane] = static_cast<float>(oldest_of(query) - base);
                    newest[lane] = static_cast<float>(position + query - base);
                }
            soften(scores, from, until, all_seen, oldest, newest, maxima + t * kLanes, totals + t * kLanes, fades);
            if (!finite && !all_seen) {
                add_seen(values, dims, scores, from, until, oldest, newest, fades, sums + t * dims * kLanes);
                continue;
            }
            for (long d = 0; d < dims; d += kTileRows)
                tile<true>(values + from * dims + d, dims, scores + from * kLanes, until - from, fades,
                           sums + (t * dims + d) * kLanes);
        }
    }
    for (long row = 0; row < rows; ++row) {
        const long t = row / kLanes, lane = row % kLanes;
        const float inverse = 1 / totals[row];
        for (long d = 0; d < dim; ++d) out[row * dim + d] = sums[(t * dims + d) * kLanes + lane] * inverse;
    }
}

template <class Element>
constexpr Attend<Element> kAttend{attend_token<Element>, attend_block<Element>};
