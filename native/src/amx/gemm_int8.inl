// Products of activations in int8 on a matrix unit, with the bits of gemm/gemm_int8.inl, which defines what is rounded
// to what. Part of gemm.inl.
//
// A group of 128 columns is two tiles deep. Its sums are exact 32-bit integers, which AVX-512 scales and adds to those
// in floats while the unit multiplies the next ones.

constexpr long kHalves = kByteGroup / kTileRowBytes;  // tiles of a group
static_assert(kHalves == 2 && kByteTileBytes == kHalves * kTileBytes + kTileTokens * 4);

struct alignas(64) ByteTileMemory {
    std::int8_t panel[kHalves][kRowTiles][kTileRows][kTileRowBytes];
    float scales[2][kRowTiles][kTileRows];  // of this group and the one before
    SumTiles sums;
    std::int32_t dots[2][4][kTileRows][kTileTokens];  // the unit's last sums, and those that wait
};
static_assert(sizeof(ByteTileMemory) <= kTileMemoryBytes);

// ---- Weights: group `group` of rows [begin, end) as the panel, columns behind the end as 0, and the rows' scales as
// `slot` of two. The next group is fetched meanwhile.

inline void unpack_group(const Int8& w, long begin, long end, long group, long slot, ByteTileMemory& memory) {
    each_row(begin, end, [&](long row, long tile, long r) {
        memory.scales[slot][tile][r] = w.scales[row * w.groups + group];
        for (long half = 0; half < kHalves; ++half) {
            const long column = group * kByteGroup + half * kTileRowBytes, count = w.cols - column;
            const __mmask64 there = count >= kTileRowBytes ? ~__mmask64{0} : (__mmask64{1} << std::max(0L, count)) - 1;
            const std::int8_t* from = w.codes + row * w.cols + column;
            fetch(from + kByteGroup, 1);
            _mm512_store_si512(memory.panel[half][tile][r], _mm512_maskz_loadu_epi8(there, from));
        }
    });
}

// In each block of 32 codes the even ones come first, as in Order::even_first.
inline void unpack_group(const Packed& w, long begin, long end, long group, long slot, ByteTileMemory& memory) {
    static constexpr ByteTables<0> kTables;
    constexpr long kBytes = kByteGroup / 2;
    const __m512i shifts = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4), nibble = _mm512_set1_epi8(15);
    const auto piece = [](const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); };
    const auto both = [&](const void* first, const void* second) {
        return _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(piece(first)), 0xFF00, piece(second));
    };
    const GroupOfRows<kPanelRows> rows(w, begin, end, group);
    std::memcpy(memory.scales[slot], rows.scales, sizeof rows.scales);
    for (int half = 0, first = 0; first < rows.count; ++half, first += 2) {
        const int second = std::min(first + 1, rows.count - 1);
        const __mmask64 there = first < second ? ~__mmask64{0} : 0xFFFFFFFF;
        for (long i = 0; i < kPanelRows; ++i) {
            const std::uint8_t* codes = rows.codes[i];
            if (half == 0) fetch(codes + 2 * kBytes - 1, 1);
            const __m512i places =
                _mm512_and_si512(_mm512_srlv_epi64(both(codes + first * 16, codes + second * 16), shifts), nibble);
            const __m512i tables = both(kTables.of[0] + rows.tables[first][i], kTables.of[0] + rows.tables[second][i]);
            _mm512_store_si512(memory.panel[half][i / kTileRows][i % kTileRows],
                               _mm512_maskz_shuffle_epi8(there, tables, places));
        }
    }
}

// ---- Products.

// The unit's sums of a group, two tiles of rows and one or two of tokens, to be added to those in floats, or to start
// them.
struct Waiting {
    const std::int32_t (*dots)[kTileRows][kTileTokens];  // null: nothing waits
    const float (*of_rows)[kTileRows];
    const char* tokens;  // their tiles of the group, and behind each their scales
    long next_tokens;
    long count;  // of tokens, from the first on
    float (*sums)[kTileRows][kTileTokens];
    bool starts;

    void add() const {
        if (dots) count > kTileTokens ? add_tiles<2>() : add_tiles<1>();
    }

    template <int kTokenTiles>
    void add_tiles() const {
        const Waiting own = *this;  // because a compiler must assume that stores of vectors change members
        const auto before = static_cast<__mmask16>(own.starts ? 0 : 0xFFFF);
        __m512 of_tokens[kTokenTiles];
        for (int t = 0; t < kTokenTiles; ++t)  // 0 for those that are not there, as a subnormal one would be slow
            of_tokens[t] = _mm512_maskz_load_ps(static_cast<__mmask16>(first(own.count - t * kTileTokens)),
                                                own.tokens + t * own.next_tokens + kHalves * kTileBytes);
        for (int tile = 0; tile < 2; ++tile)
            for (long r = 0; r < kTileRows; ++r) {
                const __m512 of_row = _mm512_set1_ps(own.of_rows[tile][r]);
                for (int t = 0; t < kTokenTiles; ++t) {
                    const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(own.dots[2 * t + tile][r]));
                    float* sum = own.sums[t * kRowTiles + tile][r];
                    _mm512_store_ps(sum, _mm512_fmadd_ps(dot, _mm512_mul_ps(of_row, of_tokens[t]),
                                                         _mm512_maskz_load_ps(before, sum)));
                }
            }
    }
};

