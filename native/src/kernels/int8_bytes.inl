// Matrix-vector products of int8 weights by bytes, for AVX-512 with VNNI. Included by that form inside an unnamed
// namespace, after int8.inl and transpose.inl.
//
// A word is 256 * high + low, two signed bytes; a weight plus 128 is an unsigned byte. So a group's sum is 256 times
// that of its high bytes plus that of its low bytes, less 128 times the sum of its words, which depends on no weight:
// exact in 32-bit integers. Floats add up the groups of a row in their order, so a token gets the same bits alone and
// in a batch.
//
// One or two tokens meet the weights as they lie, sixteen rows at a time, whose lanes are then summed. More share
// weights that are transposed first: lanes are rows, and there is nothing to sum.

constexpr long kBytes = 64;    // of a vector
constexpr long kSide = 16;     // rows, and lanes of 32 bits
constexpr long kUnshared = 2;  // tokens, for which transposing the weights does not pay
constexpr long kTogether = 4;  // tokens, whose sums with 32 rows fit the registers

// The parts of a token's words: for each group its high bytes, then its low ones, padded with zeros to whole vectors;
// behind the groups, for each the sum of its words times -128.
struct Layout {
    long groups, size;  // size: of the high bytes of a group

    Layout(long cols, long group) : groups((cols + group - 1) / group), size((group + kBytes - 1) / kBytes * kBytes) {}

    long bytes() const { return groups * 2 * size; }
    const std::int8_t* group(const std::int16_t* words, long g) const {
        return reinterpret_cast<const std::int8_t*>(words) + g * 2 * size;
    }
    std::int32_t start(const std::int16_t* words, long g) const {
        std::int32_t value;
        std::memcpy(&value, group(words, groups) + g * sizeof value, sizeof value);
        return value;
    }
};

inline long words_size(long cols, long group) {
    const Layout layout(cols, group);
    return (layout.bytes() + layout.groups * static_cast<long>(sizeof(std::int32_t))) / 2;
}

template <class Element>
inline void to_words(const Element* x, long cols, long group, std::int16_t* words, float* scales, float* rest) {
    const Layout layout(cols, group);
    std::int8_t* high = reinterpret_cast<std::int8_t*>(words);
    std::int8_t* const starts = high + layout.bytes();
    for (long g = 0; g < layout.groups; ++g, high += 2 * layout.size) {
        const long begin = g * group, count = cols - begin < group ? cols - begin : group;
        alignas(64) std::int16_t own[kMostGroup];
        scales[g] = group_words(x + begin, count, own, rest ? rest + begin : nullptr);
        for (long c = count; c < layout.size; ++c) own[c] = 0;
        std::int32_t sum = 0;
        for (long c = 0; c < layout.size; ++c) {
            const std::int8_t low = static_cast<std::int8_t>(own[c]);
            high[layout.size + c] = low;
            high[c] = static_cast<std::int8_t>((own[c] - low) >> 8);
            sum += own[c];
        }
        sum *= -128;
        std::memcpy(starts + g * sizeof sum, &sum, sizeof sum);
    }
}

// The first kSide or fewer rows from `row` on, the last of them again in place of those that the matrix lacks.
struct SixteenRows {
    const std::int8_t* codes[kSide];
    const float* scales[kSide];

    SixteenRows(const Int8& w, long row, long count) {
        for (long r = 0; r < kSide; ++r) {
            const long at = row + (r < count ? r : count - 1);
            codes[r] = w.codes + at * w.cols;
            scales[r] = w.scales + at * w.groups;
        }
    }
};

// The sum of each row's lanes.
inline __m512i sums_of(const __m512i (&rows)[kSide]) {
    __m512i pairs[8], fours[4];
    for (int i = 0; i < 8; ++i) {
        const __m512i a = rows[2 * i], b = rows[2 * i + 1];
        pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    for (int i = 0; i < 4; ++i) {
        const __m512i a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    const auto joined = [](__m512i a, __m512i b) {
        return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
    };
    return joined(joined(fours[0], fours[1]), joined(fours[2], fours[3]));
}

inline __m512i exact_sum(__m512i high, __m512i low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }

inline __m512 add_group(__m512i sum, __m512 scales, float of_token, __m512 to) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scales, _mm512_set1_ps(of_token)), to);
}

// Sums a group of one token, `columns` of which the matrix has, and prefetches that of the sixteen rows `ahead` bytes
// after these.
template <int kPieces, bool kWhole>
inline __m512i one_token(const SixteenRows& rows, long ahead, const std::int8_t* high, long first, long columns) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i highs[kPieces], lows[kPieces], dots[kSide];
    __mmask64 valid[kPieces];
    for (long i = 0; i < kPieces; ++i) {
        highs[i] = _mm512_loadu_si512(high + i * kBytes);
        lows[i] = _mm512_loadu_si512(high + (kPieces + i) * kBytes);
        const long left = columns - i * kBytes;
        valid[i] = left >= kBytes ? ~0ULL : left <= 0 ? 0 : (1ULL << left) - 1;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kSide; ++r) {
        __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
#pragma GCC unroll 4
        for (int i = 0; i < kPieces; ++i) {
            const std::int8_t* from = rows.codes[r] + first + i * kBytes;
            _mm_prefetch(reinterpret_cast<const char*>(from + ahead), _MM_HINT_T1);
            const __m512i codes = kWhole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(valid[i], from);
            const __m512i weights = _mm512_xor_si512(codes, offset);
            high_sum = _mm512_dpbusd_epi32(high_sum, weights, highs[i]);
            low_sum = _mm512_dpbusd_epi32(low_sum, weights, lows[i]);
        }
        dots[r] = exact_sum(high_sum, low_sum);
    }
    return sums_of(dots);
}

