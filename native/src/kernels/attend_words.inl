// Attention of many queries in integers, for AVX-512 with VNNI, after attend_block.inl, whose division of the work it
// has: rows in the lanes, a row being one head of one query, and blocks of 64 keys. vpdpwssd makes twice the products
// of a float multiplication.
//
// - A key is a multiple of a power of two and has a length in [2^14, 2^15); a query has one of at most 2^16 - 536. By
//   the Cauchy-Schwarz inequality no sum of their products leaves 31 bits.
// - A value is a multiple of a power of two, its largest element in [2^11, 2^12]. This power joins the weight: in the
//   sums of values a key has the score plus its logarithm, and the softmax's total divides it out again.
// - A block's weights are multiples of a number by which they add up to less than 2^19, so that the sums of their
//   products with values stay within 31 bits. Between blocks, sums are floats.
//
// Of a bfloat16 key or value, elements down to 2^-7 of the length and 2^-5 of the largest are exact. Rounding queries
// and weights costs some 1e-4, a tenth of what rounding keys and values to bfloat16 did. That is of the largest
// weighted value of a block, so a result in which large values cancel each other has more of it.
//
// A row whose query, or a key or value that it sees, has NaN, infinity or an extreme scale is summed in floats.

constexpr float kLargestSum = 524000;
constexpr int kWordColumns = 3;  // vectors of rows
constexpr long kWordLanes = kWordColumns * 16;
constexpr long kWordRows = 8;  // keys, or dimensions of a value, per tile: 24 registers of sums

// sum + the two products of each lane's words. Of the intrinsic, GCC 12 keeps copies of all sums of a tile and spills
// them, at less than half of the speed.
inline __m512i add_dots(__m512i sum, __m512i a, __m512i b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
}

