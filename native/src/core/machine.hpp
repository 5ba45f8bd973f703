// Whole operations on raw memory, spread over the pool. Shapes are checked by the caller (ossia/ops/cpu.py), ids and
// pages here.
#pragma once

#include <string>
#include <vector>

#include "core/pool.hpp"
#include "gemm/gemm.hpp"
#include "kernels/kernels.hpp"

namespace ossia {

enum class Type { bf16, f32, int8 };  // int8: weights only

class Machine {
  public:
    // `isa` is empty for the best that this processor has. Throws std::invalid_argument for one it lacks.
    Machine(int threads, const std::string& isa);

    // An instruction set's kernels.
    struct Form {
        const char* name;
        const Kernels& kernels;
        const Gemm& gemm;
        const char* remark = "";
    };

    std::string isa() const { return name_; }
    std::string remark() const { return remark_; }  // why a better one that the processor has is not used, or empty
    int threads() const { return pool_.size(); }
    void pin() { pool_.pin(); }

    struct Linear {
        const void* weight;  // (rows, cols), rows `stride` elements apart, or columns if transposed
        Type weight_type;
        const void* bias;      // (rows,) of y's type, or null
        const void* residual;  // (tokens, rows) of y's type, or null
        long rows, cols, stride;
        bool transposed;
        void* y;  // (tokens, rows)
        Type y_type;
        const float* scales = nullptr;  // of int8 codes, contiguous: (rows, ceil(cols / group))
        long group = 1;                 // of int8 codes: columns of a scale, a multiple of 32
    };

    // For each matrix, all of one type and lie, of the same x (tokens, cols) of type `type`: y = x times the matrix,
    // plus bias, plus residual.
    void linear(const std::vector<Linear>& matrices, const void* x, Type type, long tokens);

    // Codes (rows, cols) and scales (rows, ceil(cols / group)) of the weight (rows, cols) of type `type`, rows `stride`
    // elements apart. Throws std::invalid_argument for NaN or infinity.
    void quantize_int8(const void* weight, Type type, long rows, long cols, long stride, long group, std::int8_t* codes,
                       float* scales);

    // y (rows, size): x over its root mean square, times the weight; all of type `type`.
    void rms_norm(const void* x, const void* weight, void* y, Type type, long rows, long size, float eps,
                  bool round_before_weight);

    // y (rows, size): x with mean 0 and variance 1, times the weight, plus bias; all of type `type`.
    void layer_norm(const void* x, const void* weight, const void* bias, void* y, Type type, long rows, long size,
                    float eps);

    // y (tokens, heads, head_dim): the pairs (i, i + head_dim/2) of x turned; cosines and sines (tokens, head_dim/2).
    void rotate(const void* x, const float* cosines, const float* sines, void* y, Type type, long tokens, long heads,
                long head_dim);

    // y (count,) of x, or of gate and up; all of type `type`.
    void gelu(const void* x, void* y, Type type, long count);
    void swiglu(const void* gate, const void* up, void* y, Type type, long count);
    void clamped_swiglu(const void* gate, const void* up, void* y, Type type, long count, float limit, float alpha);

    // The `chosen` largest logits of each token (tokens, experts), their places in ids and their softmax in weights
    // (tokens, chosen): over the chosen, or over all if `softmax_first`, and that divided by its sum if `renormalize`.
    void route(const void* logits, std::int64_t* ids, float* weights, Type type, long tokens, long experts, long chosen,
               bool softmax_first, bool renormalize);

    struct Experts {
        const void* weights;         // MXFP4: bytes (experts, rows, cols/32, 16); dense: of `type`
        const std::uint8_t* scales;  // MXFP4: (experts, rows, cols/32); dense: null
        const void* bias;            // (experts, rows) of `type`, or null
        long rows, cols;
        // Of dense matrices: elements from one to the next, and from row to row, or from column to column if
        // transposed.
        long expert_stride, stride;
        bool transposed;
    };

    struct MoE {
        Experts gate_up, down;
        long experts, chosen;
        bool clamped;
        float limit, alpha;
    };

    // The weighted sum of each token's chosen experts, plus residual if not null; ids (tokens, chosen), weights alike.
    // x, biases and residual of type `type`.
    void moe(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, const void* residual, void* y,
             Type type, Type y_type, long tokens);

    struct Paged {
        void* keys;  // (pages, page_size, kv_heads, head_dim), of int8 where there are scales
        void* values;
        float* key_scales;  // (pages, page_size, kv_heads) or null
        float* value_scales;
        const std::int32_t* page_table;  // (sequences, columns)
        const std::int64_t* lengths;     // (sequences,)
        const std::int64_t* query_lengths;
        long pages, page_size, columns, sequences, heads, kv_heads, head_dim;
        long window;        // 0: none
        const void* sinks;  // (heads,) or null
        Type sinks_type;
        const float* cosines;  // (tokens, head_dim/2), or null: q and k stand turned already
        const float* sines;
    };

    // Appends k and v (tokens, kv_heads, head_dim), attends, and writes y (tokens, heads, head_dim); all of type
    // `type`.
    void paged_attention(const Paged& p, const void* q, const void* k, const void* v, void* y, Type type, long tokens);

    // The sum of `count` words, read once by all threads: what a pass over memory costs at best.
    std::uint64_t sum(const std::uint64_t* words, long count);

  private:
    Machine(int threads, const Form& form);

    // Up to so many tokens a weight is multiplied as it lies; beyond, it pays to unpack it for all of them.
    static constexpr long kFewTokens = 16;
    void linear_few(const std::vector<Linear>& matrices, const void* x, Type type, long tokens);
    void linear_many(const std::vector<Linear>& matrices, const void* x, Type type, long tokens);
    void moe_few(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, const void* residual,
                 void* y, Type type, Type y_type, long tokens);
    void moe_many(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, const void* residual,
                  void* y, Type type, Type y_type, long tokens);

    // Small tasks cost less than handing them out.
    template <class Task>
    void run_if_large(long elements, const Task& task) {
        if (threads_for(elements) == 1) {
            task(0, 1);
        } else {
            pool_.run(task);
        }
    }
    int threads_for(long elements) const { return elements < (1L << 17) ? 1 : pool_.size(); }

    void linear_transposed(const std::vector<Linear>& matrices, const float* x, long tokens);

    template <class Element, class Stored>
    void paged_attention_of(const Paged& p, const Attend<Stored>& attend,
                            void (*turn)(const Element*, const float*, const float*, long, float, float*),
                            const void* q, const void* k, const void* v, void* y, long tokens);

    const char* name_;
    const char* remark_;
    const Kernels& kernels_;
    const Gemm& gemm_;
    Pool pool_;
};

}  // namespace ossia
