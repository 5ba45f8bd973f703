// AVX-512 with VNNI: products of many tokens.
#include "gemm/gemm.hpp"

#include <immintrin.h>

#include <cstring>

namespace ossia {
namespace {

struct Bits;

struct Vec {
    static constexpr int kWidth = 16;
    static constexpr int kWordGroups = 2, kWordTokens = 6;  // their integer and float sums fill 24 registers
    static constexpr int kFloatGroups = 4, kFloatTokens = 6;
    static constexpr int kByteGroups = 4, kByteTokens = 4;
    __m512 v;

    static Vec zero() { return {_mm512_setzero_ps()}; }
    static Vec fill(float value) { return {_mm512_set1_ps(value)}; }
    static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vec load(const bf16* p) {
        const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
    }
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
    static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
    static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
    friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
    // The even and the odd elements of a, then b.
    static void separate(Vec a, Vec b, Vec& even, Vec& odd) {
        const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        even.v = _mm512_permutex2var_ps(a.v, places, b.v);
        odd.v = _mm512_permutex2var_ps(a.v, _mm512_or_si512(places, _mm512_set1_epi32(1)), b.v);
    }
    float first() const { return _mm512_cvtss_f32(v); }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    inline Bits round() const;
};

struct Bits {
    __m512i v;

    static Bits fill(std::int32_t value) { return {_mm512_set1_epi32(value)}; }
    static Bits of(Vec value) { return {_mm512_castps_si512(value.v)}; }
    static Bits load(const void* p) { return {_mm512_loadu_si512(p)}; }
    static Bits repeat(const void* p) {
        std::int32_t value;
        std::memcpy(&value, p, sizeof value);
        return fill(value);
    }
    static Bits max(Bits a, Bits b) { return {_mm512_max_epi32(a.v, b.v)}; }
    static Bits dot(Bits sum, Bits a, Bits b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
    static constexpr int kByteOffset = 128;  // what is added to a weight's byte, because one factor is unsigned
    static Bits dot_bytes(Bits sum, Bits weights, Bits x) { return {_mm512_dpbusd_epi32(sum.v, weights.v, x.v)}; }
    static Bits pair(Bits low, Bits high) {
        return {_mm512_mask_blend_epi16(0xAAAAAAAA, low.v, _mm512_slli_epi32(high.v, 16))};
    }
    friend Bits operator&(Bits a, Bits b) { return {_mm512_and_si512(a.v, b.v)}; }
    friend Bits operator^(Bits a, Bits b) { return {_mm512_xor_si512(a.v, b.v)}; }
    friend Bits operator+(Bits a, Bits b) { return {_mm512_add_epi32(a.v, b.v)}; }
    friend Bits operator-(Bits a, Bits b) { return {_mm512_sub_epi32(a.v, b.v)}; }
    Bits operator<<(int count) const { return {_mm512_slli_epi32(v, count)}; }
    Bits operator>>(int count) const { return {_mm512_srli_epi32(v, count)}; }
    Vec as_floats() const { return {_mm512_castsi512_ps(v)}; }
    Vec to_floats() const { return {_mm512_cvtepi32_ps(v)}; }
    std::int32_t largest() const { return _mm512_reduce_max_epi32(v); }
    void store(void* p) const { _mm512_storeu_si512(p, v); }

    // out[i]: 32-bit word i of the 16 bytes at element `from` of each of 16 rows.
    template <class Element>
    static void transpose(const Element* const* rows, long from, Bits* out) {
        __m512i part[4];
        for (int i = 0; i < 4; ++i) part[i] = pieces(rows, i, from);
        transpose(part, out);
    }
    // The 16 bytes at element `from` of rows i, i + 4, i + 8 and i + 12.
    template <class Element>
    static __m512i pieces(const Element* const* rows, int i, long from) {
        const auto piece = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + from)); };
        __m512i part = _mm512_castsi128_si512(piece(i));
        part = _mm512_inserti32x4(part, piece(4 + i), 1);
        part = _mm512_inserti32x4(part, piece(8 + i), 2);
        return _mm512_inserti32x4(part, piece(12 + i), 3);
    }
    static void transpose(const __m512i* part, Bits* out) {
        const __m512i low01 = _mm512_unpacklo_epi32(part[0], part[1]), high01 = _mm512_unpackhi_epi32(part[0], part[1]);
        const __m512i low23 = _mm512_unpacklo_epi32(part[2], part[3]), high23 = _mm512_unpackhi_epi32(part[2], part[3]);
        out[0].v = _mm512_unpacklo_epi64(low01, low23);
        out[1].v = _mm512_unpackhi_epi64(low01, low23);
        out[2].v = _mm512_unpacklo_epi64(high01, high23);
        out[3].v = _mm512_unpackhi_epi64(high01, high23);
    }

