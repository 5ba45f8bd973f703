// The loops that are the same for every instruction set, over its `Vec`: a vector of kWidth floats. Included by each form inside
// an unnamed namespace, after its Vec.

inline std::uint64_t sum_words(const std::uint64_t* words, long count) {
    constexpr int kLanes = 64;
    std::uint64_t lanes[kLanes] = {};
    long i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] += words[i + j];
    std::uint64_t sum = 0;
    for (std::uint64_t lane : lanes) sum += lane;
    for (; i < count; ++i) sum += words[i];
    return sum;
}

template <int kRows, int kTokens, class Weight>
inline void dense_block(const Dense<Weight>& w, const float* x, long row, float* y, long y_stride) {
    Vec sums[kRows][kTokens];
    for (auto& of_row : sums)
        for (Vec& sum : of_row) sum = Vec::zero();
    const Weight* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = w.data + (row + r) * w.stride;
    const long whole = w.cols / Vec::kWidth * Vec::kWidth;
    for (long c = 0; c < whole; c += Vec::kWidth) {
        Vec xs[kTokens];
        for (int t = 0; t < kTokens; ++t) xs[t] = Vec::load(x + t * w.cols + c);
        for (int r = 0; r < kRows; ++r) {
            const Vec weights = Vec::load(rows[r] + c);
            // The processor's own prefetching stops at pages: ask for the same place of the next block of rows.
            __builtin_prefetch(rows[r] + kRows * w.stride + c, 0, 2);
            for (int t = 0; t < kTokens; ++t) sums[r][t] = Vec::fma(weights, xs[t], sums[r][t]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) {
            float sum = sums[r][t].sum();
            for (long c = whole; c < w.cols; ++c) sum += widen(rows[r][c]) * x[t * w.cols + c];
            y[t * y_stride + row + r] = sum;
        }
}

template <int kRows, class Weight>
inline void dense_rows(const Dense<Weight>& w, const float* x, long tokens, float* y, long y_stride, long row) {
    long t = 0;
    // The rows stay in the first cache while the tokens pass.
    for (; t + 4 <= tokens; t += 4) dense_block<kRows, 4>(w, x + t * w.cols, row, y + t * y_stride, y_stride);
    for (; t < tokens; ++t) dense_block<kRows, 1>(w, x + t * w.cols, row, y + t * y_stride, y_stride);
}

// Adds kColumns columns of a transposed matrix, each a run of memory, to y.
template <int kColumns, class Weight>
inline void add_columns(const Dense<Weight>& w, const float* x, long column, float* y, long begin, long end) {
    const Weight* columns[kColumns];
    Vec xs[kColumns];
    for (int i = 0; i < kColumns; ++i) {
        columns[i] = w.data + (column + i) * w.stride;
        xs[i] = Vec::fill(x[column + i]);
    }
    long row = begin;
    for (; row + Vec::kWidth <= end; row += Vec::kWidth) {
        Vec sum = Vec::load(y + row);
        for (int i = 0; i < kColumns; ++i) {
            sum = Vec::fma(Vec::load(columns[i] + row), xs[i], sum);
            __builtin_prefetch(columns[i] + kColumns * w.stride + row, 0, 2);
        }
        sum.store(y + row);
    }
    for (; row < end; ++row)
        for (int i = 0; i < kColumns; ++i) y[row] += widen(columns[i][row]) * x[column + i];
}

template <class Weight>
void transposed(const Dense<Weight>& w, const float* x, long tokens, float* y, long y_stride, long begin, long end) {
    for (long t = 0; t < tokens; ++t) std::memset(y + t * y_stride + begin, 0, (end - begin) * sizeof(float));
    constexpr int kColumns = 4;
    const long whole = w.cols / kColumns * kColumns;
    // The columns stay in the first cache while the tokens pass.
    for (long c = 0; c < whole; c += kColumns)
        for (long t = 0; t < tokens; ++t) add_columns<kColumns>(w, x + t * w.cols, c, y + t * y_stride, begin, end);
    for (long c = whole; c < w.cols; ++c)
        for (long t = 0; t < tokens; ++t) add_columns<1>(w, x + t * w.cols, c, y + t * y_stride, begin, end);
}

template <class Weight>
void dense(const Dense<Weight>& w, const float* x, long tokens, float* y, long y_stride, long begin, long end) {
    if (w.transposed) return transposed(w, x, tokens, y, y_stride, begin, end);
    long row = begin;
    for (; row + Vec::kRows <= end; row += Vec::kRows) dense_rows<Vec::kRows>(w, x, tokens, y, y_stride, row);
    for (; row < end; ++row) dense_rows<1>(w, x, tokens, y, y_stride, row);
}

// The largest magnitude, or infinity if one is not finite.
inline float largest_magnitude(const float* x, long cols) {
    float largest = 0;
    for (long c = 0; c < cols; ++c) {
        const float magnitude = std::fabs(x[c]);
        if (!(magnitude <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::infinity();
        if (magnitude > largest) largest = magnitude;
    }
    return largest;
}

// Quantizes to int16 with place(c) the position of column c; the words beyond cols are zero.
template <class Place>
void quantize_to(const float* x, long cols, std::int16_t* words, long size, float* scale, const Place& place) {
    std::memset(words, 0, size * sizeof(std::int16_t));
    const float largest = largest_magnitude(x, cols);
    if (largest == 0 || std::isinf(largest)) {
        *scale = largest == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        return;
    }
    const double inverse = 32767.0 / largest;
    for (long c = 0; c < cols; ++c) words[place(c)] = static_cast<std::int16_t>(std::lrint(x[c] * inverse));
    *scale = static_cast<float>(largest / 32767.0 / 2);  // the look-up tables hold twice the values
}

template <class Element>
void attend(const Cache<Element>& cache, const float* q, const float* sinks, long group, long kv_head, long first, long last,
            float* scratch, float* out) {
    const long dim = cache.head_dim, whole = dim / Vec::kWidth * Vec::kWidth, stride = cache.kv_heads * dim;
    float* scores = scratch;                        // (group, page_size)
    float* maxima = scratch + group * cache.page_size;  // of the scores so far
    float* totals = maxima + group;                 // of exp(score - maximum)
    for (long g = 0; g < group; ++g) {
        // A sink is a score without a value.
        maxima[g] = sinks ? sinks[g] : -std::numeric_limits<float>::infinity();
        totals[g] = sinks ? 1.0f : 0.0f;
    }
    std::memset(out, 0, group * dim * sizeof(float));
    for (long page = first / cache.page_size; page * cache.page_size < last; ++page) {
        const long base = page * cache.page_size;
        const long from = first > base ? first - base : 0;
        const long until = last - base < cache.page_size ? last - base : cache.page_size;
        const long offset = (static_cast<long>(cache.pages[page]) * cache.page_size * cache.kv_heads + kv_head) * dim;
        const Element* keys = cache.keys + offset;
        const Element* values = cache.values + offset;
        for (long g = 0; g < group; ++g) {
            const float* query = q + g * dim;
            float* score = scores + g * cache.page_size;
            float maximum = maxima[g];
            for (long j = from; j < until; ++j) {
                const Element* key = keys + j * stride;
                Vec sums = Vec::zero();
                for (long d = 0; d < whole; d += Vec::kWidth) sums = Vec::fma(Vec::load(query + d), Vec::load(key + d), sums);
                float sum = sums.sum();
                for (long d = whole; d < dim; ++d) sum += query[d] * widen(key[d]);
                score[j] = sum;
                if (sum > maximum) maximum = sum;
            }
            float* of_head = out + g * dim;
            const float fade = std::exp(maxima[g] - maximum);
            maxima[g] = maximum;
            if (fade != 1.0f) {
                totals[g] *= fade;
                for (long d = 0; d < dim; ++d) of_head[d] *= fade;
            }
            for (long j = from; j < until; ++j) {
                const float weight = std::exp(score[j] - maximum);
                totals[g] += weight;
                const Element* value = values + j * stride;
                const Vec weights = Vec::fill(weight);
                for (long d = 0; d < whole; d += Vec::kWidth)
                    Vec::fma(weights, Vec::load(value + d), Vec::load(of_head + d)).store(of_head + d);
                for (long d = whole; d < dim; ++d) of_head[d] += weight * widen(value[d]);
            }
        }
    }
    for (long g = 0; g < group; ++g)
        for (long d = 0; d < dim; ++d) out[g * dim + d] /= totals[g];
}

// Two rows at a time and up to four tokens, what the packed kernels of the vector units have in common. A panel of rows is small
// enough to stay in the second cache while all tokens pass, and four tokens stay in the first while the panel's rows do.
template <class Rows2, class Rows1>
void by_rows_and_tokens(long tokens, long begin, long end, const Rows2& two, const Rows1& one) {
    constexpr long kPanel = 32;
    for (long panel = begin; panel < end; panel += kPanel) {
        const long stop = end - panel < kPanel ? end : panel + kPanel;
        for (long t = 0; t < tokens; t += 4) {
            const long count = tokens - t < 4 ? tokens - t : 4;
            long row = panel;
            for (; row + 2 <= stop; row += 2) two(row, t, count);
            if (row < stop) one(row, t, count);
        }
    }
}
