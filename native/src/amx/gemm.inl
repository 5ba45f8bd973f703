// Products of many tokens on a matrix unit (tiles.hpp), with AVX-512 around it. Included by each form inside an unnamed
// namespace, after its `Unit`.
//
// Rows of the weights are the unit's left operand, in their own layout; tokens are the right one, laid out once for all
// rows. The sums therefore have tokens as columns and are transposed at the end. Values in MXFP4 and int8 are exact in
// bfloat16, and sums are in float32.

#include "gemm/mxfp4_bytes.inl"

constexpr long kChunk = 4;                               // blocks of a panel
constexpr long kRowTiles = kPanelRows / kTileRows;       // of a panel
constexpr long kTokenTiles = kManyTokens / kTileTokens;  // at most

// Of a panel's rows and all tokens.
using SumTiles = float[kTokenTiles][kRowTiles][kTileRows][kTileTokens];

struct alignas(64) TileMemory {
    bf16 panel[kRowTiles][kChunk][kTileRows][kWordBlock];
    SumTiles sums;
    float part[4][kTileRows][kTileTokens];  // of the sums, before a scale
};
static_assert(sizeof(TileMemory) <= kTileMemoryBytes && kTileRowBytes == kWordBlock * 2 && kTileTokens == kTileRows);

// Tiles 0 to 3 are sums, 4 and 5 weights, 6 and 7 tokens, all of them full.
class Configured {
  public:
    Configured() {
        TileConfig config{};
        config.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            config.rows[tile] = kTileRows;
            config.row_bytes[tile] = kTileRowBytes;
        }
        Unit::configure(config);
    }
    ~Configured() { Unit::release(); }
    Configured(const Configured&) = delete;
    Configured& operator=(const Configured&) = delete;
};

inline __mmask32 first(long count) { return count >= 32 ? ~0u : (1u << count) - 1; }

// Transposes 16 rows of 16 32-bit words.
inline void turn(__m512i (&rows)[16]) {
    __m512i pairs[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; ++k) {
            rows[i + 2 * k] = _mm512_unpacklo_epi64(pairs[i + k], pairs[i + k + 2]);
            rows[i + 2 * k + 1] = _mm512_unpackhi_epi64(pairs[i + k], pairs[i + k + 2]);
        }
    // Now each quarter of row 4i + k holds four rows of a column.
    for (int k = 0; k < 4; ++k) {
        const __m512i even_above = _mm512_shuffle_i32x4(rows[k], rows[4 + k], 0x88);
        const __m512i even_below = _mm512_shuffle_i32x4(rows[8 + k], rows[12 + k], 0x88);
        const __m512i odd_above = _mm512_shuffle_i32x4(rows[k], rows[4 + k], 0xDD);
        const __m512i odd_below = _mm512_shuffle_i32x4(rows[8 + k], rows[12 + k], 0xDD);
        rows[k] = _mm512_shuffle_i32x4(even_above, even_below, 0x88);
        rows[4 + k] = _mm512_shuffle_i32x4(odd_above, odd_below, 0x88);
        rows[8 + k] = _mm512_shuffle_i32x4(even_above, even_below, 0xDD);
        rows[12 + k] = _mm512_shuffle_i32x4(odd_above, odd_below, 0xDD);
    }
}

inline __m512i floats_to_bf16(__m512 low, __m512 high) {
    const auto narrow = [](__m512 x) {
        const __m512i bits = _mm512_castps_si512(x),
                      odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
        return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
    };
    // The upper halves: the odd words.
    alignas(64) static constexpr std::int16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                          23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                          45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(narrow(low), _mm512_load_si512(kOdd), narrow(high));
}

// Tokens in the unit's layout: tiles of 16, `all` blocks of each.
struct Tokens {
    const char* data;
    long count, all;

