// AVX2 with FMA: products of many tokens.
#include "gemm/gemm.hpp"

#include <immintrin.h>

#include <cstring>

namespace ossia {
namespace {

struct Bits;

struct Vec {
    static constexpr int kWidth = 8;
    static constexpr int kWordGroups = 2, kWordTokens = 4;  // their integer sums fill half of the registers
    static constexpr int kFloatGroups = 2, kFloatTokens = 6;
    static constexpr int kByteGroups = 2, kByteTokens = 4;
    __m256 v;

    static Vec zero() { return {_mm256_setzero_ps()}; }
    static Vec fill(float value) { return {_mm256_set1_ps(value)}; }
    static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vec load(const bf16* p) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))};
    }
    static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
    static Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
    static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
    friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
    static void separate(Vec a, Vec b, Vec& even, Vec& odd) {
        const auto ordered = [](__m256 pairs) {
            return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), _MM_SHUFFLE(3, 1, 2, 0)));
        };
        even.v = ordered(_mm256_shuffle_ps(a.v, b.v, _MM_SHUFFLE(2, 0, 2, 0)));
        odd.v = ordered(_mm256_shuffle_ps(a.v, b.v, _MM_SHUFFLE(3, 1, 3, 1)));
    }
    float first() const { return _mm256_cvtss_f32(v); }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    inline Bits round() const;
};

struct Bits {
    __m256i v;

