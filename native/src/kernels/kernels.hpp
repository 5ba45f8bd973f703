// The inner loops, in one form for each instruction set. A call writes rows [begin, end) of its output and nothing
// else, and sums each row in an order that depends on neither the number of threads nor that of tokens, so a token gets
// the same bits alone and in a batch.
#pragma once

#include <cstdint>
#include <cstring>

namespace ossia {

using bf16 = std::uint16_t;  // the upper half of a float32

// Static, so that each form has its own copy: a shared one could be compiled with instructions that an older processor
// lacks.
static inline std::int32_t bits_of(float value) {
    std::int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float float_of(std::int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
static inline float widen(float value) { return value; }
static inline float widen(std::int8_t value) { return value; }
static inline float widen(bf16 value) {
    return float_of(static_cast<std::int32_t>(static_cast<std::uint32_t>(value) << 16));
}

// A dense matrix: element (r, c) at r * stride + c, or at c * stride + r if it is transposed, as in GPT-2's
// checkpoints.
template <class Weight>
struct Dense {
    const Weight* data;
    long stride;
    long cols;
    bool transposed;
};

// Tokens, `stride` elements apart.
template <class Element>
struct Tokens {
    const Element* data;
    long stride;
};
using Floats = Tokens<float>;

// Tokens that are a multiple of 4 KB apart would share the lines of the first-level cache, so there is a line between.
constexpr long padded(long cols, long line) { return (cols + line - 1) / line * line + line; }

// Up to this many tokens, weights are multiplied in their stored form; beyond, unpacking them first pays.
constexpr long kFewTokens = 16;

constexpr long kMostGroup = 256;  // columns: the sum of so many products of int8 and int16 is exact in 32 bits

// A matrix of int8 codes: `groups` scales per row, each for `group` columns, the last for what is left.
struct Int8 {
    const std::int8_t* codes;
    const float* scales;
    long cols, group, groups;
};

// Tokens in the form that the int8 kernels read: integer multiples of a power of two, one power for each group of
// columns. A bfloat16 is exact unless it is 128 times smaller than its group's largest.
struct Words {
    const std::int16_t* words;  // (tokens, stride), aligned to 64 bytes, in a layout of the form's own
    const float* scales;        // (tokens, groups), NaN where the group holds NaN or infinity
    long stride, groups;
};

// Rows of an MXFP4 matrix: cols/2 bytes of codes and cols/32 bytes of scales each.
struct Packed {
    const std::uint8_t* blocks;
    const std::uint8_t* scales;
    long cols;
};

// An MXFP4 matrix turned over: row r is column r of the stored one, which has `cols` rows of `blocks_of_row` blocks.
struct Turned {
    const std::uint8_t* blocks;
    const std::uint8_t* scales;
    long cols, blocks_of_row;

    long at(long row, long col) const { return col * blocks_of_row + row / 32; }  // the block of an element
    const std::uint8_t* codes(long row, long col) const { return blocks + at(row, col) * 16 + row % 32 / 2; }
};

// The input of attention over the pages of one sequence.
template <class Element>
struct Cache {
    const Element* keys;  // (pages, page_size, kv_heads, head_dim)
    const Element* values;
    const float* key_scales;  // (pages, page_size, kv_heads), of int8 only
    const float* value_scales;
    const std::int32_t* pages;  // the sequence's row of the page table
    long page_size, kv_heads, head_dim;
};

// Attention under one key head. Queries and sinks are multiplied by log2(e), and queries by 1/sqrt(head_dim).
template <class Element>
struct Attend {
    // One query token, its heads q (group, head_dim), over positions [first, last): out (group, head_dim) is the sum of
    // 2^(score - maximum) * value, and totals (group,) that of 2^(score - maximum).
    void (*token)(const Cache<Element>&, const float* q, long group, long kv_head, long first, long last, float* maxima,
                  float* totals, float* out);

    // Query tokens at `position` and after, q (queries, group, head_dim): out alike. `window` 0 is none; sinks (group,)
    // or null.
    void (*block)(const Cache<Element>&, const float* q, const float* sinks, long group, long queries, long kv_head,
                  long position, long window, float* scratch, float* out);

    // `block` in integers, with an error of some 1e-4; null where that is no faster.
    void (*words)(const Cache<Element>&, const float* q, const float* sinks, long group, long queries, long kv_head,
                  long position, long window, float* scratch, float* out);
};

// Operations between the matrix products, on numbers of type Element; see rowwise.inl.
template <class Element>
struct Rowwise {
    void (*rms_norm)(const Element* x, const Element* weight, Element* y, long size, float eps,
                     bool round_before_weight);
    void (*layer_norm)(const Element* x, const Element* weight, const Element* bias, Element* y, long size, float eps);
    void (*rotate)(const Element* x, const float* cosines, const float* sines, Element* y, long half);
    void (*gelu)(const Element* x, Element* y, long count);
    void (*swiglu)(const Element* gate, const Element* up, Element* y, long count);
    void (*clamped_swiglu)(const Element* gate, const Element* up, Element* y, long count, float limit, float alpha);
    void (*finish)(const float* x, const Element* bias, const Element* residual, Element* y, long count);
};

// Gradients of these, and the loss; see gradients.inl.
template <class Element>
struct Gradients {
    void (*gelu)(const Element* x, const Element* gradient, Element* y, long count);
    void (*gated)(const Element* gate, const Element* up, const Element* gradient, Element* d_gate, Element* d_up,
                  long count, bool clamped, float limit, float alpha);
    void (*softmax_loss)(Element* logits, long count, long target, float scale, float z_loss, bool slopes,
                         float* scratch, float* losses);
};

// Norms of numbers of type In with a result of type Out, and their gradients: layer norms, or RMS norms if bias or
// d_bias is null. d_weight and d_bias are added to.
template <class In, class Out>
struct Normal {
    void (*norm)(const In* x, const float* weight, const float* bias, Out* y, long size, float eps,
                 bool round_before_weight);
    void (*gradient)(const In* x, const float* weight, const Out* gradient, In* y, float* d_weight, float* d_bias,
                     long size, float eps);
};

// What training computes between its products.
struct Training {
    Gradients<bf16> gradients_bf16;
    Gradients<float> gradients_f32;
    Normal<bf16, bf16> normal_bf16;
    Normal<float, bf16> normal_narrowed;
    Normal<float, float> normal_f32;

    // The tables for pointers' types.
    const Gradients<bf16>& gradients(const bf16*) const { return gradients_bf16; }
    const Gradients<float>& gradients(const float*) const { return gradients_f32; }
    const Normal<bf16, bf16>& normal(const bf16*, const bf16*) const { return normal_bf16; }
    const Normal<float, bf16>& normal(const float*, const bf16*) const { return normal_narrowed; }
    const Normal<float, float>& normal(const float*, const float*) const { return normal_f32; }
};

// A logit x weighs the power of two (x - largest) * scale, as a whole number of 2^-kWeightBits. Powers fall into bins;
// what is beyond the last bin weighs 0.
constexpr int kWeightBits = 40;
constexpr int kBinsPerPower = 16;
constexpr int kBins = (kWeightBits + 1) * kBinsPerPower;

// Passes over the logits x (count,) of a row, or of a part of it; see sampling.inl.
struct Weighing {
    float (*largest)(const float* x, long count);  // NaN if there is NaN or +infinity
    void (*weigh)(const float* x, long count, float largest, float scale, std::int64_t* weights);
    std::int64_t (*total)(const float* x, long count, float largest, float scale);

    // Adds the weights to the totals (kBins + 1,) of their bins, and unless `counts` is null their number to those.
    void (*histogram)(const float* x, long count, float largest, float scale, std::int64_t* totals,
                      std::int32_t* counts);

    // The indices of the logits in a bin; `found` has room for count + 1.
    long (*in_bin)(const float* x, long count, float largest, float scale, int bin, std::int32_t* found);
};

struct Kernels {
    const char* name;

    // y[t * y_stride + r] = sum_c w[r][c] * x[t][c]
    void (*dense_bf16)(const Dense<bf16>&, const Floats& x, long tokens, float* y, long y_stride, long begin, long end);
    void (*dense_f32)(const Dense<float>&, const Floats& x, long tokens, float* y, long y_stride, long begin, long end);

    // The same for words in the groups of the matrix and at most kFewTokens tokens; if `add`, it is added to y.
    void (*dense_int8)(const Int8&, const Words& x, long tokens, bool add, float* y, long y_stride, long begin,
                       long end);

    // A token's words, `words_size(cols, group)` of 16 bits, and its scales. The rounding error goes to `rest` (cols,)
    // unless that is null.
    long (*words_size)(long cols, long group);
    void (*words_bf16)(const bf16* x, long cols, long group, std::int16_t* words, float* scales, float* rest);
    void (*words_f32)(const float* x, long cols, long group, std::int16_t* words, float* scales, float* rest);

    // A row's nearest codes and scales. Returns false, with undefined results, if it holds NaN or infinity.
    bool (*codes_bf16)(const bf16* x, long cols, long group, std::int8_t* codes, float* scales);
    bool (*codes_f32)(const float* x, long cols, long group, std::int8_t* codes, float* scales);

    // MXFP4 codes and scales of `count` blocks. The squares of what rounding changes are added to sums[0], those of x
    // to sums[1]. Returns false, with undefined results, if x holds NaN or infinity.
    bool (*pack_bf16)(const bf16* x, long count, std::uint8_t* codes, std::uint8_t* scales, double* sums);
    bool (*pack_f32)(const float* x, long count, std::uint8_t* codes, std::uint8_t* scales, double* sums);

    // The values of `count` blocks.
    void (*unpack_bf16)(const std::uint8_t* codes, const std::uint8_t* scales, long count, bf16* y);
    void (*unpack_f32)(const std::uint8_t* codes, const std::uint8_t* scales, long count, float* y);

    std::uint64_t (*sum)(const std::uint64_t* words, long count);

    // Activations in the form that the packed kernel reads: int16 with one scale per token, in a layout of the form's
    // own, `quantized_size(cols)` words aligned to 64 bytes. The rounding error goes to `rest` (cols,) unless that is
    // null. A token with NaN or infinity gets a NaN scale.
    long (*quantized_size)(long cols);
    void (*quantize)(const float* x, long cols, std::int16_t* words, float* scale, float* rest);

    // y[t][r - begin] for `tokens` pointers to quantized tokens.
    void (*packed)(const Packed&, const std::int16_t* const* words, const float* scales, long tokens, float* const* y,
                   long begin, long end);

    // y = scale * x (dim,), its pairs (i, i + dim/2) rotated first unless cosines are null.
    void (*turn_bf16)(const bf16* x, const float* cosines, const float* sines, long dim, float scale, float* y);
    void (*turn_f32)(const float* x, const float* cosines, const float* sines, long dim, float scale, float* y);

    // Floats, aligned to 64 bytes, that `block` and `words` take for queries * group rows.
    long (*attend_scratch)(long rows, long head_dim);
    long (*words_scratch)(long rows, long head_dim);
    Attend<bf16> attend_bf16;
    Attend<float> attend_f32;
    Attend<std::int8_t> attend_int8;

    Rowwise<bf16> rowwise_bf16;
    Rowwise<float> rowwise_f32;

    // Cosines and sines (half,) of position * frequencies (half,), both times factor.
    void (*turns)(float position, const float* frequencies, long half, double factor, float* cosines, float* sines);

    Weighing weighing;

    Training training;

    // As dense_bf16 of a matrix with contiguous rows, by products of pairs of bfloat16 numbers, which flush numbers
    // below 2^-126 to 0; null where there are none.
    void (*dense_pairs)(const Dense<bf16>&, const Tokens<bf16>& x, long tokens, float* y, long y_stride, long begin,
                        long end) = nullptr;

    // The table for a pointer's type.
    const Rowwise<bf16>& rowwise(const bf16*) const { return rowwise_bf16; }
    const Rowwise<float>& rowwise(const float*) const { return rowwise_f32; }
};

const Kernels& kernels_portable();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512_bf16();
const Kernels& kernels_neon();

}  // namespace ossia