// What is to be prefetched of the next rows, as the hardware prefetcher stops at page boundaries: a few lines with each
// few products, because many at once delay what is needed now.
struct Ahead {
    const std::int8_t* row;
    long stride, columns, rows, at_once;
    long line = 0;

    void some() {
        for (long i = 0; i < at_once && rows > 0; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(row + line), _MM_HINT_T1);
            line += kBytes;
            if (line < columns) continue;
            line = 0;
            row += stride;
            --rows;
        }
    }
};

// Adds a group of kTokens tokens to their sums (tokens, kBlocks). `weights` (fours, kBlocks) are four columns of
// sixteen rows each; `fours` is a multiple of 4.
template <int kBlocks, int kTokens>
inline void several_tokens(const __m512i* weights, long fours, const Layout& layout, const Words& x, long token, long g,
                           const __m512* scales, Ahead& ahead, __m512* sums) {
    // An addition takes as long as ten are begun.
    constexpr int kWays = kBlocks * kTokens > 4 ? 1 : kBlocks * kTokens > 2 ? 2 : 4;
    const std::int8_t* high[kTokens];
    __m512i high_sums[kWays][kTokens][kBlocks], low_sums[kWays][kTokens][kBlocks];
    for (int t = 0; t < kTokens; ++t) {
        const std::int16_t* const words = x.words + (token + t) * x.stride;
        high[t] = layout.group(words, g);
        for (int b = 0; b < kBlocks; ++b) {
            for (int i = 0; i < kWays; ++i) high_sums[i][t][b] = low_sums[i][t][b] = _mm512_setzero_si512();
            low_sums[0][t][b] = _mm512_set1_epi32(layout.start(words, g));
        }
    }
    const auto four = [](const std::int8_t* p) {
        std::int32_t value;
        std::memcpy(&value, p, sizeof value);
        return _mm512_set1_epi32(value);
    };
    for (long at = 0; at < fours; at += kWays)
        for (int i = 0; i < kWays; ++i) {
            ahead.some();
            for (int t = 0; t < kTokens; ++t) {
                const std::int8_t* const from = high[t] + (at + i) * 4;
                const __m512i high_bytes = four(from), low_bytes = four(from + layout.size);
                for (int b = 0; b < kBlocks; ++b) {
                    const __m512i of_rows = weights[(at + i) * kBlocks + b];
                    high_sums[i][t][b] = _mm512_dpbusd_epi32(high_sums[i][t][b], of_rows, high_bytes);
                    low_sums[i][t][b] = _mm512_dpbusd_epi32(low_sums[i][t][b], of_rows, low_bytes);
                }
            }
        }
    for (int t = 0; t < kTokens; ++t)
        for (int b = 0; b < kBlocks; ++b) {
            __m512i high_sum = high_sums[0][t][b], low_sum = low_sums[0][t][b];
            for (int i = 1; i < kWays; ++i) {
                high_sum = _mm512_add_epi32(high_sum, high_sums[i][t][b]);
                low_sum = _mm512_add_epi32(low_sum, low_sums[i][t][b]);
            }
            __m512& sum = sums[t * kBlocks + b];
            sum = add_group(exact_sum(high_sum, low_sum), scales[b], x.scales[(token + t) * x.groups + g], sum);
        }
}

template <int kBlocks, int kTokens>
inline void tokens_left(const __m512i* weights, long fours, const Layout& layout, const Words& x, long token,
                        long count, long g, const __m512* scales, Ahead& ahead, __m512* sums) {
    if (count >= kTokens)
        return several_tokens<kBlocks, kTokens>(weights, fours, layout, x, token, g, scales, ahead, sums);
    if constexpr (kTokens > 1)
        tokens_left<kBlocks, kTokens - 1>(weights, fours, layout, x, token, count, g, scales, ahead, sums);
}

// Calls group(g, first, columns, scales) for the groups of the rows; scales (kBlocks,) are those of each sixteen rows.
template <int kBlocks, class Task>
inline void each_group(const Int8& w, const SixteenRows (&rows)[kBlocks], const Task& group) {
    for (long some = 0; some < w.groups; some += kSide) {
        const long count = w.groups - some < kSide ? w.groups - some : kSide;
        __m512 of_groups[kSide][kBlocks];
        for (int b = 0; b < kBlocks; ++b) {
            __m512i scales[kSide];
            for (int r = 0; r < kSide; ++r)
                scales[r] = _mm512_maskz_loadu_epi32((1U << count) - 1, rows[b].scales[r] + some);
            transpose(scales);
            for (int i = 0; i < kSide; ++i) of_groups[i][b] = _mm512_castsi512_ps(scales[i]);
        }
        for (long i = 0; i < count; ++i) {
            const long first = (some + i) * w.group, columns = w.cols - first < w.group ? w.cols - first : w.group;
            group(some + i, first, columns, of_groups[i]);
        }
    }
}

