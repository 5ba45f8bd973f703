// A matrix unit like Intel's AMX: eight tiles of up to 16 rows of 64 bytes, and products of two tiles that are added to
// a third: of bfloat16 in float32, and of signed bytes in 32-bit integers. The kernels (gemm.inl) are written against
// this interface; `Amx` is the processor's own unit.
//
// The instructions are inline assembly because the compilers' intrinsics do not declare that they read memory: GCC 12
// drops stores to what they load.
#pragma once

#include <cstdint>

namespace ossia {

constexpr long kTileRows = 16;
constexpr long kTileRowBytes = 64;
constexpr long kTileBytes = kTileRows * kTileRowBytes;

// What LDTILECFG reads.
struct alignas(64) TileConfig {
    std::uint8_t palette, first_row;
    std::uint8_t reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64);

#if defined(__x86_64__)
struct Amx {
    static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }
    static void release() { asm volatile("tilerelease" : : : "memory"); }

    template <int kTile>
    static void load(const void* from, long stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
    }
    template <int kTile>
    static void store(void* to, long stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
    }
    template <int kTile>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(kTile) : "memory");
    }
    // Adds the products of rows of kLeft and columns of kRight, whose elements are stored in pairs, to kSum.
    template <int kSum, int kLeft, int kRight>
    static void multiply() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight) : "memory");
    }
    // The same of bytes, four at a time.
    template <int kSum, int kLeft, int kRight>
    static void multiply_bytes() {
        asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight) : "memory");
    }
};
#endif

}  // namespace ossia
