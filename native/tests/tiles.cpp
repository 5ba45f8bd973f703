// What tests/ops/cpu/test_tiles.py asks of the emulated unit and of the check that a unit must pass:
//   tiles product KIND     reads three tiles, and writes what the product of the last two adds to the first
//   tiles refuse KIND CASE does what a processor refuses: the program is to die of it
//   tiles check            says whether the check passes a unit that is right, and each of some that are wrong
// KIND is bf16 or bytes.
#include <iostream>
#include <string>

#include "amx/amx.hpp"
#include "tiles_emulated.hpp"

namespace ossia {

namespace {

using Unit = EmulatedAmx;

TileConfig full() {
    TileConfig config{};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.rows[tile] = kTileRows;
        config.row_bytes[tile] = kTileRowBytes;
    }
    return config;
}

struct Tile {
    char bytes[kTileBytes];
};

template <int kSum, int kLeft, int kRight>
void multiply(const std::string& kind) {
    if (kind == "bf16") Unit::multiply<kSum, kLeft, kRight>();
    if (kind == "bytes") Unit::multiply_bytes<kSum, kLeft, kRight>();
}

int product(const std::string& kind) {
    TileConfig config = full();
    // 3 rows of 6 columns, 14 pairs or fours deep; rows of tiles lie 64 bytes apart all the same.
    config.rows[1] = config.rows[2] = 3;
    config.row_bytes[1] = config.row_bytes[3] = 24;
    config.row_bytes[2] = 56;
    config.rows[3] = 14;
    Unit::configure(config);
    Tile tiles[3], whole;
    std::cin.read(tiles[0].bytes, sizeof tiles);
    Unit::load<1>(tiles[0].bytes, kTileRowBytes);
    Unit::load<2>(tiles[1].bytes, kTileRowBytes);
    Unit::load<3>(tiles[2].bytes, kTileRowBytes);
    multiply<1, 2, 3>(kind);
    std::memset(whole.bytes, 0x55, sizeof whole);
    Unit::store<1>(whole.bytes, kTileRowBytes);
    std::cout.write(whole.bytes, sizeof whole);
    return 0;
}

void refuse(const std::string& kind, const std::string& what) {
    TileConfig config = full();
    Tile tile{};
    if (what == "palette") config.palette = 2;
    if (what == "no palette") config.palette = 0;
    if (what == "reserved") config.reserved[13] = 1;
    if (what == "rows") config.rows[3] = 17;
    if (what == "bytes") config.row_bytes[3] = 65;
    if (what == "no rows") config.rows[3] = 0;
    if (what == "ninth") config.rows[8] = config.row_bytes[8] = 4;
    if (what == "depth") config.rows[6] = 15;
    if (what == "uneven") config.row_bytes[0] = config.row_bytes[6] = 62;
    if (what == "none") config.rows[4] = config.row_bytes[4] = 0;
    if (what == "first row") config.first_row = 16;
    if (what != "unconfigured") Unit::configure(config);
    if (what == "released") Unit::release();
    if (what == "first row") Unit::load<0>(tile.bytes, kTileRowBytes);
    if (what == "twice") multiply<0, 4, 4>(kind);
    multiply<0, 4, 6>(kind);
}

// A unit's products in plain loops, each of which gains `error`.
template <int kError>
void dense(const Dense<bf16>& w, const void* tokens, long count, long begin, long end, void*, float* out) {
    for (long t = 0; t < count; ++t)
        for (long r = begin; r < end; ++r) {
            float sum = t == 33 ? kError : 0;
            for (long c = 0; c < w.cols; ++c) {
                bf16 x;
                std::memcpy(&x,
                            static_cast<const char*>(tokens) + place_in_tiles(t, c / kWordBlock, word_blocks(w.cols)) +
                                c % kWordBlock / 2 * kTileRowBytes + c % 2 * 2,
                            sizeof x);
                sum += widen(w.data[r * w.stride + c]) * widen(x);
            }
            out[t * kPanelRows + r - begin] = sum;
        }
}
void put(const float* x, long count, void* at) {
    for (long c = 0; c < kWordBlock; ++c) {
        const float value = c < count ? x[c] : 0;
        std::memcpy(static_cast<char*>(at) + c / 2 * kTileRowBytes + c % 2 * 2,
                    reinterpret_cast<const char*>(&value) + 2, 2);
    }
}
template <int kError>
void int8(const Int8& w, const void* tokens, long count, long begin, long end, void*, float* out) {
    for (long t = 0; t < count; ++t)
        for (long r = begin; r < end; ++r) {
            float sum = t == 33 ? kError : 0;
            for (long c = 0; c < w.cols; ++c) {
                const long group = c / kByteGroup, at = c % kByteGroup;
                const char* own = static_cast<const char*>(tokens) + place_in_byte_tiles(t, group, w.groups);
                float scale;
                std::memcpy(&scale, own + kByteGroup * kTileTokens, sizeof scale);
                const auto code = static_cast<std::int8_t>(own[at / 4 * kTileRowBytes + at % 4]);
                sum += static_cast<float>(w.codes[r * w.cols + c] * code) * w.scales[r * w.groups + group] * scale;
            }
            out[t * kPanelRows + r - begin] = sum;
        }
}
void put_bytes(const void* records, void* at) {
    for (long i = 0; i < kTileTokens; ++i)
        for (long c = 0; c < kByteGroup + 4; c += 4)
            std::memcpy(static_cast<char*>(at) + c * kTileTokens + i * 4,
                        static_cast<const char*>(records) + i * kByteRecord + c, 4);
}
constexpr ByteTileGemm kRightBytes{nullptr, int8<0>, put_bytes}, kWrongBytes{nullptr, int8<1>, put_bytes};
constexpr TileGemm kRight{nullptr, nullptr, dense<0>, nullptr, nullptr, put, &kRightBytes};
constexpr TileGemm kWrong{nullptr, nullptr, dense<1>, nullptr, nullptr, put, &kWrongBytes};

}  // namespace

const TileGemm& gemm_amx() { return kWrong; }

}  // namespace ossia

int main(int argc, char** argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "product" && argc > 2) return ossia::product(argv[2]);
    if (what == "refuse" && argc > 3) ossia::refuse(argv[2], argv[3]);
    if (what == "check")
        std::cout << ossia::multiplies(ossia::kRight) << ossia::multiplies(ossia::kWrong)
                  << ossia::multiplies(ossia::kRightBytes) << ossia::multiplies(ossia::kWrongBytes) << '\n';
    return 0;
}
