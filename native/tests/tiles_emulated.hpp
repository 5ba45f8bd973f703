// A matrix unit in C++ that follows Intel's manual (Software Developer's Manual, volume 2: LDTILECFG, TILELOADD,
// TILESTORED, TDPBF16PS, TDPBSSD) to the bit, so that AMX's kernels can be tested on any processor. Where a processor
// would raise an exception, the program aborts.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "amx/tiles.hpp"

namespace ossia {
namespace {

class EmulatedAmx {
  public:
    static void configure(const TileConfig& config) {
        static constexpr TileConfig kNone{};
        require(config.palette <= 1, "LDTILECFG: a palette there is not");
        if (config.palette == 0) return release();
        require(std::memcmp(config.reserved, kNone.reserved, sizeof config.reserved) == 0, "LDTILECFG: reserved bytes");
        for (int tile = 0; tile < 16; ++tile) {
            const long rows = config.rows[tile], bytes = config.row_bytes[tile];
            require(tile < kTiles || (rows == 0 && bytes == 0), "LDTILECFG: a tile there is not");
            require(rows <= kTileRows && bytes <= kTileRowBytes, "LDTILECFG: a tile too large");
            require((rows == 0) == (bytes == 0), "LDTILECFG: a tile of no rows or no bytes");
        }
        state() = {};
        state().config = config;
    }
    static void release() { state() = {}; }

    template <int kTile>
    static void load(const void* from, long stride) {
        Tile& tile = valid(kTile);
        tile = {};
        for (long row = state().config.first_row; row < rows(kTile); ++row)
            std::memcpy(tile.bytes[row], static_cast<const char*>(from) + row * stride, bytes(kTile));
        state().config.first_row = 0;
    }
    template <int kTile>
    static void store(void* to, long stride) {
        const Tile& tile = valid(kTile);
        for (long row = state().config.first_row; row < rows(kTile); ++row)
            std::memcpy(static_cast<char*>(to) + row * stride, tile.bytes[row], bytes(kTile));
        state().config.first_row = 0;
    }
    template <int kTile>
    static void zero() {
        valid(kTile) = {};
        state().config.first_row = 0;
    }
    template <int kSum, int kLeft, int kRight>
    static void multiply() {
        // Independent of the program's settings: round to nearest, numbers below 2^-126 read as 0 and rounded to 0, no
        // exceptions.
        const unsigned before = _mm_getcsr();
        _mm_setcsr(0x1F80 | 0x8000 | 0x0040);
        add<kSum, kLeft, kRight>(add_products);
        _mm_setcsr(before);
    }
    template <int kSum, int kLeft, int kRight>
    static void multiply_bytes() {
        add<kSum, kLeft, kRight>(add_products_of_bytes);
    }

  private:
    static constexpr int kTiles = 8;
    struct alignas(64) Tile {
        char bytes[kTileRows][kTileRowBytes];
    };
    struct State {
        TileConfig config;
        Tile tiles[kTiles];
    };
    static State& state() {
        static thread_local State own;
        return own;
    }
    static void require(bool condition, const char* otherwise) {
        if (condition) return;
        std::fprintf(stderr, "%s\n", otherwise);
        std::abort();
    }
    static long rows(int tile) { return state().config.rows[tile]; }
    static long bytes(int tile) { return state().config.row_bytes[tile]; }
    static Tile& valid(int tile) {
        require(state().config.palette == 1, "a tile before LDTILECFG");
        require(rows(tile) > 0 && bytes(tile) % 4 == 0, "a tile that is not configured");
        require(state().config.first_row < rows(tile), "a first row behind the last");
        return state().tiles[tile];
    }

    using Products = void(Tile& sum, const Tile& left, const Tile& right, long rows, long depth);
    template <int kSum, int kLeft, int kRight>
    static void add(Products* products) {
        require(kSum != kLeft && kSum != kRight && kLeft != kRight, "a product of one tile twice");
        Tile& sum = valid(kSum);
        const Tile &left = valid(kLeft), &right = valid(kRight);
        require(rows(kSum) == rows(kLeft) && bytes(kSum) == bytes(kRight) && bytes(kLeft) == 4 * rows(kRight),
                "a product of tiles that do not fit");
        products(sum, left, right, rows(kSum), rows(kRight));
        for (long row = 0; row < rows(kSum); ++row)
            std::memset(sum.bytes[row] + bytes(kSum), 0, kTileRowBytes - bytes(kSum));
        state().config.first_row = 0;
    }

    // Even and odd elements are summed apart, a row of the right tile after another, then together, and that is added.
    // Not inlined, because compilers do not know of the changed rounding mode.
    [[gnu::noinline]] static void add_products(Tile& sum, const Tile& left, const Tile& right, long rows, long depth) {
        constexpr int kColumns = kTileRowBytes / 4;
        for (long row = 0; row < rows; ++row) {
            float even[kColumns] = {}, odd[kColumns] = {}, total[kColumns];
            for (long k = 0; k < depth; ++k) {
                std::uint32_t pair, pairs[kColumns];
                std::memcpy(&pair, left.bytes[row] + 4 * k, sizeof pair);
                std::memcpy(pairs, right.bytes[k], sizeof pairs);
                for (int n = 0; n < kColumns; ++n) {
                    even[n] = std::fma(as_float(pair << 16), as_float(pairs[n] << 16), even[n]);
                    odd[n] = std::fma(as_float(pair & 0xFFFF0000), as_float(pairs[n] & 0xFFFF0000), odd[n]);
                }
            }
            std::memcpy(total, sum.bytes[row], sizeof total);
            for (int n = 0; n < kColumns; ++n) total[n] += even[n] + odd[n];
            std::memcpy(sum.bytes[row], total, sizeof total);
        }
    }
    // A sum that is too large wraps around.
    static void add_products_of_bytes(Tile& sum, const Tile& left, const Tile& right, long rows, long depth) {
        constexpr int kColumns = kTileRowBytes / 4;
        for (long row = 0; row < rows; ++row) {
            std::uint32_t total[kColumns];
            std::memcpy(total, sum.bytes[row], sizeof total);
            for (long k = 0; k < depth; ++k)
                for (int n = 0; n < kColumns; ++n)
                    for (int i = 0; i < 4; ++i)
                        total[n] += static_cast<std::uint32_t>(static_cast<std::int8_t>(left.bytes[row][4 * k + i]) *
                                                               static_cast<std::int8_t>(right.bytes[k][4 * n + i]));
            std::memcpy(sum.bytes[row], total, sizeof total);
        }
    }
    static float as_float(std::uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
};

}  // namespace
}  // namespace ossia
