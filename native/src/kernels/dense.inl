// Matrix-vector products of dense weights whose rows are contiguous, the same for every instruction set, over its
// `Vec`: sums of the products of kWidth columns. Included by each form inside an unnamed namespace, after its Vec.

// Prefetches kAhead of the rows of the next block, from `ahead` on, while it multiplies: the hardware prefetcher stops
// at page boundaries.
template <int kRows, int kTokens, int kAhead, class Weight, class Element>
inline void dense_block(const Dense<Weight>& w, const Tokens<Element>& x, long row, const Weight* ahead, float* y,
                        long y_stride) {
    Vec sums[kRows][kTokens];
    for (auto& of_row : sums)
        for (Vec& sum : of_row) sum = Vec::zero();
    const Weight* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = w.data + (row + r) * w.stride;
    const auto add = [&](long c) {
        decltype(Vec::load(x.data)) xs[kTokens];
        for (int t = 0; t < kTokens; ++t) xs[t] = Vec::load(x.data + t * x.stride + c);
        for (int r = 0; r < kRows; ++r) {
            const auto weights = Vec::load(rows[r] + c);
            for (int t = 0; t < kTokens; ++t) sums[r][t] = Vec::fma(weights, xs[t], sums[r][t]);
        }
    };
    constexpr long kLine = 64 / sizeof(Weight);
    const long lines = w.cols / kLine * kLine, whole = w.cols / Vec::kWidth * Vec::kWidth;
    for (long c = 0; c < lines; c += kLine) {
        for (int r = 0; r < kAhead; ++r) __builtin_prefetch(ahead + r * w.stride + c, 0, 2);
#pragma GCC unroll 8
        for (long v = 0; v < kLine; v += Vec::kWidth) add(c + v);
    }
    for (long c = lines; c < whole; c += Vec::kWidth) add(c);
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) {
            float sum = sums[r][t].sum();
            for (long c = whole; c < w.cols; ++c) sum += widen(rows[r][c]) * widen(x.data[t * x.stride + c]);
            y[t * y_stride + row + r] = sum;
        }
}

// A block of rows times the next kTokens tokens. The passes share the prefetches, so that memory is read throughout.
template <int kRows, int kTokens, class Weight, class Element>
inline void dense_pass(const Dense<Weight>& w, const Tokens<Element>& x, long row, long pass, long passes, float* y,
                       long y_stride) {
    const long some = (kRows + passes - 1) / passes, from = pass * some;
    const Weight* const ahead = w.data + (row + kRows + from) * w.stride;
    if (from >= kRows) {
        dense_block<kRows, kTokens, 0>(w, x, row, ahead, y, y_stride);
    } else if (some == kRows) {
        dense_block<kRows, kTokens, kRows>(w, x, row, ahead, y, y_stride);
    } else if (some == 1) {
        dense_block<kRows, kTokens, 1>(w, x, row, ahead, y, y_stride);
    } else {
        dense_block<kRows, kTokens, (kRows + 1) / 2>(w, x, row, ahead, y, y_stride);
    }
}

// The rows stay in the first-level cache while the tokens pass.
template <int kRows, class Weight, class Element>
inline void dense_rows(const Dense<Weight>& w, const Tokens<Element>& x, long tokens, float* y, long y_stride,
                       long row) {
    const long passes = tokens / 4 + tokens % 4 / 2 + tokens % 2;
    long t = 0, pass = 0;
    const auto from = [&](long token) { return Tokens<Element>{x.data + token * x.stride, x.stride}; };
    for (; t + 4 <= tokens; t += 4) dense_pass<kRows, 4>(w, from(t), row, pass++, passes, y + t * y_stride, y_stride);
    for (; t + 2 <= tokens; t += 2) dense_pass<kRows, 2>(w, from(t), row, pass++, passes, y + t * y_stride, y_stride);
    if (t < tokens) dense_pass<kRows, 1>(w, from(t), row, pass, passes, y + t * y_stride, y_stride);
}

template <class Weight, class Element>
void dense(const Dense<Weight>& w, const Tokens<Element>& x, long tokens, float* y, long y_stride, long begin,
           long end) {
    long row = begin;
    for (; row + Vec::kRows <= end; row += Vec::kRows) dense_rows<Vec::kRows>(w, x, tokens, y, y_stride, row);
    for (; row < end; ++row) dense_rows<1>(w, x, tokens, y, y_stride, row);
}
