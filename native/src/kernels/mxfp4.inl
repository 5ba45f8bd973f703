// Conversion to and from MXFP4, the same for every instruction set; ops/mxfp4.py defines the results. Included by each
// form inside an unnamed namespace, after kernels/int8.inl.

constexpr long kMxBlock = 32, kMxBytes = kMxBlock / 2;

// Codes and scales of `count` blocks of x. Adds to sums[0] the squares of what rounding changes, and to sums[1] those
// of x. Returns false, with undefined results, if x holds NaN or infinity.
template <class Element>
bool pack_blocks(const Element* x, long count, std::uint8_t* codes, std::uint8_t* scales, double* sums) {
    for (long block = 0; block < count; ++block, x += kMxBlock, codes += kMxBytes) {
        const std::int32_t bits = largest_bits(x, kMxBlock);
        if (bits >= kInfinite) return false;
        // The exponent field is floor(log2) + 127, and 0 for zeros and subnormals; the largest code is 1.5 * 2^2.
        const std::int32_t field = bits >> 23, scale = field > 2 ? field - 2 : 0;
        const float inverse = float_of((254 - scale) << 23);
        std::int32_t own[kMxBlock];
        float lost = 0, all = 0;
        for (long i = 0; i < kMxBlock; ++i) {
            const float value = widen(x[i]), size = std::fabs(value) * inverse;  // below 8, and exact
            // The codes count up in steps of 1/2 to 2, of 1 to 4 and of 2 to 6; adding kToWhole takes ties to even.
            const float step = size < 2 ? 0.5f : size < 4 ? 1.0f : 2.0f;
            const float steps = size < 2 ? 2.0f : size < 4 ? 1.0f : 0.5f;
            const float first = size < 2 ? 0.0f : size < 4 ? 2.0f : 4.0f;
            const float whole = size * steps + kToWhole - kToWhole, largest = 7.0f - first;
            const float kept = whole < largest ? whole : largest;
            own[i] = (bits_of(kept + first + kToWhole) & 7) | (bits_of(value) < 0 ? 8 : 0);
            const float change = kept * step - size;
            lost += change * change;
            all += size * size;
        }
        for (long i = 0; i < kMxBytes; ++i) codes[i] = static_cast<std::uint8_t>(own[2 * i] | own[2 * i + 1] << 4);
        scales[block] = static_cast<std::uint8_t>(scale);
        const double power = std::ldexp(1.0, 2 * (scale - 127));
        sums[0] += lost * power;
        sums[1] += all * power;
    }
    return true;
}

inline void put(float value, float* to) { *to = value; }
inline void put(float value, bf16* to) { *to = static_cast<bf16>(static_cast<std::uint32_t>(bits_of(value)) >> 16); }

// The values of `count` blocks, which both types hold exactly.
template <class Element>
void unpack_blocks(const std::uint8_t* codes, const std::uint8_t* scales, long count, Element* y) {
    constexpr float kValues[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -.5f, -1, -1.5f, -2, -3, -4, -6};
    for (long block = 0; block < count; ++block, codes += kMxBytes, y += kMxBlock) {
        const std::int32_t scale = scales[block];
        const float power = scale == 255 ? std::numeric_limits<float>::quiet_NaN()
                                         : float_of(scale ? scale << 23 : 1 << 22);  // 2^-127 is subnormal
        Element values[16];
        for (int code = 0; code < 16; ++code) put(kValues[code] * power, values + code);
        for (long i = 0; i < kMxBytes; ++i) {
            y[2 * i] = values[codes[i] & 15];
            y[2 * i + 1] = values[codes[i] >> 4];
        }
    }
}