// finish(row, i, sums) for dots of kWordRows rows of pairs, `row_stride` apart, each pair broadcast, with vector i of
// kColumns vectors of pairs.
template <int kColumns, class Finish>
inline void dots(const std::int32_t* a, long row_stride, long pair_stride, const std::int32_t* b, long pairs,
                 const Finish& finish) {
    __m512i sums[kWordRows][kColumns];
#pragma GCC unroll 8
    for (int r = 0; r < kWordRows; ++r)
#pragma GCC unroll 3
        for (int i = 0; i < kColumns; ++i) sums[r][i] = _mm512_setzero_si512();
    for (long p = 0; p < pairs; ++p) {
        __m512i columns[kColumns];
#pragma GCC unroll 3
        for (int i = 0; i < kColumns; ++i) columns[i] = _mm512_loadu_si512(b + p * kWordLanes + i * 16);
#pragma GCC unroll 8
        for (int r = 0; r < kWordRows; ++r) {
            const __m512i pair = _mm512_set1_epi32(a[r * row_stride + p * pair_stride]);
#pragma GCC unroll 3
            for (int i = 0; i < kColumns; ++i) sums[r][i] = add_dots(sums[r][i], pair, columns[i]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kWordRows; ++r)
#pragma GCC unroll 3
        for (int i = 0; i < kColumns; ++i) finish(r, i, sums[r][i]);
}

// 2^x for x <= 0, with an error of 3e-6 of it; -infinity gives 0.
inline __m512 weight_of(__m512 x) {
    const __m512 above = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
    __m512 power = _mm512_set1_ps(0.01342668f);
    constexpr float kLower[] = {0.05224247f, 0.2412802f, 0.69304484f, 1.0f};
    for (float coefficient : kLower) power = _mm512_fmadd_ps(power, above, _mm512_set1_ps(coefficient));
    return _mm512_scalef_ps(power, x);  // of the floor of x
}

// The queries of one tile: kColumns vectors of rows.
struct WordTile {
    const std::int32_t* queries;  // (dims / 2, kWordLanes) pairs
    const float* scales;          // (kWordLanes,)
    float *maxima, *totals;       // (kWordLanes,), the maxima of scores with the logarithm of their values' power
    float* sums;                  // (dims, kWordLanes)
    const std::int32_t *oldest, *newest;  // (kWordLanes,) in the block, or null if every row sees every key
};

struct WordScratch {
    float scores[kBlockKeys * kWordLanes];
    std::int32_t weights[kBlockKeys / 2 * kWordLanes];  // pairs
};

// Scores of keys [from, until), with the logarithms of their values' powers.
template <int kColumns>
inline void score_words(const WordBlock& block, const WordTile& tile, long from, long until, long dims, float* scores) {
    const std::int32_t* pairs = reinterpret_cast<const std::int32_t*>(block.keys);
    for (long j = from / kWordRows * kWordRows; j < until; j += kWordRows) {
        dots<kColumns>(pairs + j * dims / 2, dims / 2, 1, tile.queries, dims / 2, [&](int r, int i, __m512i dots) {
            const __m512 score = _mm512_mul_ps(_mm512_cvtepi32_ps(dots), _mm512_loadu_ps(tile.scales + i * 16));
            _mm512_storeu_ps(scores + (j + r) * kWordLanes + i * 16,
                             _mm512_fmadd_ps(score, _mm512_set1_ps(block.key_scales[j + r]),
                                             _mm512_set1_ps(block.logarithms[j + r])));
        });
    }
}

// Weights of the scores of keys [from, until) for one vector of rows. What was summed before is to be multiplied by
// `fade`, and what has these weights by `share`.
inline void soften_words(const WordBlock& block, const WordTile& tile, long from, long until, long lane, float* scores,
                         std::int32_t* weights, __m512* fade, __m512* share) {
    const Vec none = Vec::fill(-std::numeric_limits<float>::infinity());
    // A key beside them that shares a pair.
    if (from % 2) Vec::zero().store(scores + (from - 1) * kWordLanes);
    if (until % 2) Vec::zero().store(scores + until * kWordLanes);
    Vec highest = Vec::fill(kLowest);
    if (tile.oldest) {
        const __m512i oldest = _mm512_loadu_si512(tile.oldest + lane), newest = _mm512_loadu_si512(tile.newest + lane);
        for (long j = from; j < until; ++j) {
            const __m512i key = _mm512_set1_epi32(static_cast<int>(j));
            const __mmask16 seen = _mm512_mask_cmple_epi32_mask(_mm512_cmple_epi32_mask(oldest, key), key, newest);
            const Vec score = {_mm512_mask_loadu_ps(none.v, seen, scores + j * kWordLanes)};
            score.store(scores + j * kWordLanes);
            highest = Vec::max(score, highest);
        }
    } else {
        for (long j = from; j < until; ++j) highest = Vec::max(Vec::load(scores + j * kWordLanes), highest);
    }
    __m512 total = _mm512_setzero_ps(), sum = _mm512_setzero_ps();
    for (long j = from; j < until; ++j) {
        const __m512 weight = weight_of(_mm512_sub_ps(_mm512_loadu_ps(scores + j * kWordLanes), highest.v));
        _mm512_storeu_ps(scores + j * kWordLanes, weight);
        sum = _mm512_add_ps(weight, sum);
        total = _mm512_fmadd_ps(weight, _mm512_set1_ps(block.remaining[j]), total);
    }
    const __m512 factor = _mm512_min_ps(_mm512_set1_ps(kLargestWord), _mm512_div_ps(_mm512_set1_ps(kLargestSum), sum));
    for (long j = from / 2 * 2; j < until; j += 2) {
        __m512i integers[2];
        for (int i = 0; i < 2; ++i)
            integers[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(scores + (j + i) * kWordLanes), factor));
        _mm512_storeu_si512(weights + j / 2 * kWordLanes,
                            _mm512_mask_blend_epi16(0xAAAAAAAA, integers[0], _mm512_slli_epi32(integers[1], 16)));
    }
    const Vec before = Vec::load(tile.maxima + lane), maximum = Vec::max(highest, before);
    const __m512 faded = exp2(before - maximum).v, share_of_maximum = exp2(highest - maximum).v;
    *fade = faded;
    *share = _mm512_div_ps(share_of_maximum, factor);
    maximum.store(tile.maxima + lane);
    _mm512_storeu_ps(tile.totals + lane, _mm512_fmadd_ps(total, share_of_maximum,
                                                         _mm512_mul_ps(_mm512_loadu_ps(tile.totals + lane), faded)));
}

// Adds a block to a tile whose last row sees its keys [from, until).
template <int kColumns>
inline void add_words(const WordBlock& block, const WordTile& tile, long from, long until, long dims,
                      WordScratch& scratch) {
    score_words<kColumns>(block, tile, from, until, dims, scratch.scores);
    __m512 fades[kColumns], shares[kColumns];
    for (int i = 0; i < kColumns; ++i)
        soften_words(block, tile, from, until, i * 16, scratch.scores + i * 16, scratch.weights + i * 16, &fades[i],
                     &shares[i]);
    const long first = from / 2, pairs = (until + 1) / 2 - first;
    const std::int32_t *values = block.values + first * dims, *weights = scratch.weights + first * kWordLanes;
    for (long d = 0; d < dims; d += kWordRows)
        dots<kColumns>(values + d, 1, dims, weights, pairs, [&](int r, int i, __m512i dots) {
            float* sum = tile.sums + (d + r) * kWordLanes + i * 16;
            _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), shares[i],
                                                  _mm512_mul_ps(_mm512_loadu_ps(sum), fades[i])));
        });
}

