// Queries, keys and values as integers of 16 bits, for attend_words.inl, which says how they are scaled. Included after
// attend.inl.

constexpr float kLongestQuery = 65000, kLargestWord = 32766;
constexpr float kSmall = 0x1p-40f, kLarge = 0x1p40f;  // the scales that integers are for

inline long in_words(long dim) { return (dim + 31) / 32 * 32; }
inline __mmask16 valid_of(long count) { return count < 16 ? (1U << (count > 0 ? count : 0)) - 1 : 0xFFFF; }

inline __m512 load_valid(__mmask16 valid, const float* p) { return _mm512_maskz_loadu_ps(valid, p); }
inline __m512 load_valid(__mmask16 valid, const bf16* p) {
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
inline __m512 load_valid(__mmask16 valid, const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(valid, p)));
}

inline float power_of_two(int exponent) { return float_of((exponent + 127) << 23); }
inline int exponent_of(float positive) { return (bits_of(positive) >> 23) - 127; }

// Elements times `inverse` as words, padded with zeros to in_words(dim).
template <class Element>
inline void put_words(const Element* row, long dim, float inverse, std::int16_t* words) {
    const __m512 factor = _mm512_set1_ps(inverse);
    for (long d = 0; d < in_words(dim); d += 16) {
        const __m512 x = load_valid(inverse > 0 ? valid_of(dim - d) : 0, row + d);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + d),
                            _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(x, factor))));
    }
}

