// Sampling from logits, in the arithmetic that ossia/ops/sampling.py defines: every operation is exact or rounded once,
// so the same bits result in each form. Included by each form inside an unnamed namespace, after exp.inl.

constexpr long kLogits = 64;  // at a time

// Calls task(x, begin) for blocks of kLogits; the last one is filled up with -infinity.
template <class Task>
inline void logit_blocks(const float* x, long count, const Task& task) {
    long begin = 0;
    for (; begin + kLogits <= count; begin += kLogits) task(x + begin, begin);
    if (begin == count) return;
    float last[kLogits];
    for (long i = 0; i < kLogits; ++i)
        last[i] = begin + i < count ? x[begin + i] : -std::numeric_limits<float>::infinity();
    task(last, begin);
}

// The largest, or NaN if there is NaN or +infinity.
float largest_logit(const float* x, long count) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Vec largest = Vec::fill(-kInfinity), sound = Vec::fill(1);
    logit_blocks(x, count, [&](const float* block, long) {
        for (long i = 0; i < kLogits; i += Vec::kWidth) {
            const Vec logits = Vec::load(block + i);
            sound = Vec::if_less(logits, Vec::fill(kInfinity), sound, Vec::zero());
            largest = Vec::max(logits, largest);
        }
    });
    float lanes[2][Vec::kWidth];
    largest.store(lanes[0]);
    sound.store(lanes[1]);
    float result = -kInfinity;
    for (float lane : lanes[0]) result = lane > result ? lane : result;
    for (float lane : lanes[1])
        if (lane == 0) return std::numeric_limits<float>::quiet_NaN();
    return result;
}

// Of a block of logits: the power of two that each weighs, at most 0, and 2^40 times that to the nearest whole number.
inline void powers_of(const float* x, float largest, float scale, float* powers) {
    for (long i = 0; i < kLogits; i += Vec::kWidth)
        ((Vec::load(x + i) - Vec::fill(largest)) * Vec::fill(scale)).store(powers + i);
}
inline void weights_of(const float* powers, std::int64_t* weights) {
    constexpr float kPower[] = {0.0013398875f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f, 1.0f};
    float values[kLogits];
    for (long i = 0; i < kLogits; i += Vec::kWidth) {
        const Vec power = Vec::max(Vec::fill(-64), Vec::load(powers + i));
        const Vec whole = nearest(power), part = power - whole;
        Vec value = Vec::fill(1.53533605e-4f);
        for (float coefficient : kPower) value = value * part + Vec::fill(coefficient);
        value.scaled(whole + Vec::fill(kWeightBits)).store(values + i);
    }
    for (long i = 0; i < kLogits; ++i) {
        const double sum = static_cast<double>(values[i]) + 0x1p52;  // whose last bit is worth one
        std::int64_t bits;
        std::memcpy(&bits, &sum, sizeof bits);
        weights[i] = bits - 0x4330000000000000;
    }
}

void weigh_logits(const float* x, long count, float largest, float scale, std::int64_t* weights) {
    logit_blocks(x, count, [&](const float* block, long begin) {
        float powers[kLogits];
        std::int64_t found[kLogits];
        powers_of(block, largest, scale, powers);
        weights_of(powers, found);
        std::memcpy(weights + begin, found, (count - begin < kLogits ? count - begin : kLogits) * sizeof *weights);
    });
}

std::int64_t total_weight(const float* x, long count, float largest, float scale) {
    constexpr long kLanes = 16;
    std::int64_t lanes[kLanes] = {};
    logit_blocks(x, count, [&](const float* block, long) {
        float powers[kLogits];
        std::int64_t weights[kLogits];
        powers_of(block, largest, scale, powers);
        weights_of(powers, weights);
        for (long i = 0; i < kLogits; i += kLanes)
            for (long j = 0; j < kLanes; ++j) lanes[j] += weights[i + j];
    });
    std::int64_t total = 0;
    for (std::int64_t lane : lanes) total += lane;
    return total;
}

void weight_histogram(const float* x, long count, float largest, float scale, std::int64_t* totals,
                      std::int32_t* counts) {
    logit_blocks(x, count, [&](const float* block, long) {
        float powers[kLogits];
        std::int64_t weights[kLogits];
        std::int32_t bins[kLogits];
        powers_of(block, largest, scale, powers);
        weights_of(powers, weights);
        for (long i = 0; i < kLogits; ++i) {
            const float bin = powers[i] * -static_cast<float>(kBinsPerPower);
            bins[i] = static_cast<std::int32_t>(bin < kBins ? bin : kBins);
        }
        for (long i = 0; i < kLogits; ++i) totals[bins[i]] += weights[i];
        if (counts)
            for (long i = 0; i < kLogits; ++i) ++counts[bins[i]];
    });
}

long logits_in_bin(const float* x, long count, float largest, float scale, int bin, std::int32_t* found) {
    const float low = static_cast<float>(bin), high = static_cast<float>(bin + 1);
    long size = 0;
    logit_blocks(x, count, [&](const float* block, long begin) {
        float bins[kLogits];
        powers_of(block, largest, scale * -static_cast<float>(kBinsPerPower), bins);
        std::int32_t inside[kLogits], any = 0;
        for (long i = 0; i < kLogits; ++i) {
            inside[i] = static_cast<std::int32_t>(bins[i] >= low) & static_cast<std::int32_t>(bins[i] < high);
            any |= inside[i];
        }
        if (!any) return;
        for (long i = 0; i < kLogits; ++i) {
            found[size] = static_cast<std::int32_t>(begin + i);
            size += inside[i];
        }
    });
    return size;
}

constexpr Weighing kWeighing{largest_logit, weigh_logits, total_weight, weight_histogram, logits_in_bin};
