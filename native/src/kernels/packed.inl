// What the packed kernels of the instruction sets have in common. Included by each form inside an unnamed namespace.

// The largest magnitude, or infinity if one is not finite.
inline float largest_magnitude(const float* x, long cols) {
    float largest = 0;
    for (long c = 0; c < cols; ++c) {
        const float magnitude = std::fabs(x[c]);
        if (!(magnitude <= std::numeric_limits<float>::max())) return std::numeric_limits<float>::infinity();
        if (magnitude > largest) largest = magnitude;
    }
    return largest;
}

// The quantization of x to at most `limit` whole steps. The lift keeps the inverse of a step finite.
struct Step {
    float lift, inverse, size;  // size 0: nothing to quantize
};

// Sets the scale of the products with tables of twice the weights: 0 for a vector of zeros, NaN for one with NaN or
// infinity.
inline Step step_of(const float* x, long cols, int limit, float* scale) {
    const float largest = largest_magnitude(x, cols);
    if (largest == 0 || std::isinf(largest)) {
        *scale = largest == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        return {1, 0, 0};
    }
    const float size = largest / static_cast<float>(limit), lift = largest < 0x1p-60f ? 0x1p60f : 1.0f;
    *scale = size / 2;
    return {lift, static_cast<float>(limit) / (largest * lift), size};
}

// Quantizes to int16, column c at place(c); the rounding error goes to `rest` unless that is null.
template <class Place>
void quantize_to(const float* x, long cols, std::int16_t* words, float* scale, float* rest, const Place& place) {
    const Step step = step_of(x, cols, 32767, scale);
    for (long c = 0; c < cols; ++c) {
        const long whole = std::lrint(x[c] * step.lift * step.inverse);
        words[place(c)] = step.size == 0 ? 0 : static_cast<std::int16_t>(whole);
        if (rest) rest[c] = step.size == 0 ? 0 : std::fma(static_cast<float>(-whole), step.size, x[c]);
    }
}

// 2**(byte - 127), the scale of a block; 255 is NaN.
struct Powers {
    float of[256];
    constexpr Powers() : of() {
        float power = 0x1p-127f;
        for (int byte = 0; byte < 255; ++byte) {
            of[byte] = power;
            if (byte < 254) power *= 2;
        }
        of[255] = std::numeric_limits<float>::quiet_NaN();
    }
};
[[maybe_unused]] constexpr Powers kPowers;  // AVX-512 computes them

// Shared by the packed kernels of the vector units: several rows at a time and up to four tokens. A panel of rows is
// small enough to stay in the second-level cache while all tokens pass, and four tokens stay in the first-level cache
// while the panel's rows pass.
template <int kRows, class Several, class One>
void by_rows_and_tokens(long tokens, long begin, long end, const Several& several, const One& one) {
    constexpr long kPanel = 32;
    for (long panel = begin; panel < end; panel += kPanel) {
        const long stop = end - panel < kPanel ? end : panel + kPanel;
        for (long t = 0; t < tokens; t += 4) {
            const long count = tokens - t < 4 ? tokens - t : 4;
            long row = panel;
            for (; row + kRows <= stop; row += kRows) several(row, t, count);
            for (; row < stop; ++row) one(row, t, count);
        }
    }
}
