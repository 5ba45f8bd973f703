// Products of many tokens. A panel of rows is unpacked, or laid out anew, into a buffer in the first cache and used at
// once for all tokens, so a weight is read and unpacked once however many tokens there are.
//
// Weights in MXFP4, int8 and bfloat16 meet activations in bfloat16 as words: integers of 13 bits and a sign that share
// a power of two in each block of 32 columns. A block's products are summed without error in 32-bit integers, twice as
// fast as floats are multiplied. A bfloat16 has 8 bits, so an element is exact unless it is 32 times smaller than its
// block's largest; what is lost is at most 2^-13 of that one, a hundredth of what bfloat16 itself has lost. What is
// float32 stays float32.
#pragma once

#include <cstdint>
#include <variant>

#include "kernels/kernels.hpp"

namespace ossia {

constexpr long kWordBlock = 32;  // columns that share a power of two
constexpr long kPanelRows = 64;  // rows that are unpacked together: of gate and up, those of one block of hidden units
constexpr long kPanelBytes =
    18432;  // of a panel: more than half of the first cache, which two threads may share, is slower
constexpr long kManyTokens = 256;  // whose products are held at a time: with a panel they stay in the second cache, and
                                   // beside so many unpacking costs little

using Matrix = std::variant<Packed, Dense<bf16>, Int8, Dense<float>>;

inline long word_blocks(long cols) { return (cols + kWordBlock - 1) / kWordBlock; }

// A token's words and then, as floats, the scales of its blocks: so many bytes.
inline long words_size(long cols) { return word_blocks(cols) * (kWordBlock * 2 + 4); }

// Tokens as a matrix unit reads them: tiles of kTileTokens, block after block. A block's columns lie two by two, those
// of all the tokens of a tile side by side. Where the first pair of a token's block begins, in bytes:
constexpr long kTileTokens = 16;
inline long place_in_tiles(long token, long block, long blocks) {
    return (token / kTileTokens * blocks + block) * kTileTokens * kWordBlock * 2 + token % kTileTokens * 4;
}

// Dense SwiGLU, or gpt-oss's: the gate bounded above, the other factor on both sides and offset by 1.
struct Activation {
    bool clamped;
    float limit, alpha;
};

// Products on a matrix unit, of activations in bfloat16.
struct TileGemm {
    // `memory` has kTileMemoryBytes bytes and lies at a multiple of 64, and so do the tokens, kManyTokens at most, the
    // first of which begins a tile. `out` is what `tile` is below.
    void (*packed)(const Packed&, const void* tokens, long count, long begin, long end, void* memory, float* out);
    void (*dense)(const Dense<bf16>&, const void* tokens, long count, long begin, long end, void* memory, float* out);
    void (*int8)(const Int8&, const void* tokens, long count, long begin, long end, void* memory, float* out);

    // Writes a token's block of `count` columns, the last of kWordBlock 0 if it has fewer; floats are rounded.
    void (*put_bf16)(const bf16* x, long count, void* at);
    void (*put_f32)(const float* x, long count, void* at);
};
constexpr long kTileMemoryBytes = 86016;

struct Gemm {
    // `panel` has kPanelBytes bytes and lies at a multiple of 64. tile (tokens, kPanelRows) gets, or if `add` gains,
    // rows [begin, end) of the matrix times each token, `end - begin` at most kPanelRows; what follows these in a
    // tile's row is undefined.
    void (*packed)(const Packed&, const void* const* words, long tokens, long begin, long end, bool add, void* panel,
                   float* tile);
    void (*bf16_words)(const Dense<bf16>&, const void* const* words, long tokens, long begin, long end, bool add,
                       void* panel, float* tile);
    void (*int8_words)(const Int8&, const void* const* words, long tokens, long begin, long end, bool add, void* panel,
                       float* tile);
    void (*f32_floats)(const Dense<float>&, const void* const* floats, long tokens, long begin, long end, bool add,
                       void* panel, float* tile);

    // Writes blocks [first, first + word_blocks(count)) of a token of `cols` columns. A block with NaN or infinity gets
    // a NaN scale. What rounding leaves goes to `rest`, unless that is null.
    void (*quantize_bf16)(const bf16* x, long count, long cols, long first, void* words, float* rest);
    void (*quantize_f32)(const float* x, long count, long cols, long first, void* words, float* rest);

    // out[i] of the pair tile[2i], tile[2i + 1] of gate and up, plus bias, for kWordBlock pairs.
    void (*gate)(const Activation&, const float* tile, const float* bias, float* out);

    // sum[r] += weight * (tile[r] + bias[r]) for kPanelRows rows.
    void (*accumulate)(const float* tile, const float* bias, float weight, float* sum);

    const TileGemm* tiles = nullptr;  // where there is a matrix unit
};

const Gemm& gemm_portable();
const Gemm& gemm_avx2();
const Gemm& gemm_avx512();
const TileGemm& gemm_amx();
#if defined(OSSIA_EMULATE_AMX)
const TileGemm& gemm_amx_emulated();  // native/tests
#endif

}  // namespace ossia
