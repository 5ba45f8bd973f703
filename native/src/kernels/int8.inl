// int8 codes of weights, and activations as words to be multiplied with them, the same for every instruction set.
// Included by each form inside an unnamed namespace.

template <class Element>
inline std::int32_t largest_bits(const Element* x, long count) {
    std::int32_t largest = 0;
    for (long i = 0; i < count; ++i) {
        const std::int32_t magnitude = bits_of(widen(x[i])) & 0x7FFFFFFF;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

constexpr std::int32_t kInfinite = 0x7F800000;
constexpr float kToWhole = 0x1.8p23f;  // added, it leaves an integer in the low bits

template <class Element>
inline bool to_codes(const Element* x, long cols, long group, std::int8_t* codes, float* scales) {
    constexpr float kLargest = 127;
    for (long begin = 0; begin < cols; begin += group) {
        const long count = cols - begin < group ? cols - begin : group;
        const std::int32_t bits = largest_bits(x + begin, count);
        if (bits >= kInfinite) return false;
        const float largest = float_of(bits), most = std::numeric_limits<float>::max();
        const float steps = largest > 0 ? kLargest / largest : 0, inverse = steps < most ? steps : most;
        scales[begin / group] = largest / kLargest;
        for (long c = begin; c < begin + count; ++c)
            codes[c] = static_cast<std::int8_t>(bits_of(widen(x[c]) * inverse + kToWhole));
    }
    return true;
}

// Words of one group's `count` elements; returns what a step of them is worth. None is above 127 * 257, so that each is
// two signed bytes: a group whose largest is less than a bfloat16's last bit below a power of two counts in twice the
// steps.
template <class Element>
inline float group_words(const Element* x, long count, std::int16_t* words, float* rest) {
    constexpr int kBits = 14;                // after the first of a group's largest
    constexpr std::int32_t kLast = 1 << 16;  // the last bit of a bfloat16, in a float32
    constexpr float kMost = 127 * 257;
    const std::int32_t largest = largest_bits(x, count), smallest = (kBits + 1) << 23;
    const std::int32_t exponent = (largest < kInfinite ? largest + kLast : largest) & kInfinite;
    const std::int32_t clamped = exponent < smallest ? smallest : exponent;
    const std::uint32_t inverse_bits = ((254u + kBits) << 23) - static_cast<std::uint32_t>(clamped);
    const float scale = float_of(clamped - (kBits << 23)), inverse = float_of(static_cast<std::int32_t>(inverse_bits));
    for (long c = 0; c < count; ++c) {
        const float value = widen(x[c]), steps = value * inverse;
        const float whole = (steps < kMost ? steps : kMost) + kToWhole;
        words[c] = static_cast<std::int16_t>(bits_of(whole));
        if (rest) rest[c] = value - (whole - kToWhole) * scale;
    }
    return largest < kInfinite ? scale : std::numeric_limits<float>::quiet_NaN();
}
