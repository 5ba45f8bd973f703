// Exponentials of a `Vec`, the same for every instruction set. Included by each form inside an unnamed namespace, after
// its Vec.
//
// Vec provides + - *, fma, max and min (the second operand if one is NaN), and `scaled`: times 2^n for a whole n of at
// most 152, with overflow to infinity and underflow to zero. The relative error is below 1.3e-7 where the result is
// normal.

// x rounded to a whole number, for |x| < 2^22: the last bit of the sum is worth one.
inline Vec nearest(Vec x) {
    const Vec shift = Vec::fill(12582912.0f);
    return x + shift - shift;
}

// 2^(n + r), |r| <= 1/2: a minimax polynomial of 2^r, its constant term 1 so that exp(0) is 1.
inline Vec exp2_of(Vec n, Vec r) {
    Vec power = Vec::fill(0.000153533605f);
    constexpr float kLower[] = {0.0013398875f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f, 1.0f};
    for (float coefficient : kLower) power = Vec::fma(power, r, Vec::fill(coefficient));
    return power.scaled(n);
}

// 2^x.
inline Vec exp2(Vec x) {
    x = Vec::min(Vec::fill(129), Vec::max(Vec::fill(-151), x));
    const Vec n = nearest(x);
    return exp2_of(n, x - n);
}

// e^x. ln 2 is subtracted in two parts; n times the first is exact.
inline Vec exp(Vec x) {
    x = Vec::min(Vec::fill(89), Vec::max(Vec::fill(-104), x));
    const Vec n = nearest(x * Vec::fill(1.44269504f));
    const Vec r = Vec::fma(n, Vec::fill(2.12194440e-4f), Vec::fma(n, Vec::fill(-0.693359375f), x));
    return exp2_of(n, r * Vec::fill(1.44269504f));
}
