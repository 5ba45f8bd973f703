// Plain C++: runs everywhere, and is what the vector forms are compared with.
#include "kernels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ossia {
namespace {

struct Vec {
    static constexpr int kWidth = 8;
    static constexpr int kRows = 1;
    static constexpr int kTileRows = 4, kTileColumns = 1;
    float lanes[kWidth];

    static Vec zero() { return fill(0); }
    static Vec fill(float value) {
        Vec v;
        for (float& lane : v.lanes) lane = value;
        return v;
    }
    static Vec load(const float* p) {
        Vec v;
        std::memcpy(v.lanes, p, sizeof v.lanes);
        return v;
    }
    static Vec load(const bf16* p) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = widen(p[i]);
        return v;
    }
    static Vec load(const std::int8_t* p) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = p[i];
        return v;
    }
    static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = a.lanes[i] * b.lanes[i] + c.lanes[i];
        return v;
    }
    static Vec max(const Vec& a, const Vec& b) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i];
        return v;
    }
    static Vec min(const Vec& a, const Vec& b) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = a.lanes[i] < b.lanes[i] ? a.lanes[i] : b.lanes[i];
        return v;
    }
    static Vec if_less(const Vec& a, const Vec& b, const Vec& then, const Vec& other) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = a.lanes[i] < b.lanes[i] ? then.lanes[i] : other.lanes[i];
        return v;
    }
    // The sum of each.
    static Vec sums(const Vec (&rows)[kWidth]) {
        Vec v;
        for (int i = 0; i < kWidth; ++i) v.lanes[i] = rows[i].sum();
        return v;
    }
    void store(float* p) const { std::memcpy(p, lanes, sizeof lanes); }
    float sum() const {
        float total = 0;
        for (float lane : lanes) total += lane;
        return total;
    }
    // In two steps: 2^n itself may be no float32. A NaN stays one, whatever n is then.
    Vec scaled(const Vec& n) const {
        Vec v;
        for (int i = 0; i < kWidth; ++i) {
            const std::int32_t whole = n.lanes[i] == n.lanes[i] ? static_cast<std::int32_t>(n.lanes[i]) : 0, half = whole >> 1;
            v.lanes[i] = lanes[i] * power_of_two(half) * power_of_two(whole - half);
        }
        return v;
    }

  private:
    static float power_of_two(std::int32_t exponent) {
        const std::int32_t bits = (exponent + 127) << 23;
        float power;
        std::memcpy(&power, &bits, sizeof power);
        return power;
    }
};

inline Vec operator+(const Vec& a, const Vec& b) {
    Vec v;
    for (int i = 0; i < Vec::kWidth; ++i) v.lanes[i] = a.lanes[i] + b.lanes[i];
    return v;
}
inline Vec operator-(const Vec& a, const Vec& b) {
    Vec v;
    for (int i = 0; i < Vec::kWidth; ++i) v.lanes[i] = a.lanes[i] - b.lanes[i];
    return v;
}
inline Vec operator*(const Vec& a, const Vec& b) {
    Vec v;
    for (int i = 0; i < Vec::kWidth; ++i) v.lanes[i] = a.lanes[i] * b.lanes[i];
    return v;
}

#include "exp.inl"
#include "dense.inl"
#include "packed.inl"
#include "attend.inl"
#include "rowwise.inl"

constexpr int kBlock = 32;
constexpr std::int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

long quantized_size(long cols) { return cols; }

// Each block's even columns, then its odd ones, as they lie in low and high nibbles.
void quantize(const float* x, long cols, std::int16_t* words, float* scale, float* rest) {
    quantize_to(x, cols, words, scale, rest, [](long c) { return c / kBlock * kBlock + c % 2 * 16 + c % kBlock / 2; });
}

void packed(const Packed& w, const std::int16_t* const* words, const float* scales, long tokens, float* const* y, long begin,
            long end) {
    const long groups = w.cols / kBlock;
    for (long row = begin; row < end; ++row)
        for (long t = 0; t < tokens; ++t) {
            float sum = 0;
            for (long g = 0; g < groups; ++g) {
                const std::uint8_t* bytes = w.blocks + (row * groups + g) * 16;
                const std::int16_t* even = words[t] + g * kBlock;
                std::int32_t dot = 0;
                for (int i = 0; i < 16; ++i) dot += kTwice[bytes[i] & 15] * even[i] + kTwice[bytes[i] >> 4] * even[16 + i];
                sum += static_cast<float>(dot) * kPowers.of[w.scales[row * groups + g]];
            }
            y[t][row - begin] = sum * scales[t];
        }
}

}  // namespace

const Kernels& kernels_portable() {
    static const Kernels kernels{"portable", dense<bf16>, dense<float>, sum_words, quantized_size, quantize, packed,
                                 turn<bf16>, turn<float>, attend_scratch, kAttend<bf16>, kAttend<float>, kAttend<std::int8_t>,
                                 kRowwise<bf16>, kRowwise<float>};
    return kernels;
}

}  // namespace ossia
