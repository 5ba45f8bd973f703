// Products of many tokens (gemm.hpp), the same for every instruction set. Included by each form inside an unnamed
// namespace, after its
//   Vec   a vector of kWidth floats,
//   Bits  as many 32-bit integers, each of which may be a pair of 16-bit words.
// Lanes are rows of the matrix: a step adds the products of two columns for kWidth rows and one token.

constexpr long kWidth = Vec::kWidth;
constexpr long kPairs = kWordBlock / 2;

#include "gemm/mxfp4_bytes.inl"

// Words are stored in the order in which a 32-bit load of 4-bit codes yields them, in pairs: columns k and k + 4 of
// every eight.
constexpr long first_of_pair(long pair) { return pair / 4 * 8 + pair % 4; }

struct WordPanel {
    static constexpr long kBlocks = 4;
    static constexpr long kTokenBytes = kWordBlock * 2;  // of a token, for a block
    std::int16_t words[kBlocks * kPairs][kPanelRows][2];
    float scales[kBlocks][kPanelRows];
};
struct FloatPanel {
    static constexpr long kCols = 64;
    static constexpr long kTokenBytes = sizeof(float);  // of a token, for a column
    float columns[kCols][kPanelRows];
};
static_assert(sizeof(WordPanel) <= kPanelBytes && sizeof(FloatPanel) <= kPanelBytes);

// Powers of two for blocks; `largest` holds their largest magnitudes as float bits. `scale` is the value of a word's
// last bit, NaN if `largest` is not finite, and `inverse` converts values to words. The smallest blocks share one
// scale, as smaller ones would be subnormal.
constexpr int kWordBits = 13;
struct Powers {
    Vec scale, inverse;
};
inline Powers powers_of(Bits largest) {
    const Bits exponent = Bits::max(largest & Bits::fill(0x7F800000), Bits::fill(kWordBits << 23));
    const Vec largest_value = largest.as_floats();
    return {(exponent - Bits::fill((kWordBits - 1) << 23)).as_floats() + (largest_value - largest_value),
            (Bits::fill(static_cast<std::int32_t>((254u + kWordBits - 1) << 23)) - exponent).as_floats()};
}

// ---- Weights: a group of kWidth rows at a time. Missing rows repeat the last.

// put(i, v) for each of kWordBlock columns from `column`, with zeros beyond a row's end.
template <class Put>
inline void columns_of(const bf16* const* pieces, const Put& put) {
    for (long piece = 0; piece < 4; ++piece) {
        Bits pairs[4];
        Bits::transpose(pieces, piece * 8, pairs);
        for (long i = 0; i < 4; ++i) {
            put(piece * 8 + 2 * i, (pairs[i] << 16).as_floats());
            put(piece * 8 + 2 * i + 1, (pairs[i] & Bits::fill(static_cast<std::int32_t>(0xFFFF0000))).as_floats());
        }
    }
}
template <class Put>
inline void columns_of(const float* const* pieces, const Put& put) {
    for (long piece = 0; piece < 8; ++piece) {
        Bits four[4];
        Bits::transpose(pieces, piece * 4, four);
        for (long i = 0; i < 4; ++i) put(piece * 4 + i, four[i].as_floats());
    }
}

template <class Weight, class Put>
inline void columns_of(const Dense<Weight>& w, long row, long end, long column, const Put& put) {
    const long count = w.cols - column < kWordBlock ? w.cols - column : kWordBlock;
    if (w.transposed) {
        for (long i = 0; i < kWordBlock; ++i) {
            if (i >= count) {
                put(i, Vec::zero());
                continue;
            }
            const Weight* from = w.data + (column + i) * w.stride + row;
            Weight whole[kWidth] = {};
            if (end - row < kWidth)
                from = static_cast<const Weight*>(std::memcpy(whole, from, (end - row) * sizeof(Weight)));
            put(i, Vec::load(from));
        }
        return;
    }
    const Weight* pieces[kWidth];
    Weight whole[kWidth][kWordBlock];
    for (long r = 0; r < kWidth; ++r) {
        pieces[r] = w.data + (row + r < end ? row + r : end - 1) * w.stride + column;
        if (count == kWordBlock) continue;
        std::memset(whole[r], 0, sizeof whole[r]);
        pieces[r] = static_cast<const Weight*>(std::memcpy(whole[r], pieces[r], count * sizeof(Weight)));
    }
    columns_of(pieces, put);
}