// Attends over all keys of one query under one of its heads, in floats.
template <class Element>
inline void attend_row(const Cache<Element>& cache, const float* q, const float* sink, long kv_head, long first,
                       long last, float* out) {
    float maximum, total;
    attend_token(cache, q, 1, kv_head, first, last, &maximum, &total, out);
    const float highest = sink && *sink > maximum ? *sink : maximum, fade = std::exp2(maximum - highest);
    total = total * fade + (sink ? std::exp2(*sink - highest) : 0);
    for (long d = 0; d < cache.head_dim; ++d) out[d] = out[d] * fade / total;
}

long words_scratch(long rows, long dim) {
    const long lanes = (rows + kWordLanes - 1) / kWordLanes * kWordLanes, dims = in_words(dim);
    return lanes * (dims / 2 + dims + 4) + kBlockKeys * dims + 8 * dims + 2 * kWordLanes +
           sizeof(WordScratch) / sizeof(float);
}

template <class Element>
void attend_words(const Cache<Element>& cache, const float* q, const float* sinks, long group, long queries,
                  long kv_head, long position, long window, float* memory, float* out) {
    const long dim = cache.head_dim, dims = in_words(dim), rows = queries * group;
    const long tiles = (rows + kWordLanes - 1) / kWordLanes, lanes = tiles * kWordLanes;
    const auto take = [&memory](long floats) {
        float* taken = memory;
        memory += floats;
        return taken;
    };
    const auto integers = [](float* taken) { return reinterpret_cast<std::int32_t*>(taken); };
    std::int32_t* words = integers(take(lanes * dims / 2));  // tile by tile, and the sums alike
    float* sums = take(lanes * dims);
    float* scales = take(lanes);
    float* maxima = take(lanes);
    float* totals = take(lanes);
    std::int32_t* unusual = integers(take(lanes));  // whether a row is to be summed in floats
    std::int32_t* oldest = integers(take(kWordLanes));
    std::int32_t* newest = integers(take(kWordLanes));
    WordScratch& scratch = *reinterpret_cast<WordScratch*>(take(sizeof(WordScratch) / sizeof(float)));
    float* sixteen = take(8 * dims);  // queries as words
    WordBlock block{};
    block.keys = reinterpret_cast<std::int16_t*>(take(kBlockKeys * dims / 2));
    block.values = integers(take(kBlockKeys * dims / 2));
    std::memset(block.keys, 0, kBlockKeys * dims * sizeof(std::int16_t));

    // Lanes of the last tile beyond the rows repeat the last row.
    const auto row_of = [&](long lane) { return lane < rows ? lane : rows - 1; };
    for (long lane = 0; lane < lanes; lane += 16) {
        for (long i = 0; i < 16; ++i) {
            const long row = row_of(lane + i);
            unusual[lane + i] =
                !put_query(q + row * dim, dim, reinterpret_cast<std::int16_t*>(sixteen) + i * dims, scales + lane + i);
            const float sink = sinks ? sinks[row % group] : -std::numeric_limits<float>::infinity();
            maxima[lane + i] = sink > kLowest ? sink : kLowest;
            totals[lane + i] = sinks ? std::exp2(sink - maxima[lane + i]) : 0.0f;
        }
        std::int32_t* of_tile = words + lane / kWordLanes * kWordLanes * dims / 2 + lane % kWordLanes;
        for (long pair = 0; pair < dims / 2; pair += 16)
            transpose(sixteen + pair, dims / 2, reinterpret_cast<float*>(of_tile + pair * kWordLanes), kWordLanes);
    }
    std::memset(sums, 0, lanes * dims * sizeof(float));

    const auto oldest_of = [&](long query) {
        return window && position + query >= window ? position + query - window + 1 : 0;
    };
    const long end = position + queries;
    Located<Element> blocks[2];
    const auto find = [&](long base, Located<Element>& found) {
        const long begin = base < oldest_of(0) ? oldest_of(0) : base;
        const long until = end - base < kBlockKeys ? end : base + kBlockKeys;
        if (begin < until) locate(cache, kv_head, begin, until, found);
        return until - begin;
    };
    long base = oldest_of(0) / kBlockKeys * kBlockKeys;
    long count = find(base, blocks[0]);
    for (int which = 0; base < end; which = 1 - which) {
        const long skipped = base < oldest_of(0) ? oldest_of(0) - base : 0;
        block.take(blocks[which], skipped, skipped + count, dim, [&](long j) {
            for (long query = 0; query < queries; ++query)
                if (oldest_of(query) <= base + j && base + j <= position + query)
                    for (long g = 0; g < group; ++g) unusual[query * group + g] = true;
        });
        const Located<Element>& next = blocks[1 - which];
        const long next_count = find(base + kBlockKeys, blocks[1 - which]);
        for (long t = 0; t < tiles; ++t) {
            for (long j = t * next_count / tiles; j < (t + 1) * next_count / tiles; ++j) {
                prefetch_row(next.keys[j], dim);
                prefetch_row(next.values[j], dim);
            }
            const long lane = t * kWordLanes, here = rows - lane < kWordLanes ? rows - lane : kWordLanes;
            const long first = lane / group, last = (lane + here - 1) / group;  // queries
            const long from = oldest_of(first) > base ? oldest_of(first) - base : 0;
            const long until = position + last + 1 - base < kBlockKeys ? position + last + 1 - base : kBlockKeys;
            if (from >= until) continue;
            const bool all_seen = base + until - 1 <= position + first && oldest_of(last) <= base + from;
            for (long i = 0; !all_seen && i < kWordLanes; ++i) {
                const long query = row_of(lane + i) / group;
                oldest[i] = static_cast<std::int32_t>(std::max(oldest_of(query) - base, 0L));
                newest[i] = static_cast<std::int32_t>(std::min(position + query - base, kBlockKeys));
            }
            const WordTile tile{
                words + lane * dims / 2,     scales + lane, maxima + lane, totals + lane, sums + lane * dims,
                all_seen ? nullptr : oldest, newest};
            with_columns<kWordColumns>(static_cast<int>((here + 15) / 16), [&](auto columns) {
                add_words<columns.value>(block, tile, from, until, dims, scratch);
            });
        }
        base += kBlockKeys;
        count = next_count;
    }

    for (long lane = 0; lane < rows; lane += 16) {
        float* of_tile = sums + lane / kWordLanes * kWordLanes * dims + lane % kWordLanes;
        const __m512 totals_here = _mm512_loadu_ps(totals + lane);
        for (long d = 0; d < dims; ++d) {
            float* sum = of_tile + d * kWordLanes;
            _mm512_storeu_ps(sum, _mm512_div_ps(_mm512_loadu_ps(sum), totals_here));
        }
        for (long d = 0; d < dim; d += 16) {
            float square[256];
            transpose(of_tile + d * kWordLanes, kWordLanes, square, 16);
            for (long i = 0; i < 16 && lane + i < rows; ++i)
                _mm512_mask_storeu_ps(out + (lane + i) * dim + d, valid_of(dim - d), _mm512_loadu_ps(square + i * 16));
        }
    }
    for (long row = 0; row < rows; ++row)
        if (unusual[row])
            attend_row(cache, q + row * dim, sinks ? sinks + row % group : nullptr, kv_head, oldest_of(row / group),
                       position + row / group + 1, out + row * dim);
}
