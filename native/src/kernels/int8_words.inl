// Matrix-vector products of int8 weights by words. Included by the forms that multiply so inside an unnamed namespace,
// after their Vec and
//   Codes  kCount weights, widened to words,
//   Dots   lanes of 32-bit sums of their products with words.
// The sum of a group's products is exact: 2^15 * 2^7 of each of at most 256 columns.

constexpr long kWordsAtOnce = 32;  // a token is padded with zeros to a multiple of it

inline long words_size(long cols, long) { return (cols + kWordsAtOnce - 1) / kWordsAtOnce * kWordsAtOnce; }

template <class Element>
inline void to_words(const Element* x, long cols, long group, std::int16_t* words, float* scales, float* rest) {
    for (long begin = 0; begin < cols; begin += group) {
        const long count = cols - begin < group ? cols - begin : group;
        scales[begin / group] = group_words(x + begin, count, words + begin, rest ? rest + begin : nullptr);
    }
    for (long c = cols; c % kWordsAtOnce != 0; ++c) words[c] = 0;
}

constexpr long kPanel = 4;  // rows, which stay in the first-level cache while the tokens pass

// One of the passes of tokens over a panel. They share the prefetches of the next panel, so that memory is read
// throughout: the hardware prefetcher stops at page boundaries.
struct Pass {
    long index, count;

    bool prefetches(long row) const { return row % kPanel % count == index; }
};

// Unrolled, so that the sums are in registers.
template <int kRows, int kTokens>
inline void int8_block(const Int8& w, const Words& x, long token, Pass pass, bool add, float* y, long y_stride,
                       long row) {
    Vec sums[kRows][kTokens];
    const std::int8_t* rows[kRows];
    const std::int16_t* words[kTokens];
    bool prefetches[kRows];
    for (auto& of_row : sums)
        for (Vec& sum : of_row) sum = Vec::zero();
    for (int r = 0; r < kRows; ++r) {
        rows[r] = w.codes + (row + r) * w.cols;
        prefetches[r] = pass.prefetches(row + r);
    }
    for (int t = 0; t < kTokens; ++t) words[t] = x.words + (token + t) * x.stride;
    for (long g = 0; g < w.groups; ++g) {
        const long begin = g * w.group, end = w.cols - begin < w.group ? w.cols : begin + w.group;
        Dots dots[kRows][kTokens];
        for (auto& of_row : dots)
            for (Dots& dot : of_row) dot = Dots::zero();
        long c = begin;
        for (; c + Codes::kCount <= end; c += Codes::kCount)
            for (int r = 0; r < kRows; ++r) {
                const Codes codes = Codes::load(rows[r] + c);
                for (int t = 0; t < kTokens; ++t) dots[r][t].add(codes, words[t] + c);
            }
        if (c < end)
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                std::int8_t last[Codes::kCount] = {};
                std::memcpy(last, rows[r] + c, end - c);
                const Codes codes = Codes::load(last);
                for (int t = 0; t < kTokens; ++t) dots[r][t].add(codes, words[t] + c);
            }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
            if (prefetches[r])
                for (long line = begin; line < end; line += 64)
                    __builtin_prefetch(rows[r] + kPanel * w.cols + line, 0, 2);
            const Vec scale = Vec::fill(w.scales[(row + r) * w.groups + g]);
            for (int t = 0; t < kTokens; ++t)
                sums[r][t] =
                    Vec::fma(dots[r][t].floats(), scale * Vec::fill(x.scales[(token + t) * x.groups + g]), sums[r][t]);
        }
    }
    for (int r = 0; r < kRows; ++r)
        for (int t = 0; t < kTokens; ++t) {
            float* const to = y + (token + t) * y_stride + row + r;
            *to = add ? *to + sums[r][t].sum() : sums[r][t].sum();
        }
}

// Rows at a time: the registers hold the sums of these rows and tokens twice, as integers and as floats.
template <int kTokens>
inline void int8_tokens(const Int8& w, const Words& x, long token, Pass pass, bool add, float* y, long y_stride,
                        long begin, long end) {
    constexpr int kRows = Dots::kSums / kTokens < 4 ? Dots::kSums / kTokens : 4;
    long row = begin;
    for (; row + kRows <= end; row += kRows) int8_block<kRows, kTokens>(w, x, token, pass, add, y, y_stride, row);
    for (; row < end; ++row) int8_block<1, kTokens>(w, x, token, pass, add, y, y_stride, row);
}

inline void dense_int8(const Int8& w, const Words& x, long tokens, bool add, float* y, long y_stride, long begin,
                       long end) {
    const long most = Dots::kSums, rest = tokens % most;
    const long passes = tokens / most + rest / 4 + rest % 4 / 2 + rest % 2;
    for (long row = begin; row < end; row += kPanel) {
        const long last = end - row < kPanel ? end : row + kPanel;
        long t = 0, pass = 0;
        const auto next = [&] { return Pass{pass++, passes}; };
        for (; t + most <= tokens; t += most) int8_tokens<Dots::kSums>(w, x, t, next(), add, y, y_stride, row, last);
        for (; t + 4 <= tokens; t += 4) int8_tokens<4>(w, x, t, next(), add, y, y_stride, row, last);
        for (; t + 2 <= tokens; t += 2) int8_tokens<2>(w, x, t, next(), add, y, y_stride, row, last);
        if (t < tokens) int8_tokens<1>(w, x, t, next(), add, y, y_stride, row, last);
    }
}