    const char* tile(long tile, long block) const { return data + (tile * all + block) * kTileBytes; }
    // Of column `column` in a block.
    float element(long token, long block, long column) const {
        bf16 value;
        std::memcpy(
            &value,
            tile(token / kTileTokens, block) + column / 2 * kTileRowBytes + token % kTileTokens * 4 + column % 2 * 2,
            sizeof value);
        return widen(value);
    }
};

// ---- Weights. Of rows [begin, end): blocks [block, block + blocks) as a panel; how many of them at a time; factors of
// the panel's products, one for each row, or null; and what the unit misses in them. Rows that are not there repeat the
// last, columns behind the end are 0. The next blocks are fetched meanwhile.
template <class Weights>
struct Rows;

inline void fetch(const void* from, long bytes) {
    for (long i = 0; i < bytes; i += 64) _mm_prefetch(static_cast<const char*>(from) + i, _MM_HINT_T1);
}

template <class Put>
inline void each_row(long begin, long end, const Put& put) {
    for (long i = 0; i < kPanelRows; ++i) put(begin + i < end ? begin + i : end - 1, i / kTileRows, i % kTileRows);
}

template <>
struct Rows<Dense<bf16>> {
    const Dense<bf16>& w;
    const long begin, end;

    Rows(const Dense<bf16>& w, long begin, long end) : w(w), begin(begin), end(end) {}
    long chunk() const { return kChunk; }
    const float* factors(long) { return nullptr; }
    void add_missed(long, long, const Tokens&, TileMemory&) const {}

    void unpack(long block, long blocks, TileMemory& memory) const {
        const long first_column = block * kWordBlock;
        if (w.transposed) return turn_columns(first_column, blocks, memory);
        each_row(begin, end, [&](long row, long tile, long r) {
            const bf16* from = w.data + row * w.stride + first_column;
            fetch(from + blocks * kWordBlock, blocks * kTileRowBytes);
            for (long b = 0; b < blocks; ++b, from += kWordBlock) {
                const __mmask32 there = first(w.cols - first_column - b * kWordBlock);
                _mm512_store_si512(memory.panel[tile][b][r], _mm512_maskz_loadu_epi16(there, from));
            }
        });
    }

    void turn_columns(long first_column, long blocks, TileMemory& memory) const {
        for (long tile = 0; tile < kRowTiles && begin + tile * kTileRows < end; ++tile) {
            const long row = begin + tile * kTileRows;
            const auto rows = static_cast<__mmask16>(first(end - row));
            const auto column = [&](long c) {
                const __m256i words =
                    c < w.cols ? _mm256_maskz_loadu_epi16(rows, w.data + c * w.stride + row) : _mm256_setzero_si256();
                return _mm512_cvtepu16_epi32(words);
            };
            for (long b = 0; b < blocks; ++b) {
                __m512i pairs[16];
                for (long i = 0; i < 16; ++i) {
                    const long c = first_column + b * kWordBlock + 2 * i;
                    pairs[i] = _mm512_or_si512(column(c), _mm512_slli_epi32(column(c + 1), 16));
                }
                turn(pairs);
                for (long r = 0; r < kTileRows; ++r) _mm512_store_si512(memory.panel[tile][b][r], pairs[r]);
            }
        }
    }
};

template <>
struct Rows<Int8> {
    const Int8& w;
    const long begin, end;
    float of_rows[kPanelRows];

    Rows(const Int8& w, long begin, long end) : w(w), begin(begin), end(end) {}
    void add_missed(long, long, const Tokens&, TileMemory&) const {}

    // The number of blocks that fit one group wherever they begin.
    long chunk() const {
        long blocks = kChunk;
        while (w.group / kWordBlock % blocks) --blocks;
        return blocks;
    }
    const float* factors(long block) {
        for (long i = 0; i < kPanelRows; ++i) {
            const long row = begin + i < end ? begin + i : end - 1;
            of_rows[i] = w.scales[row * w.groups + block * kWordBlock / w.group];
        }
        return of_rows;
    }