// The low and the high words of pairs as floats.
inline Vec low_floats(Bits pairs) {
    return (((pairs + Bits::fill(0x8000)) & Bits::fill(0xFFFF)) - Bits::fill(0x8000)).to_floats();
}
inline Vec high_floats(Bits pairs) { return low_floats(pairs >> 16); }

template <class Put>
inline void columns_of(const Packed& w, long row, long end, long column, const Put& put) {
    const long blocks = w.cols / kWordBlock;
    const std::uint8_t* codes[kWidth];
    float halves[kWidth];
    for (long r = 0; r < kWidth; ++r) {
        const long at = (row + r < end ? row + r : end - 1) * blocks + column / kWordBlock;
        codes[r] = w.blocks + at * 16;
        halves[r] = half_of_scale(w.scales[at]);
    }
    const Vec half = Vec::load(halves);
    Bits eights[4];
    Bits::transpose(codes, 0, eights);
    for (long i = 0; i < 4; ++i)
        for (int k = 0; k < 4; ++k) {
            const Bits pairs = eights[i].twice_codes(k);
            put(8 * i + k, low_floats(pairs) * half);
            put(8 * i + k + 4, high_floats(pairs) * half);
        }
}

// kWidth codes of a column of a turned matrix, and what scales them; behind the last column there are zeros.
inline const std::uint8_t* codes_or_zeros(const Turned& w, long row, long col) {
    static constexpr std::uint8_t kZeros[kWidth / 2] = {};
    return col < w.cols ? w.codes(row, col) : kZeros;
}

template <class Put>
inline void columns_of(const Turned& w, long row, long, long column, const Put& put) {
    constexpr std::int32_t kPlain = 16;  // leaves twice the values
    const auto half = [&](long col) { return Vec::fill(col < w.cols ? half_of_scale(w.scales[w.at(row, col)]) : 0); };
    for (long i = column; i < column + kWordBlock; i += 2) {
        const Bits pairs = Bits::scaled_codes(codes_or_zeros(w, row, i), codes_or_zeros(w, row, i + 1),
                                              Bits::fill(kPlain << 16 | kPlain));
        put(i - column, low_floats(pairs) * half(i));
        put(i - column + 1, high_floats(pairs) * half(i + 1));
    }
}

// One block of a panel, for the group of rows that starts at `row`, at `lane` in the panel.
inline void unpack(const Dense<bf16>& w, long row, long end, long block, WordPanel& panel, long slot, long lane) {
    Vec columns[kWordBlock];
    Bits largest = Bits::fill(0);
    columns_of(w, row, end, block * kWordBlock, [&](long i, Vec column) {
        columns[i] = column;
        largest = Bits::max(largest, Bits::of(column) & Bits::fill(0x7FFFFFFF));
    });
    const Powers powers = powers_of(largest);
    powers.scale.store(panel.scales[slot] + lane);
    for (long pair = 0; pair < kPairs; ++pair) {
        const Vec* first = columns + first_of_pair(pair);
        Bits::pair((first[0] * powers.inverse).round(), (first[4] * powers.inverse).round())
            .store(panel.words[slot * kPairs + pair][lane]);
    }
}

inline void unpack(const Packed& w, long row, long end, long block, WordPanel& panel, long slot, long lane) {
    const long blocks = w.cols / kWordBlock;
    const std::uint8_t* codes[kWidth];
    for (long r = 0; r < kWidth; ++r) {
        const long at = (row + r < end ? row + r : end - 1) * blocks + block;
        codes[r] = w.blocks + at * 16;
        panel.scales[slot][lane + r] = half_of_scale(w.scales[at]);
    }
    Bits eights[4];
    Bits::transpose(codes, 0, eights);
    for (long i = 0; i < 4; ++i)
        for (int k = 0; k < 4; ++k) eights[i].twice_codes(k).store(panel.words[slot * kPairs + 4 * i + k][lane]);
}

