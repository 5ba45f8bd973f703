// Plain C++, which runs everywhere and is the reference for the vector forms.
#include "kernels/kernels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

namespace ossia {
namespace {

// Four lanes by the vector extension of GCC and Clang, which works on any processor.
struct Vec {
    static constexpr int kWidth = 4;
    static constexpr int kRows = 1;
    static constexpr int kTileRows = 4, kTileColumns = 2;
    typedef float Lanes __attribute__((vector_size(16)));
    typedef std::int32_t Whole __attribute__((vector_size(16)));
    Lanes lanes;

    static Vec zero() { return fill(0); }
    static Vec fill(float value) { return {Lanes{value, value, value, value}}; }
    static Vec load(const float* p) {
        Vec v;
        std::memcpy(&v.lanes, p, sizeof v.lanes);
        return v;
    }
    template <class Element>
    static Vec load(const Element* p) {
        return {Lanes{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
    }
    static Vec fma(Vec a, Vec b, Vec c) { return {a.lanes * b.lanes + c.lanes}; }
    static Vec max(Vec a, Vec b) { return {a.lanes > b.lanes ? a.lanes : b.lanes}; }
    static Vec min(Vec a, Vec b) { return {a.lanes < b.lanes ? a.lanes : b.lanes}; }
    static Vec if_less(Vec a, Vec b, Vec then, Vec other) { return {a.lanes < b.lanes ? then.lanes : other.lanes}; }
    // The sum of the lanes of each.
    static Vec sums(const Vec (&rows)[kWidth]) {
        return {Lanes{rows[0].sum(), rows[1].sum(), rows[2].sum(), rows[3].sum()}};
    }
    void store(float* p) const { std::memcpy(p, &lanes, sizeof lanes); }
    float sum() const { return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]); }
    // In two steps, because 2^n itself may not be a float32. NaN stays NaN, whatever n is then.
    Vec scaled(Vec n) const {
        const Lanes known = n.lanes == n.lanes ? n.lanes : zero().lanes;
        const Whole whole = __builtin_convertvector(known, Whole), half = whole >> 1;
        return {lanes * power_of_two(half) * power_of_two(whole - half)};
    }

  private:
    static Lanes power_of_two(Whole exponent) {
        const Whole bits = (exponent + 127) << 23;
        Lanes power;
        std::memcpy(&power, &bits, sizeof power);
        return power;
    }
};

inline Vec operator+(Vec a, Vec b) { return {a.lanes + b.lanes}; }
inline Vec operator-(Vec a, Vec b) { return {a.lanes - b.lanes}; }
inline Vec operator*(Vec a, Vec b) { return {a.lanes * b.lanes}; }

struct Codes {
    static constexpr int kCount = 16;
    std::int16_t words[kCount];

    static Codes load(const std::int8_t* p) {
        Codes codes;
        for (int i = 0; i < kCount; ++i) codes.words[i] = p[i];
        return codes;
    }
};

struct Dots {
    static constexpr int kSums = 4;
    std::int32_t lanes[4];

    static Dots zero() { return {}; }
    void add(const Codes& codes, const std::int16_t* x) {
        for (int i = 0; i < Codes::kCount; ++i) lanes[i / 2 % 4] += codes.words[i] * x[i];
    }
    Vec floats() const {
        return {Vec::Lanes{static_cast<float>(lanes[0]), static_cast<float>(lanes[1]), static_cast<float>(lanes[2]),
                           static_cast<float>(lanes[3])}};
    }
};

#include "kernels/exp.inl"

// These call exp2 and exp.
#include "kernels/attend.inl"
#include "kernels/attend_block.inl"
#include "kernels/dense.inl"
#include "kernels/columns.inl"
#include "kernels/int8.inl"
#include "kernels/int8_words.inl"
#include "kernels/mxfp4.inl"
#include "kernels/packed.inl"
#include "kernels/packed_words.inl"
#include "kernels/rope.inl"
#include "kernels/rowwise.inl"
#include "kernels/gradients.inl"
#include "kernels/sampling.inl"

constexpr std::int8_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void packed(const Packed& w, const std::int16_t* const* words, const float* scales, long tokens, float* const* y,
            long begin, long end) {
    const long groups = w.cols / kBlock;
    for (long row = begin; row < end; ++row)
        for (long t = 0; t < tokens; ++t) {
            float sum = 0;
            for (long g = 0; g < groups; ++g) {
                const std::uint8_t* bytes = w.blocks + (row * groups + g) * 16;
                const std::int16_t* even = words[t] + g * kBlock;
                std::int32_t dot = 0;
                for (int i = 0; i < 16; ++i)
                    dot += kTwice[bytes[i] & 15] * even[i] + kTwice[bytes[i] >> 4] * even[16 + i];
                sum += static_cast<float>(dot) * kPowers.of[w.scales[row * groups + g]];
            }
            y[t][row - begin] = sum * scales[t];
        }
}

#include "kernels/table.inl"

}  // namespace

const Kernels& kernels_portable() {
    static constexpr Kernels kernels = table("portable");
    return kernels;
}

}  // namespace ossia
