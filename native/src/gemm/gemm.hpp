// Products of many tokens. A panel of rows is unpacked or re-laid into a buffer in the first-level cache and used for
// all tokens at once, so a weight is read and unpacked once however many tokens there are.
//
// Activations in bfloat16 are multiplied with weights in MXFP4, int8 and bfloat16 as words: integers of 13 bits and a
// sign that share a power of two in each block of 32 columns. Sums of a block's products are exact in 32-bit integers,
// at twice the speed of float multiplication. A bfloat16 has 8 bits, so an element is exact unless it is 32 times
// smaller than its block's largest; the error is at most 2^-13 of that one, a hundredth of bfloat16's own. float32 with
// float32 is multiplied as float32.
#pragma once

#include <cstdint>
#include <variant>

#include "kernels/kernels.hpp"

namespace ossia {

constexpr long kWordBlock = 32;      // columns that share a power of two
constexpr long kPanelRows = 64;      // rows unpacked together; of gate and up, those of one block of hidden units
constexpr long kPanelBytes = 18432;  // more than half of the first-level cache, which two threads may share, is slower
// Tokens whose products are held at a time: with a panel they fit the second-level cache, and they amortize unpacking.
constexpr long kManyTokens = 256;

using AnyMatrix = std::variant<Packed, Turned, Dense<bf16>, Int8, Dense<float>>;

// Columns that share a scale where activations are multiplied as bytes (gemm_int8.inl), as those of int8 weights do.
constexpr long kByteGroup = 128;
constexpr long byte_groups(long cols) { return (cols + kByteGroup - 1) / kByteGroup; }

// Bytes of a token's codes and, behind them, for each group a float scale and an integer that starts its sums.
constexpr long bytes_size(long cols) { return byte_groups(cols) * (kByteGroup + 8); }

// The order of a token's codes within 32 columns: as they are, for int8 weights, or those of even columns first, as the
// nibbles of MXFP4's bytes are unpacked.
enum class Order { plain, even_first };

inline long word_blocks(long cols) { return (cols + kWordBlock - 1) / kWordBlock; }

// Bytes of a token's words and, behind them, its blocks' float scales.
inline long words_size(long cols) { return word_blocks(cols) * (kWordBlock * 2 + 4); }

// Tokens in the layout that a matrix unit reads: tiles of kTileTokens tokens, block after block; within a block, pairs
// of columns, each interleaved over the tile's tokens. The offset of the first pair of a token's block, in bytes:
constexpr long kTileTokens = 16;
inline long place_in_tiles(long token, long block, long blocks) {
    return (token / kTileTokens * blocks + block) * kTileTokens * kWordBlock * 2 + token % kTileTokens * 4;
}

// A token's bytes of one group alone.
constexpr long kByteRecord = bytes_size(kByteGroup);

// Tokens' bytes as a matrix unit reads them: tiles of kTileTokens tokens, group after group; of a group the codes, four
// columns at a time interleaved over the tile's tokens, and then the tokens' float scales. The offset of a token's
// first codes in a group, in bytes:
constexpr long kByteTileBytes = kTileTokens * (kByteGroup + 4);  // of a tile's group
inline long place_in_byte_tiles(long token, long group, long groups) {
    return (token / kTileTokens * groups + group) * kByteTileBytes + token % kTileTokens * 4;
}

// SwiGLU, or gpt-oss's variant: the gate clamped above, the other factor clamped on both sides and offset by 1.
struct Activation {
    bool clamped;
    float limit, alpha;
};

// Products on a matrix unit of activations in int8, with the bits of ByteGemm's.
struct ByteTileGemm {
    // As TileGemm's below.
    void (*packed)(const Packed&, const void* tokens, long count, long begin, long end, void* memory, float* out);
    void (*int8)(const Int8&, const void* tokens, long count, long begin, long end, void* memory, float* out);

    // Writes a group of a tile from its tokens' records, kByteRecord bytes each.
    void (*put)(const void* records, void* at);
};

// Products on a matrix unit, of activations in bfloat16.
struct TileGemm {
    // `memory` has kTileMemoryBytes bytes, aligned to 64, as are the tokens; there are at most kManyTokens, and the
    // first begins a tile. `out` is `tile` below.
    void (*packed)(const Packed&, const void* tokens, long count, long begin, long end, void* memory, float* out);
    void (*turned)(const Turned&, const void* tokens, long count, long begin, long end, void* memory, float* out);
    void (*dense)(const Dense<bf16>&, const void* tokens, long count, long begin, long end, void* memory, float* out);
    void (*int8)(const Int8&, const void* tokens, long count, long begin, long end, void* memory, float* out);