// The scales of the 32 elements of a row's block differ. Words are in units of the largest one's scale over 2^9, so an
// element is exact unless its scale is smaller than that.
inline void unpack(const Turned& w, long row, long, long block, WordPanel& panel, long slot, long lane) {
    const long first = block * kWordBlock, count = w.cols - first < kWordBlock ? w.cols - first : kWordBlock;
    std::uint8_t scales[kWordBlock] = {};
    std::uint8_t most = 0;
    for (long i = 0; i < count; ++i) {
        scales[i] = w.scales[w.at(row, first + i)];
        most = scales[i] > most ? scales[i] : most;
    }
    const int bits = most < 9 ? most : 9;
    const float scale = half_of_scale(most == 255 ? 255 : most - bits);
    for (long r = 0; r < kWidth; ++r) panel.scales[slot][lane + r] = scale;
    // scaled_codes multiplies by factors of 2^-4.
    const auto factor = [&](long i) -> std::int32_t {
        const int shift = 4 + bits + scales[i] - most;
        return shift < 0 ? 0 : 1 << shift;
    };
    for (long pair = 0; pair < kPairs; ++pair) {
        const long i = first_of_pair(pair);
        Bits::scaled_codes(codes_or_zeros(w, row, first + i), codes_or_zeros(w, row, first + i + 4),
                           Bits::fill(factor(i + 4) << 16 | factor(i)))
            .store(panel.words[slot * kPairs + pair][lane]);
    }
}

// The codes serve as words, and every block of a group has the group's scale.
inline void unpack(const Int8& w, long row, long end, long block, WordPanel& panel, long slot, long lane) {
    const long column = block * kWordBlock, count = w.cols - column < kWordBlock ? w.cols - column : kWordBlock;
    const std::int8_t* pieces[kWidth];
    std::int8_t whole[kWidth][kWordBlock] = {};
    for (long r = 0; r < kWidth; ++r) {
        const long from = row + r < end ? row + r : end - 1;
        pieces[r] = w.codes + from * w.cols + column;
        panel.scales[slot][lane + r] = w.scales[from * w.groups + column / w.group];
        if (count < kWordBlock) pieces[r] = static_cast<const std::int8_t*>(std::memcpy(whole[r], pieces[r], count));
    }
    const auto byte = [](Bits four, int k) {
        return (((four >> (8 * k)) + Bits::fill(128)) & Bits::fill(255)) - Bits::fill(128);
    };
    for (long piece = 0; piece < 2; ++piece) {
        Bits fours[4];
        Bits::transpose(pieces, piece * 16, fours);
        for (long pair = 0; pair < 8; ++pair) {
            const Bits* eight = fours + pair / 4 * 2;
            const int k = static_cast<int>(pair % 4);
            Bits::pair(byte(eight[0], k), byte(eight[1], k)).store(panel.words[slot * kPairs + piece * 8 + pair][lane]);
        }
    }
}

// ---- Tiles: kGroups groups of rows times kTokens tokens in registers.

template <int kGroups, int kTokens>
inline void multiply(const WordPanel& panel, long lane, long blocks, const void* const* tokens, long first_block,
                     long all_blocks, float* tile) {
    const char* x[kTokens];
    Vec sums[kTokens][kGroups];
    for (int t = 0; t < kTokens; ++t) {
        x[t] = static_cast<const char*>(tokens[t]);
        for (int g = 0; g < kGroups; ++g) sums[t][g] = Vec::load(tile + t * kPanelRows + g * kWidth);
    }
    const char* words = reinterpret_cast<const char*>(panel.words[0][lane]);
    for (long b = 0; b < blocks; ++b) {
        const long from = (first_block + b) * kWordBlock * 2;
        Bits dots[kTokens][kGroups];
        for (auto& of_token : dots)
            for (Bits& dot : of_token) dot = Bits::fill(0);
#pragma GCC unroll 16
        for (long pair = 0; pair < kPairs; ++pair) {
            Bits weights[kGroups];
            for (int g = 0; g < kGroups; ++g)
                weights[g] = Bits::load(words + pair * sizeof panel.words[0] + g * kWidth * 4);
            for (int t = 0; t < kTokens; ++t) {
                const Bits pairs = Bits::repeat(x[t] + from + pair * 4);
                for (int g = 0; g < kGroups; ++g) dots[t][g] = Bits::dot(dots[t][g], weights[g], pairs);
            }
        }
        words += kPairs * sizeof panel.words[0];
        const long scale = all_blocks * kWordBlock * 2 + (first_block + b) * 4;
        for (int t = 0; t < kTokens; ++t) {
            const Vec of_token = Bits::repeat(x[t] + scale).as_floats();
            for (int g = 0; g < kGroups; ++g)
                sums[t][g] = Vec::fma(dots[t][g].to_floats(), Vec::load(panel.scales[b] + lane + g * kWidth) * of_token,
                                      sums[t][g]);
        }
    }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroups; ++g) sums[t][g].store(tile + t * kPanelRows + g * kWidth);
}