    void unpack(long block, long blocks, TileMemory& memory) const {
        each_row(begin, end, [&](long row, long tile, long r) {
            const std::int8_t* from = w.codes + row * w.cols + block * kWordBlock;
            fetch(from + blocks * kWordBlock, blocks * kWordBlock);
            for (long b = 0; b < blocks; ++b, from += kWordBlock) {
                const __m256i codes = _mm256_maskz_loadu_epi8(first(w.cols - (block + b) * kWordBlock), from);
                const auto floats = [](__m128i half) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(half)); };
                _mm512_store_si512(
                    memory.panel[tile][b][r],
                    floats_to_bf16(floats(_mm256_castsi256_si128(codes)), floats(_mm256_extracti128_si256(codes, 1))));
            }
        });
    }
};

// Scales from 2 to 252 only shift the exponents of values in bfloat16; with others, some values are infinite, NaN or
// below 2^-126.
constexpr int kLeastScale = 2, kLargestScale = 252;

inline float value_of(int code, int scale) {
    constexpr float kValues[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    return kValues[code] * (scale == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, scale - 127));
}

// What a scale adds to the exponents of two values. A broadcast from memory keeps the port that limits unpacking free.
struct Exponents {
    std::uint32_t of[256];
    constexpr Exponents() : of() {
        for (int scale = 0; scale < 256; ++scale)
            of[scale] = static_cast<std::uint16_t>((scale - 127) * 128) * 0x10001u;
    }
};
constexpr Exponents kExponents;

// The values of the 16 codes at a scale, twice: a permutation of 32 words has an index with one bit more than a code.
inline __m512i any_bf16_values(int scale) {
    std::uint32_t bits[16];
    for (int code = 0; code < 16; ++code) {
        const float value = value_of(code, scale);
        std::memcpy(bits + code, &value, sizeof value);
    }
    return _mm512_broadcast_i64x4(_mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_loadu_si512(bits), 16)));
}

// The same for scales that only shift exponents.
inline __m512i plain_bf16_values(int scale) {
    alignas(32) static constexpr std::uint16_t kValues[16] = {0,      0x3F00, 0x3F80, 0x3FC0, 0x4000, 0x4040,
                                                              0x4080, 0x40C0, 0x8000, 0xBF00, 0xBF80, 0xBFC0,
                                                              0xC000, 0xC040, 0xC080, 0xC0C0};
    const __m512i values = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(kValues)));
    const __m512i exponents = _mm512_set1_epi32(static_cast<int>(kExponents.of[scale]));
    return _mm512_mask_add_epi16(values, 0xFEFEFEFE, values, exponents);  // all but the zeros
}

inline __m512i bf16_values(int scale) {
    return scale < kLeastScale || scale > kLargestScale ? any_bf16_values(scale) : plain_bf16_values(scale);
}

// Adds the products of an element of the weights to the sums if the unit treats it as 0: numbers below 2^-126.
inline void add_subnormal(float value, const Tokens& tokens, long block, long column, long row, TileMemory& memory) {
    if (value == 0 || std::fabs(value) >= std::numeric_limits<float>::min()) return;
    for (long t = 0; t < tokens.count; ++t) {
        float& sum = memory.sums[t / kTileTokens][row / kTileRows][row % kTileRows][t % kTileTokens];
        sum = std::fma(value, tokens.element(t, block, column), sum);
    }
}

template <>
struct Rows<Packed> {
    const Packed& w;
    const long begin, end, all;   // blocks of a row
    std::uint8_t least, largest;  // of the scales

    Rows(const Packed& w, long begin, long end) : w(w), begin(begin), end(end), all(w.cols / kWordBlock) {
        std::uint8_t
            low = 255,
            high = 0;  // a local copy, because a compiler must assume that stores through byte pointers change members
        for (long i = begin * all; i < end * all; ++i) {
            low = std::min(low, w.scales[i]);
            high = std::max(high, w.scales[i]);
        }
        least = low;
        largest = high;
    }
    long chunk() const { return kChunk; }
    const float* factors(long) { return nullptr; }

