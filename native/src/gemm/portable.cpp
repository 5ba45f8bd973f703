// Plain C++: products of many tokens. Compilers vectorize the loops over lanes where they can.
#include "gemm/gemm.hpp"

#include <cmath>
#include <cstring>

namespace ossia {
namespace {

struct Bits;

struct Vec {
    static constexpr int kWidth = 8;
    static constexpr int kWordGroups = 1, kWordTokens = 2;
    static constexpr int kFloatGroups = 1, kFloatTokens = 4;
    static constexpr int kByteGroups = 1, kByteTokens = 2;
    float lanes[kWidth];

    template <class Function>
    static Vec each(const Function& function) {
        Vec result;
        for (int i = 0; i < kWidth; ++i) result.lanes[i] = function(i);
        return result;
    }
    static Vec zero() { return fill(0); }
    static Vec fill(float value) {
        return each([=](int) { return value; });
    }
    template <class Element>
    static Vec load(const Element* p) {
        return each([=](int i) { return widen(p[i]); });
    }
    static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
        return each([&](int i) { return a.lanes[i] * b.lanes[i] + c.lanes[i]; });
    }
    // The second operand if one is NaN, like the vector instructions.
    static Vec min(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.lanes[i] < b.lanes[i] ? a.lanes[i] : b.lanes[i]; });
    }
    static Vec max(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i]; });
    }
    friend Vec operator+(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.lanes[i] + b.lanes[i]; });
    }
    friend Vec operator-(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.lanes[i] - b.lanes[i]; });
    }
    friend Vec operator*(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.lanes[i] * b.lanes[i]; });
    }
    friend Vec operator/(const Vec& a, const Vec& b) {
        return each([&](int i) { return a.lanes[i] / b.lanes[i]; });
    }
    static void separate(const Vec& a, const Vec& b, Vec& even, Vec& odd) {
        const auto at = [&](int i) { return i < kWidth ? a.lanes[i] : b.lanes[i - kWidth]; };
        even = each([&](int i) { return at(2 * i); });
        odd = each([&](int i) { return at(2 * i + 1); });
    }
    float first() const { return lanes[0]; }
    void store(float* p) const { std::memcpy(p, lanes, sizeof lanes); }
    inline Bits round() const;
};

struct Bits {
    static constexpr int kWidth = Vec::kWidth;
    static constexpr std::int32_t kTwice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    std::int32_t lanes[kWidth];

    template <class Function>
    static Bits each(const Function& function) {
        Bits result;
        for (int i = 0; i < kWidth; ++i) result.lanes[i] = static_cast<std::int32_t>(function(i));
        return result;
    }
    std::uint32_t at(int i) const { return static_cast<std::uint32_t>(lanes[i]); }
    static std::int32_t low(std::int32_t pair) { return static_cast<std::int16_t>(pair); }