template <int kGroups, int kTokens>
inline void multiply(const FloatPanel& panel, long lane, long count, const void* const* tokens, long first, long,
                     float* tile) {
    const float* x[kTokens];
    Vec sums[kTokens][kGroups];
    for (int t = 0; t < kTokens; ++t) {
        x[t] = static_cast<const float*>(tokens[t]) + first;
        for (int g = 0; g < kGroups; ++g) sums[t][g] = Vec::load(tile + t * kPanelRows + g * kWidth);
    }
    for (long c = 0; c < count; ++c) {
        Vec weights[kGroups];
        for (int g = 0; g < kGroups; ++g) weights[g] = Vec::load(panel.columns[c] + lane + g * kWidth);
        for (int t = 0; t < kTokens; ++t) {
            const Vec value = Vec::fill(x[t][c]);
            for (int g = 0; g < kGroups; ++g) sums[t][g] = Vec::fma(weights[g], value, sums[t][g]);
        }
    }
    for (int t = 0; t < kTokens; ++t)
        for (int g = 0; g < kGroups; ++g) sums[t][g].store(tile + t * kPanelRows + g * kWidth);
}

template <int kGroups, int kTokens, class Panel>
inline void multiply_rest(const Panel& panel, long lane, long count, const void* const* tokens, long rest, long first,
                          long all, float* tile) {
    if (rest == kTokens) return multiply<kGroups, kTokens>(panel, lane, count, tokens, first, all, tile);
    if constexpr (kTokens > 1) multiply_rest<kGroups, kTokens - 1>(panel, lane, count, tokens, rest, first, all, tile);
}

// Prefetches row `r` of the kPanelRows from `begin`, blocks [block, block + count); of a transposed matrix, as many of
// the columns. Inlined, because GCC removes a call that does nothing but prefetch.
[[gnu::always_inline]] inline void fetch(const void* from, long bytes) {
    for (long byte = 0; byte < bytes; byte += 64) __builtin_prefetch(static_cast<const char*>(from) + byte, 0, 2);
}
template <class Weight>
[[gnu::always_inline]] inline void fetch(const Dense<Weight>& w, long begin, long r, long block, long count) {
    const long column = block * kWordBlock, cols = count * kWordBlock;
    if (!w.transposed) return fetch(w.data + (begin + r) * w.stride + column, cols * sizeof(Weight));
    for (long c = r * cols / kPanelRows; c < (r + 1) * cols / kPanelRows; ++c)
        fetch(w.data + (column + c) * w.stride + begin, kPanelRows * sizeof(Weight));
}
[[gnu::always_inline]] inline void fetch(const Packed& w, long begin, long r, long block, long count) {
    const long at = (begin + r) * (w.cols / kWordBlock) + block;
    fetch(w.blocks + at * 16, count * 16);
    fetch(w.scales + at, count);
}
[[gnu::always_inline]] inline void fetch(const Turned& w, long begin, long r, long block, long count) {
    const long column = block * kWordBlock, cols = count * kWordBlock;
    for (long c = column + r * cols / kPanelRows; c < column + (r + 1) * cols / kPanelRows; ++c) {
        fetch(w.codes(begin, c), kPanelRows / 2);
        fetch(w.scales + w.at(begin, c), kPanelRows / kWordBlock);
    }
}
[[gnu::always_inline]] inline void fetch(const Int8& w, long begin, long r, long block, long count) {
    fetch(w.codes + (begin + r) * w.cols + block * kWordBlock, count * kWordBlock);
}

// A panel's `count` blocks or columns from `first` times all tokens. Meanwhile next(r), for each of kPanelRows rows,
// prefetches the panel after it: the hardware prefetcher does not see it coming, as each row is in pages of its own.
template <int kGroups, int kTokens, class Panel, class Next>
inline void multiply_all(const Panel& panel, long rows, long count, const void* const* words, long tokens, long first,
                         long all, float* tile, const Next& next) {
    long row = 0;
    for (long t = 0; t < tokens; t += kTokens) {
        const long rest = tokens - t < kTokens ? tokens - t : kTokens;
        // So is each token.
        for (long other = t + kTokens; other < tokens && other < t + 2 * kTokens; ++other)
            for (long byte = 0; byte < count * Panel::kTokenBytes; byte += 64)
                __builtin_prefetch(static_cast<const char*>(words[other]) + first * Panel::kTokenBytes + byte);
        for (const long end = (t + rest) * kPanelRows / tokens; row < end; ++row) next(row);
        for (long lane = 0; lane < rows; lane += kGroups * kWidth)
            multiply_rest<kGroups, kTokens>(panel, lane, count, words + t, rest, first, all,
                                            tile + t * kPanelRows + lane);
    }
}

