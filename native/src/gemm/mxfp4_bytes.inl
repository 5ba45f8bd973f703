// MXFP4 weights as bytes (gemm_int8.inl), for AVX-512 and the rest and for a matrix unit. Included by each form inside
// an unnamed namespace.

// Half of 2^(code - 127), because the look-up tables hold twice the codes' values; 255 is NaN.
inline float half_of_scale(std::uint32_t code) {
    const std::uint32_t bits = code == 255 ? 0x7FC00000 : code > 1 ? (code - 1) << 23 : 0x00200000u << code;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return scale;
}

// Twice the values of MXFP4's 16 codes times 2^(3 - steps), rounded, for a block whose power of two is `steps` below
// the group's largest; from 8 on all are 0. `kOffset` is added to each.
constexpr std::uint32_t kMostSteps = 8;
template <int kOffset>
struct ByteTables {
    alignas(16) std::int8_t of[kMostSteps + 1][16];
    constexpr ByteTables() : of() {
        constexpr int kTwice[8] = {0, 1, 2, 3, 4, 6, 8, 12};
        for (int steps = 0; steps <= static_cast<int>(kMostSteps); ++steps)
            for (int code = 0; code < 16; ++code) {
                const int exact = kTwice[code & 7] << 3, floor = exact >> steps;
                const int twice_rest = 2 * (exact - (floor << steps)), unit = 1 << steps;
                const int rounded = floor + (twice_rest > unit || (twice_rest == unit && floor % 2 == 1));
                of[steps][code] = static_cast<std::int8_t>((code < 8 ? rounded : -rounded) + kOffset);
            }
    }
};

inline bool all_zeros(const std::uint8_t* codes) {
    std::uint64_t halves[2];
    std::memcpy(halves, codes, sizeof halves);
    return ((halves[0] | halves[1]) & 0x7777777777777777) == 0;
}

// One group of kRows rows from `row` on; those from `end` on repeat the last before it.
template <long kRows>
struct GroupOfRows {
    static constexpr int kBlocks = kByteGroup / kWordBlock;

    int count;  // blocks that there are
    const std::uint8_t* codes[kRows];
    std::uint8_t tables[kBlocks][kRows];  // offsets in ByteTables
    float scales[kRows];                  // of the bytes

    GroupOfRows(const Packed& w, long row, long end, long group) {
        const long blocks = w.cols / kWordBlock, first = group * kBlocks;
        count = static_cast<int>(blocks - first < kBlocks ? blocks - first : kBlocks);
        std::uint32_t powers[kRows];  // of the blocks, a byte each
        for (long r = 0; r < kRows; ++r) {
            const long at = (row + r < end ? row + r : end - 1) * blocks + first;
            codes[r] = w.blocks + at * 16;
            if (count == kBlocks) {
                std::memcpy(powers + r, w.scales + at, kBlocks);
            } else {
                powers[r] = 0;
                std::memcpy(powers + r, w.scales + at, count);
            }
        }
        // The largest power of each row's blocks, and which of them has it.
        std::uint32_t largest[kRows];
        for (long r = 0; r < kRows; ++r) largest[r] = largest_of(powers[r]);
        // Of a block of zeros it does not count.
        for (long r = 0; r < kRows; ++r)
            while (largest[r] >= kBlocks && largest[r] < 255 * kBlocks &&
                   all_zeros(codes[r] + largest[r] % kBlocks * 16)) {
                powers[r] &= ~(0xFFu << 8 * (largest[r] % kBlocks));
                largest[r] = largest_of(powers[r]);
            }
        // Smaller units than that of power 0 would be below float32's.
        for (int b = 0; b < kBlocks; ++b)
            for (long r = 0; r < kRows; ++r) {
                const std::uint32_t most = largest[r] / kBlocks, own = powers[r] >> 8 * b & 0xFF;
                const std::uint32_t steps = (most < 3 ? 3 : most) - own;
                tables[b][r] = static_cast<std::uint8_t>((steps < kMostSteps ? steps : kMostSteps) * 16);
            }
        for (long r = 0; r < kRows; ++r) {
            const std::uint32_t most = largest[r] / kBlocks;
            scales[r] = half_of_scale(most == 255 ? 255 : most < 3 ? 0 : most - 3);
        }
    }

  private:
    static std::uint32_t largest_of(std::uint32_t powers) {
        std::uint32_t largest = 0;
        for (std::uint32_t b = 0; b < kBlocks; ++b) {
            const std::uint32_t own = (powers >> 8 * b & 0xFF) * kBlocks + b;
            largest = own > largest ? own : largest;
        }
        return largest;
    }
};