    void unpack(long block, long blocks, TileMemory& memory) const {
        if (least < kLeastScale || largest > kLargestScale) {
            unpack_by(block, blocks, memory, any_bf16_values);
        } else {
            unpack_by(block, blocks, memory, plain_bf16_values);
        }
    }

    template <class TableOf>
    void unpack_by(long block, long blocks, TileMemory& memory, const TableOf& table_of) const {
        alignas(64) static constexpr std::uint8_t kBytes[64] = {
            0,  0,  0,  0,  1,  1,  1,  1,  2,  2,  2,  2,  3,  3,  3,  3,  4,  4,  4,  4,  5,  5,
            5,  5,  6,  6,  6,  6,  7,  7,  7,  7,  8,  8,  8,  8,  9,  9,  9,  9,  10, 10, 10, 10,
            11, 11, 11, 11, 12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15};
        const __m512i bytes = _mm512_load_si512(kBytes), shifts = _mm512_set1_epi32(4 << 16);
        each_row(begin, end, [&](long row, long tile, long r) {
            const std::uint8_t *codes = w.blocks + (row * all + block) * 16, *scales = w.scales + row * all + block;
            fetch(codes + 2 * blocks * 16 - 1, 1);  // the cache line behind these blocks
            for (long b = 0; b < blocks; ++b, codes += 16) {
                const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
                const __m512i places = _mm512_srlv_epi16(_mm512_shuffle_epi8(four, bytes), shifts);
                _mm512_store_si512(memory.panel[tile][b][r], _mm512_permutexvar_epi16(places, table_of(scales[b])));
            }
        });
    }

    // Blocks of zeros have small scales too and need nothing.
    void add_missed(long block, long blocks, const Tokens& tokens, TileMemory& memory) const {
        if (least >= kLeastScale) return;
        for (long row = begin; row < end; ++row)
            for (long b = block; b < block + blocks; ++b) {
                const long at = row * all + b;
                for (long c = 0; c < kWordBlock && w.scales[at] < kLeastScale; ++c) {
                    const float value = value_of(w.blocks[at * 16 + c / 2] >> c % 2 * 4 & 15, w.scales[at]);
                    add_subnormal(value, tokens, b, c, row - begin, memory);
                }
            }
    }
};

// Of a turned matrix, blocks are of its columns, whose elements have scales of their own.
template <>
struct Rows<Turned> {
    const Turned& w;
    const long begin, end;
    std::uint8_t least;  // of the scales

    Rows(const Turned& w, long begin, long end) : w(w), begin(begin), end(end), least(255) {
        for (long c = 0; c < w.cols; ++c)
            for (long row = begin; row < end; row += kWordBlock) least = std::min(least, w.scales[w.at(row, c)]);
    }
    long chunk() const { return kChunk; }
    const float* factors(long) { return nullptr; }

    // The tile's 16 elements of a column in the low halves of 32-bit words, or zeros behind the last.
    __m512i column(long row, long c) const {
        if (c >= w.cols) return _mm512_setzero_si512();
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.codes(row, c)));
        const __m512i places = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)));
        const __m512i values = _mm512_permutexvar_epi16(places, bf16_values(w.scales[w.at(row, c)]));
        return _mm512_and_si512(values, _mm512_set1_epi32(0xFFFF));
    }

    void unpack(long block, long blocks, TileMemory& memory) const {
        for (long tile = 0; begin + tile * kTileRows < end; ++tile)
            for (long b = 0; b < blocks; ++b) {
                __m512i pairs[16];
                for (long i = 0; i < 16; ++i) {
                    const long row = begin + tile * kTileRows, c = (block + b) * kWordBlock + 2 * i;
                    pairs[i] = _mm512_or_si512(column(row, c), _mm512_slli_epi32(column(row, c + 1), 16));
                }
                turn(pairs);
                for (long r = 0; r < kTileRows; ++r) _mm512_store_si512(memory.panel[tile][b][r], pairs[r]);
            }
    }

    void add_missed(long block, long blocks, const Tokens& tokens, TileMemory& memory) const {
        if (least >= kLeastScale) return;
        for (long c = block * kWordBlock; c < std::min(w.cols, (block + blocks) * kWordBlock); ++c)
            for (long row = begin; row < end; ++row) {
                const std::uint8_t scale = w.scales[w.at(row, c)];
                if (scale >= kLeastScale) continue;
                const float value = value_of(*w.codes(row, c) >> row % 2 * 4 & 15, scale);
                add_subnormal(value, tokens, c / kWordBlock, c % kWordBlock, row - begin, memory);
            }
    }
};

