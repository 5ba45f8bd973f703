// Attention of several queries, the same for every instruction set: rows in the lanes, in tiles like those of a matrix
// product. Included after attend.inl.

constexpr int kTileRows = Vec::kTileRows, kTileColumns = Vec::kTileColumns;
constexpr long kLanes = kTileColumns * Vec::kWidth;  // query rows per tile

inline long in_tiles(long rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// c (kTileRows, kLanes) = c * fades (kLanes), or 0 without, + a (kTileRows, depth) b (depth, kLanes), for the first
// kColumns vectors of lanes. Row r of `a` begins at r * stride; if it is transposed, column k begins at k * stride.
template <bool kTransposed, int kColumns>
inline void tile(const float* a, long stride, const float* b, long depth, const float* fades, float* c) {
    Vec sums[kTileRows][kColumns];
    for (int r = 0; r < kTileRows; ++r)
        for (int i = 0; i < kColumns; ++i) {
            const long at = r * kLanes + i * Vec::kWidth;
            sums[r][i] = fades ? Vec::load(c + at) * Vec::load(fades + i * Vec::kWidth) : Vec::zero();
        }
    for (long k = 0; k < depth; ++k) {
        Vec columns[kColumns];
        for (int i = 0; i < kColumns; ++i) columns[i] = Vec::load(b + k * kLanes + i * Vec::kWidth);
        for (int r = 0; r < kTileRows; ++r) {
            const Vec element = Vec::fill(kTransposed ? a[k * stride + r] : a[r * stride + k]);
            for (int i = 0; i < kColumns; ++i) sums[r][i] = Vec::fma(element, columns[i], sums[r][i]);
        }
    }
    for (int r = 0; r < kTileRows; ++r)
        for (int i = 0; i < kColumns; ++i) sums[r][i].store(c + r * kLanes + i * Vec::kWidth);
}

// Calls task with a constant of that number of vectors.
template <int kMost, class Task>
inline void with_columns(int vectors, const Task& task) {
    if (vectors == kMost) return task(std::integral_constant<int, kMost>());
    if constexpr (kMost > 1) with_columns<kMost - 1>(vectors, task);
}

// Replaces the scores (keys, kLanes) of keys [from, until) by weights and updates the running maxima and totals. A row
// sees key j iff oldest <= j <= newest; `all_seen` skips that test.
inline void soften(float* scores, long from, long until, bool all_seen, const float* oldest, const float* newest,
                   long lanes, float* maxima, float* totals, float* fades) {
    const Vec none = Vec::fill(-std::numeric_limits<float>::infinity());
    for (long i = 0; i < lanes; i += Vec::kWidth) {
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
            const long left = rows - t * kLanes;
            const int vectors = left < kLanes ? static_cast<int>((left + Vec::kWidth - 1) / Vec::kWidth) : kTileColumns;
            with_columns<kTileColumns>(vectors, [&](auto columns) {
                for (long j = from / kTileRows * kTileRows; j < until; j += kTileRows)
                    tile<false, columns.value>(keys + j * dims, dims, turned + t * dims * kLanes, dim, nullptr,
                                               scores + j * kLanes);
            });
            const bool all_seen = base + until - 1 <= position + first && oldest_of(last) <= base + from;
            if (!all_seen)
                for (long lane = 0; lane < kLanes; ++lane) {
                    const long query = row_of(t, lane) / group;
                    oldest[lane] = static_cast<float>(oldest_of(query) - base);
                    newest[lane] = static_cast<float>(position + query - base);
                }
            soften(scores, from, until, all_seen, oldest, newest, vectors * Vec::kWidth, maxima + t * kLanes,
                   totals + t * kLanes, fades);
            if (!finite && !all_seen) {
                add_seen(values, dims, scores, from, until, oldest, newest, fades, sums + t * dims * kLanes);
                continue;
            }
            with_columns<kTileColumns>(vectors, [&](auto columns) {
                for (long d = 0; d < dims; d += kTileRows)
                    tile<true, columns.value>(values + from * dims + d, dims, scores + from * kLanes, until - from,
                                              fades, sums + (t * dims + d) * kLanes);
            });
        }
    }
    for (long row = 0; row < rows; ++row) {
        const long t = row / kLanes, lane = row % kLanes;
        const float inverse = 1 / totals[row];
        for (long d = 0; d < dim; ++d) out[row * dim + d] = sums[(t * dims + d) * kLanes + lane] * inverse;
    }
}

template <class Element>
constexpr Attend<Element> kAttend{attend_token<Element>, attend_block<Element>, nullptr};