template <class Weights>
void gemm_words(const Weights& w, const void* const* words, long tokens, long begin, long end, bool add, void* memory,
                float* tile) {
    WordPanel& panel = *static_cast<WordPanel*>(memory);
    const long blocks = word_blocks(w.cols);
    const auto count_at = [&](long first) {
        return blocks - first < WordPanel::kBlocks ? blocks - first : WordPanel::kBlocks;
    };
    if (!add) std::memset(tile, 0, tokens * kPanelRows * sizeof(float));
    for (long first = 0, next; first < blocks; first = next) {
        const long count = count_at(first);
        next = first + count;
        for (long b = 0; b < count; ++b)
            for (long lane = 0; begin + lane < end; lane += kWidth)
                unpack(w, begin + lane, end, first + b, panel, b, lane);
        const auto fetch_next = [&](long row) __attribute__((always_inline)) {
            if (next < blocks && begin + row < end) fetch(w, begin, row, next, count_at(next));
        };
        multiply_all<Vec::kWordGroups, Vec::kWordTokens>(panel, end - begin, count, words, tokens, first, blocks, tile,
                                                         fetch_next);
    }
}

template <class Weights>
void gemm_floats(const Weights& w, const void* const* floats, long tokens, long begin, long end, bool add, void* memory,
                 float* tile) {
    FloatPanel& panel = *static_cast<FloatPanel*>(memory);
    if (!add) std::memset(tile, 0, tokens * kPanelRows * sizeof(float));
    constexpr long kBlocks = FloatPanel::kCols / kWordBlock;
    for (long first = 0; first < w.cols; first += FloatPanel::kCols) {
        const long count = w.cols - first < FloatPanel::kCols ? w.cols - first : FloatPanel::kCols;
        for (long c = 0; c < count; c += kWordBlock)
            for (long lane = 0; begin + lane < end; lane += kWidth)
                columns_of(w, begin + lane, end, first + c,
                           [&](long i, Vec column) { column.store(panel.columns[c + i] + lane); });
        const auto fetch_next = [&](long row) __attribute__((always_inline)) {
            const long next = first + FloatPanel::kCols;
            if (next < w.cols && begin + row < end) fetch(w, begin, row, next / kWordBlock, kBlocks);
        };
        multiply_all<Vec::kFloatGroups, Vec::kFloatTokens>(panel, end - begin, count, floats, tokens, first, 0, tile,
                                                           fetch_next);
    }
}

// ---- Between products.

template <class Element>
void quantize_words(const Element* x, long count, long cols, long first, void* memory, float* rest) {
    std::int16_t* words = static_cast<std::int16_t*>(memory) + first * kWordBlock;
    float* scales =
        reinterpret_cast<float*>(static_cast<std::int16_t*>(memory) + word_blocks(cols) * kWordBlock) + first;
    constexpr long kVecs = kWordBlock / kWidth;
    for (long c = 0; c < count; c += kWordBlock, words += kWordBlock, ++scales) {
        const long size = count - c < kWordBlock ? count - c : kWordBlock;
        Element whole[kWordBlock] = {};
        const Element* from = x + c;
        if (size < kWordBlock) from = static_cast<const Element*>(std::memcpy(whole, from, size * sizeof(Element)));
        Vec values[kVecs];
        Bits largest = Bits::fill(0);
        for (long i = 0; i < kVecs; ++i) {
            values[i] = Vec::load(from + i * kWidth);
            largest = Bits::max(largest, Bits::of(values[i]) & Bits::fill(0x7FFFFFFF));
        }
        const Powers powers = powers_of(Bits::fill(largest.largest()));
        *scales = powers.scale.first();
        Bits integers[kVecs];
        for (long i = 0; i < kVecs; ++i) integers[i] = (values[i] * powers.inverse).round();
        Bits::store_pairs(integers, words);
        if (!rest) continue;
        float left[kWordBlock];
        for (long i = 0; i < kVecs; ++i) (values[i] - integers[i].to_floats() * powers.scale).store(left + i * kWidth);
        std::memcpy(rest + c, left, size * sizeof(float));
    }
}

