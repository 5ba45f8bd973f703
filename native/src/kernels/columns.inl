// Matrix-vector products of dense weights whose columns are contiguous, the same for every instruction set. Included by
// each form inside an unnamed namespace, after dense.inl.

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
void transposed(const Dense<Weight>& w, const Floats& x, long tokens, float* y, long y_stride, long begin, long end) {
    for (long t = 0; t < tokens; ++t) std::memset(y + t * y_stride + begin, 0, (end - begin) * sizeof(float));
    constexpr int kColumns = 4;
    const long whole = w.cols / kColumns * kColumns;
    // The columns stay in the first-level cache while the tokens pass.
    for (long c = 0; c < whole; c += kColumns)
        for (long t = 0; t < tokens; ++t)
            add_columns<kColumns>(w, x.data + t * x.stride, c, y + t * y_stride, begin, end);
    for (long c = whole; c < w.cols; ++c)
        for (long t = 0; t < tokens; ++t) add_columns<1>(w, x.data + t * x.stride, c, y + t * y_stride, begin, end);
}

// Of either kind.
template <class Weight>
void dense_floats(const Dense<Weight>& w, const Floats& x, long tokens, float* y, long y_stride, long begin, long end) {
    if (w.transposed) return transposed(w, x, tokens, y, y_stride, begin, end);
    dense(w, x, tokens, y, y_stride, begin, end);
}
