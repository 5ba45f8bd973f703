// Operations between the matrix products, on rows of numbers, in loops that the compiler vectorizes. Included by each
// form inside an unnamed namespace, after exp.inl, and so compiled for its instruction set.

inline void store(float value, float* out) { *out = value; }
inline void store(float value, bf16* out) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    *out = static_cast<bf16>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : nearest);
}
inline float rounded(float value, const float*) { return value; }
inline float rounded(float value, const bf16*) {
    bf16 out;
    store(value, &out);
    return widen(out);
}

// The sum of term(i), in enough lanes for the longest vectors.
template <class Term>
inline float sum_of(long size, const Term& term) {
    constexpr int kLanes = 32;
    float lanes[kLanes] = {};
    long i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] += term(i + j);
    for (; i < size; ++i) lanes[i % kLanes] += term(i);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    return lanes[0];
}

// One over the root of a mean of squares. Of one that overflowed it is NaN, not 0: all numbers would become 0, which
// are as finite as they are wrong.
inline float inverse_root(float squares, long size, float eps) {
    const float mean = squares / static_cast<float>(size) + eps;
    return mean <= std::numeric_limits<float>::max() ? 1 / std::sqrt(mean) : std::numeric_limits<float>::quiet_NaN();
}

template <class Element>
void rms_norm(const Element* x, const Element* weight, Element* y, long size, float eps, bool round_before_weight) {
    const float squares = sum_of(size, [&](long i) { return widen(x[i]) * widen(x[i]); });
    const float scale = inverse_root(squares, size, eps);
    if (round_before_weight) {
        for (long i = 0; i < size; ++i) store(rounded(widen(x[i]) * scale, x) * widen(weight[i]), y + i);
    } else {
        for (long i = 0; i < size; ++i) store(widen(x[i]) * scale * widen(weight[i]), y + i);
    }
}

template <class Element>
void layer_norm(const Element* x, const Element* weight, const Element* bias, Element* y, long size, float eps) {
    const float mean = sum_of(size, [&](long i) { return widen(x[i]); }) / static_cast<float>(size);
    const float squares = sum_of(size, [&](long i) { return (widen(x[i]) - mean) * (widen(x[i]) - mean); });
    const float scale = inverse_root(squares, size, eps);
    for (long i = 0; i < size; ++i) store((widen(x[i]) - mean) * scale * widen(weight[i]) + widen(bias[i]), y + i);
}

template <class Element>
void rotate(const Element* x, const float* cosines, const float* sines, Element* y, long half) {
    for (long i = 0; i < half; ++i) {
        const float first = widen(x[i]), second = widen(x[half + i]);
        store(first * cosines[i] - second * sines[i], y + i);
        store(second * cosines[i] + first * sines[i], y + half + i);
    }
}

// Calls put(i, e^power(i)) for i below count.
template <class Power, class Put>
inline void with_exponentials(long count, const Power& power, const Put& put) {
    constexpr long kPiece = 64;
    float values[kPiece] = {};
    for (long begin = 0; begin < count; begin += kPiece) {
        const long size = count - begin < kPiece ? count - begin : kPiece;
        for (long i = 0; i < size; ++i) values[i] = power(begin + i);
        for (long i = 0; i < size; i += Vec::kWidth) exp(Vec::load(values + i)).store(values + i);
        for (long i = 0; i < size; ++i) put(begin + i, values[i]);
    }
}

// tanh-GELU: (1 + tanh u) / 2 is the logistic function of 2u, 1 / (1 + e^-2u).
template <class Element>
void gelu(const Element* x, Element* y, long count) {
    with_exponentials(
        count,
        [&](long i) {
            const float value = widen(x[i]);
            return -1.59576912f * (value + 0.044715f * value * value * value);
        },
        [&](long i, float exponential) { store(widen(x[i]) / (1 + exponential), y + i); });
}

template <class Element>
void swiglu(const Element* gate, const Element* up, Element* y, long count) {
    with_exponentials(
        count, [&](long i) { return -widen(gate[i]); },
        [&](long i, float exponential) { store(widen(gate[i]) / (1 + exponential) * widen(up[i]), y + i); });
}

// The comparisons keep NaN, as torch's clamp does.
template <class Element>
void clamped_swiglu(const Element* gate, const Element* up, Element* y, long count, float limit, float alpha) {
    const auto glu = [&](long i) { return widen(gate[i]) > limit ? limit : widen(gate[i]); };
    with_exponentials(
        count, [&](long i) { return -alpha * glu(i); },
        [&](long i, float exponential) {
            float linear = widen(up[i]);
            linear = linear > limit ? limit : linear;
            linear = linear < -limit ? -limit : linear;
            store(glu(i) / (1 + exponential) * (linear + 1), y + i);
        });
}

// y = x + bias + residual, each optional, at the end of a matrix product.
template <class Element>
void finish(const float* x, const Element* bias, const Element* residual, Element* y, long count) {
    if (bias && residual) {
        for (long i = 0; i < count; ++i) store(x[i] + widen(bias[i]) + widen(residual[i]), y + i);
    } else if (bias || residual) {
        const Element* other = bias ? bias : residual;
        for (long i = 0; i < count; ++i) store(x[i] + widen(other[i]), y + i);
    } else {
        for (long i = 0; i < count; ++i) store(x[i], y + i);
    }
}

// The least that a pass over memory costs.
inline std::uint64_t sum_words(const std::uint64_t* words, long count) {
    constexpr int kLanes = 64;
    std::uint64_t lanes[kLanes] = {};
    long i = 0;
    for (; i + kLanes <= count; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] += words[i + j];
    std::uint64_t sum = 0;
    for (std::uint64_t lane : lanes) sum += lane;
    for (; i < count; ++i) sum += words[i];
    return sum;
}

template <class Element>
constexpr Rowwise<Element> kRowwise{rms_norm<Element>, layer_norm<Element>,     rotate<Element>, gelu<Element>,
                                    swiglu<Element>,   clamped_swiglu<Element>, finish<Element>};