// ---- Products.

// Two tiles of rows times one or two of tokens, `blocks` blocks long; sums (tokens, rows) are tiles one after another.
template <int kTokenTiles>
inline void multiply(const bf16* rows, const char* tokens, long next_tokens, long blocks,
                     float (*sums)[kTileRows][kTileTokens], long next_sums, bool add) {
    const auto sum = [&](long token, long row) { return sums[token * next_sums + row][0]; };
    if (add) {
        Unit::template load<0>(sum(0, 0), kTileRowBytes);
        Unit::template load<1>(sum(0, 1), kTileRowBytes);
        if constexpr (kTokenTiles == 2) {
            Unit::template load<2>(sum(1, 0), kTileRowBytes);
            Unit::template load<3>(sum(1, 1), kTileRowBytes);
        }
    } else {
        Unit::template zero<0>();
        Unit::template zero<1>();
        if constexpr (kTokenTiles == 2) {
            Unit::template zero<2>();
            Unit::template zero<3>();
        }
    }
    const char* first = reinterpret_cast<const char*>(rows);
    for (long b = 0; b < blocks; ++b, first += kTileBytes, tokens += kTileBytes) {
        Unit::template load<6>(tokens, kTileRowBytes);
        Unit::template load<4>(first, kTileRowBytes);
        Unit::template multiply<0, 4, 6>();
        Unit::template load<5>(first + kChunk * kTileBytes, kTileRowBytes);
        Unit::template multiply<1, 5, 6>();
        if constexpr (kTokenTiles == 2) {
            Unit::template load<7>(tokens + next_tokens, kTileRowBytes);
            Unit::template multiply<2, 4, 7>();
            Unit::template multiply<3, 5, 7>();
        }
    }
    Unit::template store<0>(sum(0, 0), kTileRowBytes);
    Unit::template store<1>(sum(0, 1), kTileRowBytes);
    if constexpr (kTokenTiles == 2) {
        Unit::template store<2>(sum(1, 0), kTileRowBytes);
        Unit::template store<3>(sum(1, 1), kTileRowBytes);
    }
}

// sums = factor * part with one factor per row, added to sums if `add`.
inline void scale_part(const float* factors, const float (&part)[kTileRows][kTileTokens],
                       float (&sums)[kTileRows][kTileTokens], bool add) {
    for (long r = 0; r < kTileRows; ++r) {
        const __m512 before = add ? _mm512_load_ps(sums[r]) : _mm512_setzero_ps();
        _mm512_store_ps(sums[r], _mm512_fmadd_ps(_mm512_set1_ps(factors[r]), _mm512_load_ps(part[r]), before));
    }
}