    // What the table of 16 bytes at each row's offset has for its 32 codes at `from`: four words of even columns, then
    // four of odd ones.
    static void look_up(const std::uint8_t* const* codes, long from, const std::int8_t* tables,
                        const std::uint8_t* offsets, Bits* out) {
        const __m512i nibble = _mm512_set1_epi8(15);
        const std::int8_t* own[16];
        for (int r = 0; r < 16; ++r) own[r] = tables + offsets[r];
        __m512i even[4], odd[4];
        for (int i = 0; i < 4; ++i) {
            const __m512i both = pieces(codes, i, from), table = pieces(own, i, 0);
            even[i] = _mm512_shuffle_epi8(table, _mm512_and_si512(both, nibble));
            odd[i] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble));
        }
        transpose(even, out);
        transpose(odd, out + 4);
    }

    // 32 integers as bytes.
    static void store_bytes(const Bits* integers, Order order, std::int8_t* out) {
        __m512i first = integers[0].v, second = integers[1].v;
        if (order == Order::even_first) {
            const __m512i places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            first = _mm512_permutex2var_epi32(integers[0].v, places, integers[1].v);
            second =
                _mm512_permutex2var_epi32(integers[0].v, _mm512_or_si512(places, _mm512_set1_epi32(1)), integers[1].v);
        }
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(first));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtepi32_epi8(second));
    }

    // Pairs of twice the values of codes k and k + 4 of each eight. The table is doubled: the fifth bit of an index
    // needs no mask.
    Bits twice_codes(int k) const {
        alignas(64) static constexpr std::int16_t kTwice[32] = {0,  1,  2,  3,  4,   6,  8,  12, 0,  -1, -2,
                                                                -3, -4, -6, -8, -12, 0,  1,  2,  3,  4,  6,
                                                                8,  12, 0,  -1, -2,  -3, -4, -6, -8, -12};
        return {_mm512_permutexvar_epi16(_mm512_srli_epi16(v, 4 * k), _mm512_load_si512(kTwice))};
    }

    // Pairs of twice the values of kWidth codes of `low` and of `high`, times 2^-4 of words, rounded to nearest.
    static Bits scaled_codes(const std::uint8_t* low, const std::uint8_t* high, Bits factors) {
        alignas(64) static constexpr std::int16_t kScaled[32] = {
            0, 2048, 4096, 6144, 8192, 12288, 16384, 24576, 0, -2048, -4096, -6144, -8192, -12288, -16384, -24576,
            0, 2048, 4096, 6144, 8192, 12288, 16384, 24576, 0, -2048, -4096, -6144, -8192, -12288, -16384, -24576};
        const auto codes = [](const std::uint8_t* p) {  // the first of each byte in its low half
            const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
            return _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)));
        };
        // The fifth bit of an index needs no mask, because the table is doubled; of more bits none counts.
        const __m512i places = _mm512_or_si512(codes(low), _mm512_slli_epi32(codes(high), 16));
        return {_mm512_mulhrs_epi16(_mm512_permutexvar_epi16(places, _mm512_load_si512(kScaled)), factors.v)};
    }

    // A block's 32 integers as words, columns k and k + 4 of every eight together.
    static void store_pairs(const Bits* integers, std::int16_t* out) {
        const __m512i low = _mm512_shuffle_i32x4(integers[0].v, integers[1].v, 0x88);
        const __m512i high = _mm512_shuffle_i32x4(integers[0].v, integers[1].v, 0xDD);
        pair({low}, {high}).store(out);
    }
};

Bits Vec::round() const { return {_mm512_cvtps_epi32(v)}; }

#include "gemm/gemm.inl"

}  // namespace

const Gemm& gemm_avx512() { return kGemm; }

}  // namespace ossia
