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

// Quantizes to int16 with place(c) the position of column c; the words beyond cols are zero.
template <class Place>
void quantize_to(const float* x, long cols, std::int16_t* words, long size, float* scale, const Place& place) {
    std::memset(words, 0, size * sizeof(std::int16_t));
    const float largest = largest_magnitude(x, cols);
    if (largest == 0 || std::isinf(largest)) {
        *scale = largest == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        return;
    }
    const double inverse = 32767.0 / largest;
    for (long c = 0; c < cols; ++c) words[place(c)] = static_cast<std::int16_t>(std::lrint(x[c] * inverse));
    *scale = static_cast<float>(largest / 32767.0 / 2);  // the look-up tables hold twice the values
}

// Two rows at a time and up to four tokens, what the packed kernels of the vector units have in common. A panel of rows is small
// enough to stay in the second cache while all tokens pass, and four tokens stay in the first while the panel's rows do.
template <class Rows2, class Rows1>
void by_rows_and_tokens(long tokens, long begin, long end, const Rows2& two, const Rows1& one) {
    constexpr long kPanel = 32;
    for (long panel = begin; panel < end; panel += kPanel) {
        const long stop = end - panel < kPanel ? end : panel + kPanel;
        for (long t = 0; t < tokens; t += 4) {
            const long count = tokens - t < 4 ? tokens - t : 4;
            long row = panel;
            for (; row + 2 <= stop; row += 2) two(row, t, count);
            if (row < stop) one(row, t, count);
        }
    }
}