    // Writes a tile of kTileTokens tokens of `cols` columns, padded with zeros to blocks; a null token is zeros.
    void (*put_rows)(const bf16* const* rows, long cols, void* at);
    // Writes a token's block of `count` columns, padded with zeros to kWordBlock and rounded.
    void (*put_f32)(const float* x, long count, void* at);

    const ByteTileGemm* bytes;  // null for a unit without products of bytes
};
constexpr long kTileMemoryBytes = 86016;

// Products of activations in int8 with weights in MXFP4 and int8 (groups of kByteGroup); see gemm_int8.inl.
struct ByteGemm {
    // As Gemm's products below.
    void (*packed)(const Packed&, const void* const* bytes, long tokens, long begin, long end, void* panel,
                   float* tile);
    void (*int8)(const Int8&, const void* const* bytes, long tokens, long begin, long end, void* panel, float* tile);

    // Writes groups [first, first + byte_groups(count)) of a token of `cols` columns. A group with NaN or infinity gets
    // a NaN scale.
    void (*quantize_bf16)(const bf16* x, long count, long cols, long first, Order order, void* bytes);
    void (*quantize_f32)(const float* x, long count, long cols, long first, Order order, void* bytes);
};

struct Gemm {
    // `panel` has kPanelBytes bytes, aligned to 64. tile (tokens, kPanelRows) is set to rows [begin, end) of the matrix
    // times each token, or they are added to it if `add`; `end - begin` is at most kPanelRows. The rest of a tile's row
    // is undefined.
    void (*packed)(const Packed&, const void* const* words, long tokens, long begin, long end, bool add, void* panel,
                   float* tile);
    void (*turned)(const Turned&, const void* const* words, long tokens, long begin, long end, bool add, void* panel,
                   float* tile);
    void (*bf16_words)(const Dense<bf16>&, const void* const* words, long tokens, long begin, long end, bool add,
                       void* panel, float* tile);
    void (*int8_words)(const Int8&, const void* const* words, long tokens, long begin, long end, bool add, void* panel,
                       float* tile);
    void (*f32_floats)(const Dense<float>&, const void* const* floats, long tokens, long begin, long end, bool add,
                       void* panel, float* tile);
    void (*packed_floats)(const Packed&, const void* const* floats, long tokens, long begin, long end, bool add,
                          void* panel, float* tile);
    void (*turned_floats)(const Turned&, const void* const* floats, long tokens, long begin, long end, bool add,
                          void* panel, float* tile);
    void (*bf16_floats)(const Dense<bf16>&, const void* const* floats, long tokens, long begin, long end, bool add,
                        void* panel, float* tile);

    // Writes blocks [first, first + word_blocks(count)) of a token of `cols` columns. A block with NaN or infinity gets
    // a NaN scale. The rounding error goes to `rest` unless that is null.
    void (*quantize_bf16)(const bf16* x, long count, long cols, long first, void* words, float* rest);
    void (*quantize_f32)(const float* x, long count, long cols, long first, void* words, float* rest);

    // out[i] of the pair tile[2i], tile[2i + 1] of gate and up, plus bias, for kWordBlock pairs.
    void (*gate)(const Activation&, const float* tile, const float* bias, float* out);

    // The same for pairs of gate and up themselves, and the gradient of the pairs by that of the result.
    void (*gate_bf16)(const Activation&, const bf16* pairs, float* out);
    void (*gate_f32)(const Activation&, const float* pairs, float* out);
    void (*gate_gradient_bf16)(const Activation&, const bf16* pairs, const bf16* gradient, float* out);
    void (*gate_gradient_f32)(const Activation&, const float* pairs, const float* gradient, float* out);

    // sum[r] += weight * (tile[r] + bias[r]) for kPanelRows rows.
    void (*accumulate)(const float* tile, const float* bias, float weight, float* sum);

    const ByteGemm& bytes;

    // As bf16_words of an even number of columns, with tokens in bfloat16 as they lie and products of pairs; see
    // Kernels::dense_pairs. Null where there are none.
    void (*bf16_pairs)(const Dense<bf16>&, const Tokens<bf16>&, long tokens, long begin, long end, void* panel,
                       float* tile) = nullptr;

    const TileGemm* tiles = nullptr;  // null without a matrix unit
};

const Gemm& gemm_portable();
const Gemm& gemm_avx2();
const Gemm& gemm_avx512();
const Gemm& gemm_avx512_bf16();
const TileGemm& gemm_amx();
#if defined(OSSIA_EMULATE_AMX)
const TileGemm& gemm_amx_emulated();  // native/tests
#endif

}  // namespace ossia