    static Bits fill(std::int32_t value) {
        return each([=](int) { return value; });
    }
    static Bits of(const Vec& value) { return load(value.lanes); }
    static Bits load(const void* p) {
        Bits result;
        std::memcpy(result.lanes, p, sizeof result.lanes);
        return result;
    }
    static Bits repeat(const void* p) {
        std::int32_t value;
        std::memcpy(&value, p, sizeof value);
        return fill(value);
    }
    static Bits max(const Bits& a, const Bits& b) {
        return each([&](int i) { return a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i]; });
    }
    static Bits dot(const Bits& sum, const Bits& a, const Bits& b) {
        return each([&](int i) {
            return sum.lanes[i] + low(a.lanes[i]) * low(b.lanes[i]) + (a.lanes[i] >> 16) * (b.lanes[i] >> 16);
        });
    }
    static constexpr int kByteOffset = 0;
    static Bits dot_bytes(const Bits& sum, const Bits& weights, const Bits& x) {
        const auto byte = [](const Bits& bytes, int i, int k) {
            return static_cast<std::int32_t>(static_cast<std::int8_t>(bytes.at(i) >> 8 * k));
        };
        Bits result = sum;
        for (int k = 0; k < 4; ++k)
            for (int i = 0; i < kWidth; ++i) result.lanes[i] += byte(weights, i, k) * byte(x, i, k);
        return result;
    }
    static Bits pair(const Bits& low, const Bits& high) {
        return each([&](int i) { return (low.at(i) & 0xFFFF) | high.at(i) << 16; });
    }
    friend Bits operator&(const Bits& a, const Bits& b) {
        return each([&](int i) { return a.at(i) & b.at(i); });
    }
    friend Bits operator^(const Bits& a, const Bits& b) {
        return each([&](int i) { return a.at(i) ^ b.at(i); });
    }
    friend Bits operator+(const Bits& a, const Bits& b) {
        return each([&](int i) { return a.at(i) + b.at(i); });
    }
    friend Bits operator-(const Bits& a, const Bits& b) {
        return each([&](int i) { return a.at(i) - b.at(i); });
    }
    Bits operator<<(int count) const {
        return each([&](int i) { return at(i) << count; });
    }
    Bits operator>>(int count) const {
        return each([&](int i) { return at(i) >> count; });
    }
    Vec as_floats() const {
        Vec result;
        std::memcpy(result.lanes, lanes, sizeof lanes);
        return result;
    }
    Vec to_floats() const {
        return Vec::each([&](int i) { return static_cast<float>(lanes[i]); });
    }
    std::int32_t largest() const {
        std::int32_t most = lanes[0];
        for (std::int32_t lane : lanes) most = lane > most ? lane : most;
        return most;
    }
    void store(void* p) const { std::memcpy(p, lanes, sizeof lanes); }

    template <class Element>
    static void transpose(const Element* const* rows, long from, Bits* out) {
        for (int r = 0; r < kWidth; ++r) {
            std::int32_t piece[4];
            std::memcpy(piece, rows[r] + from, sizeof piece);
            for (int i = 0; i < 4; ++i) out[i].lanes[r] = piece[i];
        }
    }

    static void look_up(const std::uint8_t* const* codes, long from, const std::int8_t* tables,
                        const std::uint8_t* offsets, Bits* out) {
        for (int r = 0; r < kWidth; ++r)
            for (int part = 0; part < 2; ++part) {
                std::int8_t values[16];
                for (int i = 0; i < 16; ++i) values[i] = tables[offsets[r] + (codes[r][from + i] >> 4 * part & 15)];
                for (int i = 0; i < 4; ++i) std::memcpy(out[part * 4 + i].lanes + r, values + 4 * i, 4);
            }
    }

    static void store_bytes(const Bits* integers, Order order, std::int8_t* out) {
        for (int i = 0; i < 32; ++i) {
            const int from = order == Order::plain ? i : i % 16 * 2 + i / 16;
            out[i] = static_cast<std::int8_t>(integers[from / kWidth].lanes[from % kWidth]);
        }
    }

    Bits twice_codes(int k) const {
        return pair(each([&](int i) { return kTwice[at(i) >> 4 * k & 15]; }),
                    each([&](int i) { return kTwice[at(i) >> (16 + 4 * k) & 15]; }));
    }

    static Bits scaled_codes(const std::uint8_t* low_codes, const std::uint8_t* high_codes, const Bits& factors) {
        const auto scaled = [](const std::uint8_t* codes, int i, std::int32_t factor) {
            return (kTwice[codes[i / 2] >> i % 2 * 4 & 15] * 2048 * factor + (1 << 14)) >> 15;
        };
        return pair(each([&](int i) { return scaled(low_codes, i, low(factors.lanes[i])); }),
                    each([&](int i) { return scaled(high_codes, i, factors.lanes[i] >> 16); }));
    }

    static void store_pairs(const Bits* integers, std::int16_t* out) {
        for (int i = 0; i < 4; ++i)
            for (int k = 0; k < 4; ++k)
                for (int half = 0; half < 2; ++half)
                    out[i * 8 + k * 2 + half] = static_cast<std::int16_t>(integers[i].lanes[half * 4 + k]);
    }
};

// NaN has no integer, and no scale lets it through.
Bits Vec::round() const {
    return Bits::each([&](int i) { return std::isnan(lanes[i]) ? 0L : std::lrint(lanes[i]); });
}

#include "gemm/gemm.inl"

}  // namespace

const Gemm& gemm_portable() { return kGemm; }

}  // namespace ossia
