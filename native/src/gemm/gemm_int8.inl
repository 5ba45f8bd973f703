// Products of activations in int8 (gemm.hpp): bytes times bytes, whose sums over the 128 columns of a group are exact
// in 32-bit integers. Part of gemm.inl; amx/gemm_int8.inl is the same on a matrix unit.
//
// Activations are rounded as int8 weights are (ossia/ops/int8.py): codes from -127 to 127, the largest of a group is
// 127. Codes of int8 weights serve as they are. An MXFP4 group has four blocks with a power of two each; its codes are
// multiples of the largest one over 16, so an element is exact unless its block's power is less than an eighth of the
// largest. It is then rounded to nearest, ties to even: by less than the 190th part of what the group can hold.

struct BytePanel {
    static constexpr long kGroups = 2;
    static constexpr long kQuads = kByteGroup / 4;        // four columns of a row, which one instruction multiplies
    static constexpr long kTokenBytes = kByteGroup;       // of a token, for a group
    std::uint8_t quads[kGroups * kQuads][kPanelRows][4];  // plus Bits::kByteOffset
    float scales[kGroups][kPanelRows];
};
static_assert(sizeof(BytePanel) <= kPanelBytes);

// ---- Weights.

constexpr ByteTables<Bits::kByteOffset> kByteTables;

// One group of a panel, for the group of rows that starts at `row`, at `lane` in the panel.
inline void unpack(const Packed& w, long row, long end, long group, BytePanel& panel, long slot, long lane) {
    const GroupOfRows<kWidth> rows(w, row, end, group);
    std::memcpy(panel.scales[slot] + lane, rows.scales, sizeof rows.scales);
    constexpr long kQuads = kWordBlock / 4;
    for (int b = 0; b < rows.count; ++b) {
        Bits quads[kQuads];
        Bits::look_up(rows.codes, b * 16, kByteTables.of[0], rows.tables[b], quads);
        for (long i = 0; i < kQuads; ++i) quads[i].store(panel.quads[slot * BytePanel::kQuads + b * kQuads + i][lane]);
    }
    // Behind the last column activations are 0.
    for (long i = rows.count * kQuads; i < BytePanel::kQuads; ++i)
        Bits::fill(0).store(panel.quads[slot * BytePanel::kQuads + i][lane]);
}

inline void unpack(const Int8& w, long row, long end, long group, BytePanel& panel, long slot, long lane) {
    const long column = group * kByteGroup, count = w.cols - column < kByteGroup ? w.cols - column : kByteGroup;
    const std::int8_t* pieces[kWidth];
    std::int8_t whole[kWidth][kByteGroup];
    for (long r = 0; r < kWidth; ++r) {
        const long from = row + r < end ? row + r : end - 1;
        pieces[r] = w.codes + from * w.cols + column;
        panel.scales[slot][lane + r] = w.scales[from * w.groups + group];
        if (count == kByteGroup) continue;
        std::memset(whole[r], 0, sizeof whole[r]);
        pieces[r] = static_cast<const std::int8_t*>(std::memcpy(whole[r], pieces[r], count));
    }
    const Bits offset = Bits::fill(static_cast<std::int32_t>(Bits::kByteOffset * 0x01010101u));
    for (long piece = 0; piece < kByteGroup / 16; ++piece) {
        Bits fours[4];
        Bits::transpose(pieces, piece * 16, fours);
        for (long i = 0; i < 4; ++i)
            (fours[i] ^ offset).store(panel.quads[slot * BytePanel::kQuads + piece * 4 + i][lane]);
    }
}

// ---- Products.

// Float sums are in memory, because they are needed only once for each group: all registers are for integers.
template <int kGroups, int kTokens>
inline void multiply(const BytePanel& panel, long lane, long groups, const void* const* tokens, long first, long all,
                     float* tile) {
    const char* x[kTokens];
    for (int t = 0; t < kTokens; ++t) x[t] = static_cast<const char*>(tokens[t]);
    for (long group = 0; group < groups; ++group) {
        const long from = (first + group) * kByteGroup, scale = all * kByteGroup + (first + group) * 4;
        Bits dots[kTokens][kGroups];
        for (int t = 0; t < kTokens; ++t)
            for (Bits& dot : dots[t]) dot = Bits::repeat(x[t] + scale + all * 4);
        const char* quads = reinterpret_cast<const char*>(panel.quads[group * BytePanel::kQuads][lane]);
#pragma GCC unroll 32
        for (long quad = 0; quad < BytePanel::kQuads; ++quad) {
            Bits weights[kGroups];
            for (int g = 0; g < kGroups; ++g)
                weights[g] = Bits::load(quads + quad * sizeof panel.quads[0] + g * kWidth * 4);
            for (int t = 0; t < kTokens; ++t) {
                const Bits four = Bits::repeat(x[t] + from + quad * 4);
                for (int g = 0; g < kGroups; ++g) dots[t][g] = Bits::dot_bytes(dots[t][g], weights[g], four);
            }
        }
        for (int t = 0; t < kTokens; ++t) {
            const Vec of_token = Bits::repeat(x[t] + scale).as_floats();
            for (int g = 0; g < kGroups; ++g) {
                float* sum = tile + t * kPanelRows + g * kWidth;
                const Vec both = Vec::load(panel.scales[group] + lane + g * kWidth) * of_token;
                Vec::fma(dots[t][g].to_floats(), both, Vec::load(sum)).store(sum);
            }
        }
    }
}