// The panel's `blocks` blocks times tokens into the sums; `factors`, one for each row, are those of these blocks, or
// null.
template <int kTokenTiles>
inline void multiply_panel(TileMemory& memory, long rows, const Tokens& tokens, long token_tile, long block,
                           long blocks, const float* factors, bool add) {
    const char* first = tokens.tile(token_tile, block);
    const long next = tokens.all * kTileBytes;
    for (long tile = 0; tile * kTileRows < rows; tile += 2) {
        const bf16* panel = memory.panel[tile][0][0];
        auto* sums = memory.sums[token_tile] + tile;
        if (!factors) {
            multiply<kTokenTiles>(panel, first, next, blocks, sums, kRowTiles, add);
            continue;
        }
        multiply<kTokenTiles>(panel, first, next, blocks, memory.part, 2, false);
        for (long i = 0; i < 2 * kTokenTiles; ++i)
            scale_part(factors + (tile + i % 2) * kTileRows, memory.part[i], sums[i / 2 * kRowTiles + i % 2], add);
    }
}

// out (count, kPanelRows): the sums of `rows` rows, turned.
inline void write_sums(const SumTiles& sums, long count, long rows, float* out) {
    for (long t = 0; t * kTileTokens < count; ++t)
        for (long r = 0; r * kTileRows < rows; ++r) {
            __m512i columns[16];
            for (long i = 0; i < kTileRows; ++i) columns[i] = _mm512_load_si512(sums[t][r][i]);
            turn(columns);
            float* to = out + t * kTileTokens * kPanelRows + r * kTileRows;
            for (long i = 0; i < std::min(kTileTokens, count - t * kTileTokens); ++i)
                _mm512_storeu_si512(to + i * kPanelRows, columns[i]);
        }
}

template <class Weights>
void gemm_tiles(const Weights& w, const void* data, long count, long begin, long end, void* raw, float* tile) {
    TileMemory& memory = *static_cast<TileMemory*>(raw);
    const long all = word_blocks(w.cols), token_tiles = (count + kTileTokens - 1) / kTileTokens;
    const Tokens tokens{static_cast<const char*>(data), count, all};
    if (all == 0) std::memset(memory.sums, 0, sizeof memory.sums);
    Rows<Weights> rows(w, begin, end);
    const long chunk = rows.chunk();
    const Configured configured;
    for (long block = 0; block < all; block += chunk) {
        const long blocks = std::min(chunk, all - block);
        rows.unpack(block, blocks, memory);
        const float* factors = rows.factors(block);
        long t = 0;
        for (; t + 2 <= token_tiles; t += 2)
            multiply_panel<2>(memory, end - begin, tokens, t, block, blocks, factors, block > 0);
        if (t < token_tiles) multiply_panel<1>(memory, end - begin, tokens, t, block, blocks, factors, block > 0);
        rows.add_missed(block, blocks, tokens, memory);
    }
    write_sums(memory.sums, count, end - begin, tile);
}

// ---- Tokens.

void put_rows(const bf16* const* rows, long cols, void* at) {
    char* to = static_cast<char*>(at);
    for (long column = 0; column < cols; column += kWordBlock, to += kTileBytes) {
        const __mmask32 there = first(cols - column);
        __m512i pairs[kTileTokens];
        for (long i = 0; i < kTileTokens; ++i)
            pairs[i] = rows[i] ? _mm512_maskz_loadu_epi16(there, rows[i] + column) : _mm512_setzero_si512();
        turn(pairs);
        for (long i = 0; i < kTileTokens; ++i) _mm512_store_si512(to + i * kTileRowBytes, pairs[i]);
    }
}
void put_f32(const float* x, long count, void* at) {
    const __mmask32 there = first(count);
    const __m512i pairs = floats_to_bf16(_mm512_maskz_loadu_ps(static_cast<__mmask16>(there), x),
                                         _mm512_maskz_loadu_ps(static_cast<__mmask16>(there >> 16), x + 16));
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_i32scatter_epi32(at, _mm512_slli_epi32(places, 6), pairs, 1);
}

#include "amx/gemm_int8.inl"

constexpr TileGemm kTileGemm{gemm_tiles<Packed>, gemm_tiles<Turned>, gemm_tiles<Dense<bf16>>,
                             gemm_tiles<Int8>,   put_rows,           put_f32,
                             &kByteTileGemm};