template <int kPieces>
inline void few_of(const Int8& w, const Words& x, const Layout& layout, const SixteenRows (&rows)[1], long tokens,
                   __m512* sums) {
    each_group(w, rows, [&](long g, long first, long columns, const __m512* scales) {
        const auto times = columns == kPieces * kBytes ? one_token<kPieces, true> : one_token<kPieces, false>;
        for (long t = 0; t < tokens; ++t) {
            const std::int16_t* const words = x.words + t * x.stride;
            const __m512i dots = times(rows[0], t == 0 ? kSide * w.cols : 0, layout.group(words, g), first, columns);
            const __m512i start = _mm512_set1_epi32(layout.start(words, g));
            sums[t] = add_group(_mm512_add_epi32(dots, start), *scales, x.scales[t * x.groups + g], sums[t]);
        }
    });
}

inline void few_of(const Int8& w, const Words& x, const Layout& layout, const SixteenRows (&rows)[1], long tokens,
                   __m512* sums) {
    switch (layout.size / kBytes) {
        case 1:
            return few_of<1>(w, x, layout, rows, tokens, sums);
        case 2:
            return few_of<2>(w, x, layout, rows, tokens, sums);
        case 3:
            return few_of<3>(w, x, layout, rows, tokens, sums);
        default:
            return few_of<4>(w, x, layout, rows, tokens, sums);
    }
}

// The 64 columns from `from` on of sixteen rows, `count` of which the matrix has, plus 128 and transposed.
template <int kBlocks>
inline void unpack(const SixteenRows& rows, long from, long count, __m512i* weights) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512i tile[kSide];
    if (count >= kBytes) {
        for (int r = 0; r < kSide; ++r) tile[r] = _mm512_loadu_si512(rows.codes[r] + from);
    } else {
        for (int r = 0; r < kSide; ++r) tile[r] = _mm512_maskz_loadu_epi8((1ULL << count) - 1, rows.codes[r] + from);
    }
    for (__m512i& row : tile) row = _mm512_xor_si512(row, offset);
    transpose(tile);
    for (int i = 0; i < kSide; ++i) weights[i * kBlocks] = tile[i];
}

template <int kBlocks>
inline void several_of(const Int8& w, const Words& x, const Layout& layout, const SixteenRows (&rows)[kBlocks],
                       long tokens, __m512* sums) {
    each_group(w, rows, [&](long g, long first, long columns, const __m512* scales) {
        __m512i weights[kMostGroup / 4 * kBlocks];
        for (long c = 0; c < columns; c += kBytes)
            for (int b = 0; b < kBlocks; ++b)
                unpack<kBlocks>(rows[b], first + c, columns - c, weights + c / 4 * kBlocks + b);
        const long fours = (columns + 15) / 16 * 4, steps = fours * ((tokens + kTogether - 1) / kTogether);
        const long lines = kBlocks * kSide * ((columns + kBytes - 1) / kBytes);
        Ahead ahead{rows[0].codes[0] + kBlocks * kSide * w.cols + first, w.cols, columns, kBlocks * kSide,
                    (lines + steps - 1) / steps};
        for (long t = 0; t < tokens; t += kTogether)
            tokens_left<kBlocks, kTogether>(weights, fours, layout, x, t, tokens - t, g, scales, ahead,
                                            sums + t * kBlocks);
    });
}

inline void dense_int8(const Int8& w, const Words& x, long tokens, bool add, float* y, long y_stride, long begin,
                       long end) {
    const Layout layout(w.cols, w.group);
    for (long row = begin, next; row < end; row = next) {
        const long left = end - row;
        const int blocks = tokens > kUnshared && left > kSide ? 2 : 1;
        next = row + blocks * kSide;
        __m512 sums[kFewTokens * 2];
        for (long i = 0; i < tokens * blocks; ++i) sums[i] = _mm512_setzero_ps();
        if (blocks == 2) {
            several_of<2>(w, x, layout, {{w, row, kSide}, {w, row + kSide, left - kSide}}, tokens, sums);
        } else if (tokens > kUnshared) {
            several_of<1>(w, x, layout, {{w, row, left}}, tokens, sums);
        } else {
            few_of(w, x, layout, {{w, row, left}}, tokens, sums);
        }
        for (long t = 0; t < tokens; ++t)
            for (int b = 0; b < blocks; ++b) {
                const long count = left - b * kSide;
                const __mmask16 present = count < kSide ? (1U << count) - 1 : 0xFFFF;
                float* const to = y + t * y_stride + row + b * kSide;
                const __m512 sum = sums[t * blocks + b];
                _mm512_mask_storeu_ps(to, present, add ? _mm512_add_ps(_mm512_maskz_loadu_ps(present, to), sum) : sum);
            }
    }
}