template <class Weights>
void gemm_bytes(const Weights& w, const void* const* bytes, long tokens, long begin, long end, void* memory,
                float* tile) {
    constexpr long kBlocks = kByteGroup / kWordBlock;
    BytePanel& panel = *static_cast<BytePanel*>(memory);
    const long groups = byte_groups(w.cols);
    const auto count_at = [&](long first) {
        return groups - first < BytePanel::kGroups ? groups - first : BytePanel::kGroups;
    };
    std::memset(tile, 0, tokens * kPanelRows * sizeof(float));
    for (long first = 0, next; first < groups; first = next) {
        const long count = count_at(first);
        next = first + count;
        for (long g = 0; g < count; ++g)
            for (long lane = 0; begin + lane < end; lane += kWidth)
                unpack(w, begin + lane, end, first + g, panel, g, lane);
        const auto fetch_next = [&](long row) __attribute__((always_inline)) {
            if (next < groups && begin + row < end) fetch(w, begin, row, next * kBlocks, count_at(next) * kBlocks);
        };
        multiply_all<Vec::kByteGroups, Vec::kByteTokens>(panel, end - begin, count, bytes, tokens, first, groups, tile,
                                                         fetch_next);
    }
}

// ---- Activations.

template <class Element>
void quantize_bytes(const Element* x, long count, long cols, long first, Order order, void* memory) {
    const long all = byte_groups(cols);
    std::int8_t* codes = static_cast<std::int8_t*>(memory) + first * kByteGroup;
    float* scales = reinterpret_cast<float*>(static_cast<std::int8_t*>(memory) + all * kByteGroup) + first;
    constexpr long kVecs = kByteGroup / kWidth, kVecsOfBlock = kWordBlock / kWidth;
    for (long c = 0; c < count; c += kByteGroup, codes += kByteGroup, ++scales) {
        const long size = count - c < kByteGroup ? count - c : kByteGroup;
        Element whole[kByteGroup];
        const Element* from = x + c;
        if (size < kByteGroup) {
            std::memset(whole, 0, sizeof whole);
            from = static_cast<const Element*>(std::memcpy(whole, from, size * sizeof(Element)));
        }
        Vec values[kVecs];
        Bits magnitudes = Bits::fill(0);
        for (long i = 0; i < kVecs; ++i) {
            values[i] = Vec::load(from + i * kWidth);
            magnitudes = Bits::max(magnitudes, Bits::of(values[i]) & Bits::fill(0x7FFFFFFF));
        }
        const float largest = float_of(magnitudes.largest());
        std::int32_t start = 0;
        if (largest - largest != 0) {  // infinite or NaN
            *scales = __builtin_nanf("");
            std::memset(codes, 0, kByteGroup);
            std::memcpy(scales + all, &start, sizeof start);
            continue;
        }
        *scales = largest / 127.0f;
        const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
        const Vec factor = Vec::fill(inverse < __FLT_MAX__ ? inverse : __FLT_MAX__);
        Bits sum = Bits::fill(0);
        for (long b = 0; b < kByteGroup / kWordBlock; ++b) {
            Bits integers[kVecsOfBlock];
            for (long i = 0; i < kVecsOfBlock; ++i) {
                integers[i] = (values[b * kVecsOfBlock + i] * factor).round();
                sum = sum + integers[i];
            }
            Bits::store_bytes(integers, order, codes + b * kWordBlock);
        }
        std::int32_t lanes[kWidth];
        sum.store(lanes);
        for (const std::int32_t lane : lanes) start -= Bits::kByteOffset * lane;
        std::memcpy(scales + all, &start, sizeof start);
    }
}

constexpr ByteGemm kByteGemm{gemm_bytes<Packed>, gemm_bytes<Int8>, quantize_bytes<bf16>, quantize_bytes<float>};