// Two tiles of rows times one or two of tokens, over `halves` halves of a group. What waits is added while the unit
// multiplies.
template <int kTokenTiles>
inline void multiply_group(const std::int8_t* rows, const char* tokens, long next_tokens, long halves,
                           std::int32_t (*dots)[kTileRows][kTileTokens], const Waiting& waiting) {
    Unit::template zero<0>();
    Unit::template zero<1>();
    if constexpr (kTokenTiles == 2) {
        Unit::template zero<2>();
        Unit::template zero<3>();
    }
    for (long half = 0; half < halves; ++half, rows += kRowTiles * kTileBytes, tokens += kTileBytes) {
        Unit::template load<6>(tokens, kTileRowBytes);
        Unit::template load<4>(rows, kTileRowBytes);
        Unit::template multiply_bytes<0, 4, 6>();
        Unit::template load<5>(rows + kTileBytes, kTileRowBytes);
        Unit::template multiply_bytes<1, 5, 6>();
        if constexpr (kTokenTiles == 2) {
            Unit::template load<7>(tokens + next_tokens, kTileRowBytes);
            Unit::template multiply_bytes<2, 4, 7>();
            Unit::template multiply_bytes<3, 5, 7>();
        }
    }
    waiting.add();
    Unit::template store<0>(dots[0], kTileRowBytes);
    Unit::template store<1>(dots[1], kTileRowBytes);
    if constexpr (kTokenTiles == 2) {
        Unit::template store<2>(dots[2], kTileRowBytes);
        Unit::template store<3>(dots[3], kTileRowBytes);
    }
}

template <class Weights>
void gemm_byte_tiles(const Weights& w, const void* data, long count, long begin, long end, void* raw, float* tile) {
    ByteTileMemory& memory = *static_cast<ByteTileMemory*>(raw);
    const long groups = byte_groups(w.cols), all_halves = (w.cols + kTileRowBytes - 1) / kTileRowBytes;
    const long token_tiles = (count + kTileTokens - 1) / kTileTokens, next_tokens = groups * kByteTileBytes;
    if (groups == 0) std::memset(memory.sums, 0, sizeof memory.sums);
    const Configured configured;
    Waiting waiting{};
    int turn = 0;
    for (long group = 0; group < groups; ++group) {
        const int slot = static_cast<int>(group % 2);
        unpack_group(w, begin, end, group, slot, memory);
        const long halves = std::min(kHalves, all_halves - group * kHalves);
        for (long t = 0; t < token_tiles; t += 2)
            for (long r = 0; r * kTileRows < end - begin; r += 2, turn ^= 1) {
                const char* tokens = static_cast<const char*>(data) + t * next_tokens + group * kByteTileBytes;
                const long left = count - t * kTileTokens;
                const auto multiply = left > kTileTokens ? multiply_group<2> : multiply_group<1>;
                multiply(memory.panel[0][r][0], tokens, next_tokens, halves, memory.dots[turn], waiting);
                waiting = {memory.dots[turn], memory.scales[slot] + r, tokens, next_tokens, left, memory.sums[t] + r,
                           group == 0};
            }
    }
    waiting.add();
    write_sums(memory.sums, count, end - begin, tile);
}

// ---- Tokens.

// Interleaves a group's records: their codes four at a time, and their scales.
void put_bytes(const void* records, void* at) {
    const auto* from = static_cast<const std::int8_t*>(records);
    char* to = static_cast<char*>(at);
    for (long half = 0; half < kHalves; ++half) {
        __m512i quads[kTileTokens];
        for (long i = 0; i < kTileTokens; ++i)
            quads[i] = _mm512_loadu_si512(from + i * kByteRecord + half * kTileRowBytes);
        turn(quads);
        for (long i = 0; i < kTileTokens; ++i) _mm512_store_si512(to + half * kTileBytes + i * kTileRowBytes, quads[i]);
    }
    for (long i = 0; i < kTileTokens; ++i)
        std::memcpy(to + kHalves * kTileBytes + i * 4, from + i * kByteRecord + kByteGroup, 4);
}

constexpr ByteTileGemm kByteTileGemm{gemm_byte_tiles<Packed>, gemm_byte_tiles<Int8>, put_bytes};