// The length of a vector. Returns false if it is too extreme for integers.
template <class Element>
inline bool measure(const Element* row, long dim, float* length) {
    __m512 squares = _mm512_setzero_ps();
    for (long d = 0; d < dim; d += 16) {
        const __m512 x = load_valid(valid_of(dim - d), row + d);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    *length = std::sqrt(_mm512_reduce_add_ps(squares));
    return *length == 0 || (*length >= kSmall && *length <= kLarge);
}

// A key as words and their scale. Returns false if floats are needed.
template <class Element>
inline bool put_key(const Element* row, long dim, std::int16_t* words, float* scale) {
    float length;
    const bool usual = measure(row, dim, &length);
    const int exponent = usual && length > 0 ? exponent_of(length) - 14 : 0;
    put_words(row, dim, usual && length > 0 ? power_of_two(-exponent) : 0, words);
    *scale = power_of_two(exponent);
    return usual;
}

// A query alike.
inline bool put_query(const float* row, long dim, std::int16_t* words, float* scale) {
    float length, largest = 0;
    const bool usual = measure(row, dim, &length);
    for (long d = 0; d < dim; d += 16)
        largest = std::max(largest, _mm512_reduce_max_ps(_mm512_abs_ps(load_valid(valid_of(dim - d), row + d))));
    const float inverse = usual && length > 0 ? std::min(kLongestQuery / length, kLargestWord / largest) : 0;
    put_words(row, dim, inverse, words);
    *scale = inverse > 0 ? 1 / inverse : 0;
    return usual;
}

// A value's power of two.
struct ValueScale {
    bool usual;
    float inverse, logarithm, remaining;  // the last is what divides a weight that the power joined

    template <class Element>
    static ValueScale of(const Element* row, float scale, long dim) {
        const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
        __m512i largest = _mm512_setzero_si512();
        for (long d = 0; d < dim; d += 16) {
            const __m512i x = _mm512_castps_si512(load_valid(valid_of(dim - d), row + d));
            largest = _mm512_max_epi32(_mm512_and_si512(x, magnitude), largest);
        }
        const float most = float_of(_mm512_reduce_max_epi32(largest)), scaled = most * scale;
        // Zero gets the least of logarithms, so that it takes no precision from the weights of others.
        if (scaled == 0) return {true, 0, exponent_of(kSmall) - 11.0f, 0x1p11f / kSmall};
        if (!(scaled >= kSmall && scaled <= kLarge)) return {false, 0, 0, 1};
        const int exponent = exponent_of(most) - 11;
        const float power = power_of_two(exponent);
        if (sizeof(Element) > 1)
            return {true, power_of_two(-exponent), static_cast<float>(exponent), power_of_two(-exponent)};
        return {true, power_of_two(-exponent), std::log2(power * scale), 1 / (power * scale)};
    }
};

// A block's keys and values. What is not there has zeros.
struct WordBlock {
    std::int16_t* keys;    // (kBlockKeys, dims)
    std::int32_t* values;  // (kBlockKeys / 2, dims), each a pair: of an even key and of the next
    float key_scales[kBlockKeys], logarithms[kBlockKeys], remaining[kBlockKeys];

    // Takes keys [begin, end) of the block; calls unusual(j) for each of which floats are needed.
    template <class Element, class Unusual>
    void take(const Located<Element>& found, long begin, long end, long dim, const Unusual& unusual) {
        const long dims = in_words(dim);
        const __m512i zeros = _mm512_setzero_si512();
        for (long first = begin / 2 * 2; first < end; first += 2) {
            __m512 inverses[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
            const Element* rows[2] = {};
            for (long j = first; j < first + 2; ++j) {
                if (j < begin || j >= end) continue;
                const float key_scale = sizeof(Element) == 1 ? found.key_scales[j - begin] : 1;
                const float value_scale = sizeof(Element) == 1 ? found.value_scales[j - begin] : 1;
                const bool usual = put_key(found.keys[j - begin], dim, keys + j * dims, &key_scales[j]) &&
                                   std::fabs(key_scale) <= kLarge;
                if (sizeof(Element) == 1) key_scales[j] = usual ? key_scales[j] * key_scale : 0;
                rows[j - first] = found.values[j - begin];
                const ValueScale scale = ValueScale::of(rows[j - first], value_scale, dim);
                if (!scale.inverse) rows[j - first] = nullptr;
                inverses[j - first] = _mm512_set1_ps(scale.inverse);
                logarithms[j] = scale.logarithm;
                remaining[j] = scale.remaining;
                if (!usual || !scale.usual) unusual(j);
            }
            for (long d = 0; d < dims; d += 16) {
                __m512i integers[2];
                for (int i = 0; i < 2; ++i)
                    integers[i] =
                        rows[i]
                            ? _mm512_cvtps_epi32(_mm512_mul_ps(load_valid(valid_of(dim - d), rows[i] + d), inverses[i]))
                            : zeros;
                _mm512_storeu_si512(
                    values + first / 2 * dims + d,
                    _mm512_mask_blend_epi16(0xAAAAAAAA, integers[0], _mm512_slli_epi32(integers[1], 16)));
            }
        }
    }
};

// Transposes 16 x 16 numbers of 32 bits; rows are a stride apart.
inline void transpose(const float* from, long from_stride, float* to, long to_stride) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    const auto pairs = [](__m512 x) { return _mm512_castps_pd(x); };
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; ++k) {
            a[i + 2 * k] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs(b[i + k]), pairs(b[i + 2 + k])));
            a[i + 2 * k + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs(b[i + k]), pairs(b[i + 2 + k])));
        }
    for (int k = 0; k < 4; ++k) {
        const __m512 low = _mm512_shuffle_f32x4(a[k], a[4 + k], 0x88),
                     high = _mm512_shuffle_f32x4(a[k], a[4 + k], 0xDD);
        const __m512 low2 = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0x88),
                     high2 = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0xDD);
        _mm512_storeu_ps(to + k * to_stride, _mm512_shuffle_f32x4(low, low2, 0x88));
        _mm512_storeu_ps(to + (4 + k) * to_stride, _mm512_shuffle_f32x4(high, high2, 0x88));
        _mm512_storeu_ps(to + (8 + k) * to_stride, _mm512_shuffle_f32x4(low, low2, 0xDD));
        _mm512_storeu_ps(to + (12 + k) * to_stride, _mm512_shuffle_f32x4(high, high2, 0xDD));
    }
}
