// Cosines and sines of a position, in a loop that the compiler vectorizes. Included by each form inside an unnamed
// namespace, and so compiled for its instruction set; the bits are the same in all.
//
// The nearest whole number of quarter turns is subtracted from an angle in two parts, the first of 33 bits and so exact
// for angles up to a million. The Taylor series on [-pi/4, pi/4] follow, in double precision to 1e-12. The only
// rounding to float32 is at the end, so a result is within 0.51 units in the last place.

inline void turn_of(double angle, double factor, float* cosine, float* sine) {
    constexpr double kQuarter = 1.57079632673412561417, kRest = 6.07710050650619224932e-11;
    constexpr double kShift = 6755399441055744;  // 1.5 * 2^52: the last bit of a sum is worth one
    const double quarters = angle * 0.63661977236758134308 + kShift - kShift;
    const double r = angle - quarters * kQuarter - quarters * kRest, s = r * r;
    const double even =
        1 + s * (-1. / 2 + s * (1. / 24 + s * (-1. / 720 + s * (1. / 40320 + s * (-1. / 3628800 + s / 479001600)))));
    const double odd =
        r * (1 + s * (-1. / 6 + s * (1. / 120 + s * (-1. / 5040 + s * (1. / 362880 + s * (-1. / 39916800))))));
    // A quarter turn swaps the two and negates one. For `fourth` quarters, -2 to 2, each gets a factor of 1, 0 or -1.
    const double fourth = quarters - 4 * (quarters * 0.25 + kShift - kShift);
    const double swapped = fourth * (4 - fourth * fourth) / 3;  // 0, -1, 0, 1, 0
    const double kept = 1 - fourth * fourth * (7 - fourth * fourth) / 6;
    *cosine = static_cast<float>(factor * (kept * even - swapped * odd));
    *sine = static_cast<float>(factor * (kept * odd + swapped * even));
}

// Cosines and sines (half,) of position * frequencies (half,), both times factor. Angles are rounded to float32.
void turns(float position, const float* frequencies, long half, double factor, float* cosines, float* sines) {
    for (long i = 0; i < half; ++i) turn_of(position * frequencies[i], factor, cosines + i, sines + i);
}