    static Bits fill(std::int32_t value) { return {_mm256_set1_epi32(value)}; }
    static Bits of(Vec value) { return {_mm256_castps_si256(value.v)}; }
    static Bits load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
    static Bits repeat(const void* p) {
        std::int32_t value;
        std::memcpy(&value, p, sizeof value);
        return fill(value);
    }
    static Bits max(Bits a, Bits b) { return {_mm256_max_epi32(a.v, b.v)}; }
    static Bits dot(Bits sum, Bits a, Bits b) { return added(sum, _mm256_madd_epi16(a.v, b.v)); }
    static constexpr int kByteOffset = 0;
    // One factor is unsigned: the weight's magnitude, whose sign the other takes. Sums of two products fit 16 bits.
    static Bits dot_bytes(Bits sum, Bits weights, Bits x) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights.v), _mm256_sign_epi8(x.v, weights.v));
        return added(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    // Now: GCC would put the additions off until all products of a block were computed, and spill these.
    static Bits added(Bits sum, __m256i products) {
        sum.v = _mm256_add_epi32(sum.v, products);
        asm("" : "+x"(sum.v));
        return sum;
    }
    static Bits pair(Bits low, Bits high) { return {_mm256_blend_epi16(low.v, _mm256_slli_epi32(high.v, 16), 0xAA)}; }
    friend Bits operator&(Bits a, Bits b) { return {_mm256_and_si256(a.v, b.v)}; }
    friend Bits operator^(Bits a, Bits b) { return {_mm256_xor_si256(a.v, b.v)}; }
    friend Bits operator+(Bits a, Bits b) { return {_mm256_add_epi32(a.v, b.v)}; }
    friend Bits operator-(Bits a, Bits b) { return {_mm256_sub_epi32(a.v, b.v)}; }
    Bits operator<<(int count) const { return {_mm256_slli_epi32(v, count)}; }
    Bits operator>>(int count) const { return {_mm256_srli_epi32(v, count)}; }
    Vec as_floats() const { return {_mm256_castsi256_ps(v)}; }
    Vec to_floats() const { return {_mm256_cvtepi32_ps(v)}; }
    std::int32_t largest() const {
        __m128i most = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        most = _mm_max_epi32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(1, 0, 3, 2)));
        return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, _MM_SHUFFLE(2, 3, 0, 1))));
    }
    void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

    template <class Element>
    static void transpose(const Element* const* rows, long from, Bits* out) {
        __m256i part[4];
        for (int i = 0; i < 4; ++i) part[i] = pieces(rows, i, from);
        transpose(part, out);
    }
    // The 16 bytes at element `from` of rows i and i + 4.
    template <class Element>
    static __m256i pieces(const Element* const* rows, int i, long from) {
        const auto piece = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + from)); };
        return _mm256_inserti128_si256(_mm256_castsi128_si256(piece(i)), piece(i + 4), 1);
    }
    static void transpose(const __m256i* part, Bits* out) {
        const __m256i low01 = _mm256_unpacklo_epi32(part[0], part[1]), high01 = _mm256_unpackhi_epi32(part[0], part[1]);
        const __m256i low23 = _mm256_unpacklo_epi32(part[2], part[3]), high23 = _mm256_unpackhi_epi32(part[2], part[3]);
        out[0].v = _mm256_unpacklo_epi64(low01, low23);
        out[1].v = _mm256_unpackhi_epi64(low01, low23);
        out[2].v = _mm256_unpacklo_epi64(high01, high23);
        out[3].v = _mm256_unpackhi_epi64(high01, high23);
    }

    static void look_up(const std::uint8_t* const* codes, long from, const std::int8_t* tables,
                        const std::uint8_t* offsets, Bits* out) {
        const __m256i nibble = _mm256_set1_epi8(15);
        const std::int8_t* own[8];
        for (int r = 0; r < 8; ++r) own[r] = tables + offsets[r];
        __m256i even[4], odd[4];
        for (int i = 0; i < 4; ++i) {
            const __m256i both = pieces(codes, i, from), table = pieces(own, i, 0);
            even[i] = _mm256_shuffle_epi8(table, _mm256_and_si256(both, nibble));
            odd[i] = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble));
        }
        transpose(even, out);
        transpose(odd, out + 4);
    }

    static void store_bytes(const Bits* integers, Order order, std::int8_t* out) {
        const __m256i quads = _mm256_packs_epi16(_mm256_packs_epi32(integers[0].v, integers[1].v),
                                                 _mm256_packs_epi32(integers[2].v, integers[3].v));
        __m256i bytes = _mm256_permutevar8x32_epi32(quads, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        if (order == Order::even_first) {
            const __m128i places = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
            bytes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(places)),
                                             _MM_SHUFFLE(3, 1, 2, 0));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
    }

    Bits twice_codes(int k) const {
        const __m256i table =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
        const __m256i codes = _mm256_and_si256(_mm256_srli_epi16(v, 4 * k), _mm256_set1_epi16(15));
        // Each code is looked up into the upper byte of its word, then shifted down with its sign.
        return {_mm256_srai_epi16(_mm256_shuffle_epi8(table, _mm256_slli_epi16(codes, 8)), 8)};
    }

    static Bits scaled_codes(const std::uint8_t* low, const std::uint8_t* high, Bits factors) {
        // Upper bytes of the values times 2^11, which have no lower ones.
        const __m128i table = _mm_setr_epi8(0, 8, 16, 24, 32, 48, 64, 96, 0, -8, -16, -24, -32, -48, -64, -96);
        const auto values = [&](const std::uint8_t* p) {
            std::int32_t four;
            std::memcpy(&four, p, sizeof four);
            const __m128i bytes = _mm_cvtsi32_si128(four);
            const __m128i codes = _mm_and_si128(_mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4)), _mm_set1_epi8(15));
            return _mm256_cvtepu8_epi32(_mm_shuffle_epi8(table, codes));
        };
        const __m256i pairs = _mm256_or_si256(_mm256_slli_epi32(values(low), 8), _mm256_slli_epi32(values(high), 24));
        return {_mm256_mulhrs_epi16(pairs, factors.v)};
    }

    static void store_pairs(const Bits* integers, std::int16_t* out) {
        for (int i = 0; i < 4; i += 2) {
            const __m256i low = _mm256_permute2x128_si256(integers[i].v, integers[i + 1].v, 0x20);
            const __m256i high = _mm256_permute2x128_si256(integers[i].v, integers[i + 1].v, 0x31);
            pair({low}, {high}).store(out + i * 8);
        }
    }
};

Bits Vec::round() const { return {_mm256_cvtps_epi32(v)}; }

#include "gemm/gemm.inl"

}  // namespace

const Gemm& gemm_avx2() { return kGemm; }

}  // namespace ossia