// e^x within 2 units in the last place, for x clamped to what a float32 can hold; NaN stays NaN.
inline Vec exponential(Vec x) {
    // If one operand is NaN, the result is the second.
    x = Vec::min(Vec::fill(88.0f), Vec::max(Vec::fill(-87.0f), x));
    const Bits power = (x * Vec::fill(1.44269504f)).round();
    const Vec whole = power.to_floats();
    // ln 2 in two parts, the first of which times any power is exact; then the series in what remains, at most 0.35.
    const Vec r = Vec::fma(whole, Vec::fill(2.12194440e-4f), Vec::fma(whole, Vec::fill(-0.693359375f), x));
    Vec sum = Vec::fill(1.0f / 5040);
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        sum = Vec::fma(sum, r, Vec::fill(factor));
    return (Bits::of(sum) + (power << 23)).as_floats();
}

void gate(const Activation& activation, const float* tile, const float* bias, float* out) {
    const Vec one = Vec::fill(1.0f), limit = Vec::fill(activation.limit), lowest = Vec::fill(-activation.limit);
    const Vec slope = Vec::fill(activation.clamped ? -activation.alpha : -1.0f);
    for (long i = 0; i < kWordBlock; i += kWidth) {
        const long row = 2 * i;
        Vec gates, ups;
        Vec::separate(Vec::load(tile + row) + Vec::load(bias + row),
                      Vec::load(tile + row + kWidth) + Vec::load(bias + row + kWidth), gates, ups);
        if (activation.clamped) {
            gates = Vec::min(limit, gates);
            ups = Vec::min(limit, Vec::max(lowest, ups)) + one;
        }
        (gates / (one + exponential(slope * gates)) * ups).store(out + i);
    }
}

template <class Element>
void gate_pairs(const Activation& activation, const Element* pairs, float* out) {
    static constexpr float kNoBias[2 * kWordBlock] = {};
    float tile[2 * kWordBlock];
    for (long i = 0; i < 2 * kWordBlock; i += kWidth) Vec::load(pairs + i).store(tile + i);
    gate(activation, tile, kNoBias, out);
}

// With g and u the bounded gate and up, s = sigmoid(alpha * g) and v = u + 1 (plain SwiGLU: alpha 1, no bounds, v = u),
// the result is g * s * v. Its slope in the gate is v * s * (1 + alpha * g * (1 - s)), in up g * s; 0 beyond bounds.
template <class Element>
void gate_gradient(const Activation& activation, const Element* pairs, const Element* gradient, float* out) {
    const float alpha = activation.clamped ? activation.alpha : 1.0f;
    const float limit = activation.clamped ? activation.limit : __builtin_inff();
    const Vec one = Vec::fill(1.0f);
    float gates[kWordBlock], ups[kWordBlock], slopes[kWordBlock], shares[kWordBlock];
    for (long i = 0; i < kWordBlock; i += kWidth) {
        Vec gate, up;
        Vec::separate(Vec::load(pairs + 2 * i), Vec::load(pairs + 2 * i + kWidth), gate, up);
        gate.store(gates + i);
        up.store(ups + i);
        (one / (one + exponential(Vec::fill(-alpha) * Vec::min(Vec::fill(limit), gate)))).store(shares + i);
        Vec::load(gradient + i).store(slopes + i);
    }
    for (long i = 0; i < kWordBlock; ++i) {
        const float gate = gates[i], up = ups[i], share = shares[i], slope = slopes[i];
        const float g = gate > limit ? limit : gate, u = up > limit ? limit : up < -limit ? -limit : up;
        const float v = activation.clamped ? u + 1.0f : u;
        const float of_gate = slope * v * share * (1.0f + alpha * g * (1.0f - share)), of_up = slope * g * share;
        out[2 * i] = gate > limit ? 0.0f : of_gate;
        out[2 * i + 1] = up > limit || up < -limit ? 0.0f : of_up;
    }
}

void accumulate(const float* tile, const float* bias, float weight, float* sum) {
    for (long r = 0; r < kPanelRows; r += kWidth)
        Vec::fma(Vec::fill(weight), Vec::load(tile + r) + Vec::load(bias + r), Vec::load(sum + r)).store(sum + r);
}

#include "gemm/gemm_int8.inl"

constexpr Gemm kGemm{gemm_words<Packed>,
                     gemm_words<Turned>,
                     gemm_words<Dense<bf16>>,
                     gemm_words<Int8>,
                     gemm_floats<Dense<float>>,
                     gemm_floats<Packed>,
                     gemm_floats<Turned>,
                     gemm_floats<Dense<bf16>>,
                     quantize_words<bf16>,
                     quantize_words<float>,
                     gate,
                     gate_pairs<bf16>,
                     gate_pairs<float>,
                     gate_gradient<bf16>,
                     gate_gradient<float>,
                     accumulate,
                     kByteGemm};
