// Matrix-vector products of dense weights, the same for every instruction set, over its `Vec`: a vector of kWidth
// floats. Included by each form inside an unnamed namespace, after its Vec.

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
            // The hardware prefetcher stops at page boundaries, so prefetch the same columns of the next block of rows.
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
    // The rows stay in the first-level cache while the tokens pass. Half as many rows leave registers for twice the
    // tokens, so a weight is widened half as often; that pays as long as eight tokens fit that cache too.
    constexpr long kFirstCache = 1L << 15;
    if constexpr (kRows > 1) {
        for (; t + 8 <= tokens && 8 * w.cols * static_cast<long>(sizeof(float)) <= kFirstCache; t += 8)
            for (long half = row; half < row + kRows; half += kRows / 2)
                dense_block<kRows / 2, 8>(w, x + t * w.cols, half, y + t * y_stride, y_stride);
    }
    for (; t + 4 <= tokens; t += 4) dense_block<kRows, 4>(w, x + t * w.cols, row, y + t * y_stride, y_stride);
    for (; t + 2 <= tokens; t += 2) dense_block<kRows, 2>(w, x + t * w.cols, row, y + t * y_stride, y_stride);
    if (t < tokens) dense_block<kRows, 1>(w, x + t * w.cols, row, y + t * y_stride, y_stride);
}

// Adds kColumns columns of a transposed matrix, each contiguous, to y.
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
    // The columns stay in the first-level cache while the tokens pass.
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
