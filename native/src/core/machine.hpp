// Whole operations on tensors, spread over a thread pool. Each checks its arguments before it touches memory. It throws
// std::invalid_argument if they do not fit together, and std::out_of_range for an id or a page that does not exist.
// Unless stated otherwise, arrays are contiguous, all arrays of a call have one type, bfloat16 or float32, and the
// result is written to `y`.
#pragma once

#include <string>
#include <vector>

#include "core/array.hpp"
#include "core/pool.hpp"
#include "core/stages.hpp"
#include "gemm/gemm.hpp"
#include "kernels/kernels.hpp"
#include "ops/experts.hpp"
#include "ops/matrix.hpp"
#include "ops/pages.hpp"
#include "ops/sampling.hpp"

namespace ossia {

struct Product;
struct PagedStep;

class Machine {
  public:
    // An empty `isa` selects the best one of this processor. Throws std::invalid_argument if the processor lacks it.
    Machine(int threads, const std::string& isa);

    // The kernels of one instruction set.
    struct Form {
        const char* name;
        const Kernels& kernels;
        const Gemm& gemm;
        const char* remark = "";
    };

    std::string isa() const { return name_; }
    std::string remark() const {
        return remark_;
    }  // why a better instruction set of the processor is not used, or empty
    // Whether activations in int8 are multiplied where those in bfloat16 are; false of a matrix unit without bytes.
    bool multiplies_bytes() const { return !gemm_.tiles || gemm_.tiles->bytes; }
    int threads() const { return pool_.size(); }
    void pin() { pool_.pin(); }
    void share_threads() { pool_.share_threads(); }
    Stages& stages() { return stages_; }

    // y (..., rows), float32 or of x's type: x (..., cols) times the matrix, plus its bias and the optional residual
    // (..., rows), both of y's type. If `rounds`, x is rounded to int8 (gemm_int8.inl) for a product of more than
    // kFewTokens; the matrix is in int8, in groups of 128.
    void linear(const Array& x, const Matrix& matrix, const Array& y, const Array& residual, bool rounds);

    // The same for one x and several matrices of one type and layout.
    void linears(const Array& x, const std::vector<Matrix>& matrices, const std::vector<Array>& ys, bool rounds);

    // int8 codes (rows, cols) and float32 scales (rows, ceil(cols / group)) of a weight (rows, cols) whose rows are
    // contiguous. Throws std::invalid_argument for NaN or infinity.
    void quantize_int8(const Array& weight, const Array& codes, const Array& scales, long group);

    // MXFP4 blocks (rows, cols/32, 16) and scales (rows, cols/32), uint8, of a weight (rows, cols) whose rows are
    // contiguous. float64 sums (rows, 2): the squares of what rounding changes, and those of the weight. Throws
    // std::invalid_argument for NaN or infinity.
    void pack_mxfp4(const Array& weight, const Array& blocks, const Array& scales, const Array& sums);

    // y (rows, cols): the values of blocks and scales, which both types hold exactly.
    void unpack_mxfp4(const Array& blocks, const Array& scales, const Array& y);

    // y (tokens, rows): the first counts[0] rows of x (tokens, cols) times the first matrix of the stack, the next
    // counts[1] times the second, and so on, plus the biases; int64 counts (experts,). If `turned`, without biases, y
    // (tokens, cols) is x (tokens, rows) times the transposed matrices: the gradient of the former. MXFP4 and bfloat16
    // stacks take x of either type, float32 stacks float32.
    void grouped(const Array& x, const Array& counts, const Stack& stack, const Array& y, bool turned);

    // y (..., hidden): rows of table (count, hidden) by int64 ids (...), plus the optional residual (..., hidden). The
    // table may have its own type; its rows are contiguous.
    void embed(const Array& ids, const Array& table, const Array& y, const Array& residual);

    // y (..., size): x over its root mean square, times weight (size,).
    void rms_norm(const Array& x, const Array& weight, const Array& y, float eps, bool round_before_weight);

    // y (..., size): x with mean 0 and variance 1, times weight (size,), plus bias (size,).
    void layer_norm(const Array& x, const Array& weight, const Array& bias, const Array& y, float eps);

    // Float32 cosines and sines (..., half) of int64 positions (...) times float32 frequencies (half,), both times
    // factor.
    void rope_table(const Array& positions, const Array& frequencies, double factor, const Array& cosines,
                    const Array& sines);

    // y (tokens, heads, head_dim): the pairs (i, i + head_dim/2) of x rotated; float32 cosines and sines (tokens,
    // head_dim/2).
    void rotate(const Array& x, const Array& cosines, const Array& sines, const Array& y);

    // y of x, or of gate and up, element by element.
    void gelu(const Array& x, const Array& y);
    void swiglu(const Array& gate, const Array& up, const Array& y);
    void clamped_swiglu(const Array& gate, const Array& up, const Array& y, float limit, float alpha);

    // y (tokens, units): SwiGLU of alternating gates and ups x (tokens, 2 * units), units a multiple of 32; gpt-oss's
    // with this limit and alpha if `clamped`.
    void gate_pairs(const Array& x, const Array& y, bool clamped, float limit, float alpha);

    // y (tokens, 2 * units): the gradient of x by that of gate_pairs' result (tokens, units).
    void gate_gradient(const Array& x, const Array& gradient, const Array& y, bool clamped, float limit, float alpha);

    // y: the gradient of x by that of gelu's result; of gate and up by that of swiglu's or, if `clamped`, of
    // clamped_swiglu's.
    void gelu_gradient(const Array& x, const Array& gradient, const Array& y);
    void gated_gradient(const Array& gate, const Array& up, const Array& gradient, const Array& d_gate,
                        const Array& d_up, bool clamped, float limit, float alpha);

    // y (..., size): the layer norm of x (..., size), or its RMS norm without a bias; float32 weight and bias (size,).
    // y has its own type if x is float32.
    void norm(const Array& x, const Array& weight, const Array& bias, const Array& y, float eps,
              bool round_before_weight);

    // y, of x's type: the gradient of x by that of norm's result; float32 d_weight (size,), and d_bias of a layer norm.
    void norm_gradient(const Array& x, const Array& weight, const Array& gradient, const Array& y,
                       const Array& d_weight, const Array& d_bias, float eps);

    // float32 losses (rows, 2): of each row of logits (rows, vocab) the cross-entropy of its int64 target (rows,), and
    // the squared log-sum-exp. With `slopes` the logits become scale times the gradient of the first plus z_loss times
    // the second.
    void softmax_loss(const Array& logits, const Array& targets, const Array& losses, float scale, float z_loss,
                      bool slopes);

    // float32 y (experts, rows, cols): the gradients of the matrices that `grouped` multiplies by int64 counts
    // (experts,), of its bfloat16 x (tokens, cols) and the gradient (tokens, rows) of its result; with the optional
    // bias (experts, rows) those of the biases. If `add`, they are added to what y and bias hold.
    void weight_gradient(const Array& gradient, const Array& x, const Array& counts, const Array& y, const Array& bias,
                         bool add);

    // The indices of each token's largest logits (tokens, experts), int64 ids (tokens, chosen), and their softmax,
    // float32 weights (tokens, chosen): over the chosen ones, or over all if `softmax_first`, then divided by their sum
    // if `renormalize`.
    void route(const Array& logits, const Array& ids, const Array& weights, bool softmax_first, bool renormalize);

    // y (tokens, hidden), float32 or of x's type: the sum of the outputs of each token's experts, int64 ids (tokens,
    // chosen), by float32 weights (tokens, chosen), plus the optional residual. x (tokens, hidden), residual, biases
    // and dense experts have one type. If `rounds`, as in `linear`, for both products; experts are in MXFP4.
    void moe(const Array& x, const Array& ids, const Array& weights, const Experts& experts, const Array& y,
             const Array& residual, bool rounds);

    // Appends k and v (tokens, kv_heads, head_dim) to their pages; q (tokens, heads, head_dim) then attends over its
    // whole sequence, or over the window if `window` is not 0. Optional sinks (heads,) may have their own type.
    // Optional float32 cosines and sines (tokens, head_dim/2) rotate q and k first. Pages have q's type or int8.
    void paged_attention(const Array& q, const Array& k, const Array& v, const Array& y, const Pages& pages,
                         const Tables& tables, long window, const Array& sinks, const Array& cosines,
                         const Array& sines);

    // ids (rows,), int64: the id that each row of float32 logits (rows, vocab) samples, or -1 where it has no finite
    // largest logit. The logits change during the call and change back.
    void sample(const Array& logits, const SamplingTable& table, const Array& ids);

    // The sum of int64 words, each read once: the least that a pass over memory costs.
    std::uint64_t sum(const Array& words);

  private:
    Machine(int threads, const Form& form);

    void linear_of(const std::vector<Product>& products, const void* x, Type type, long tokens, bool rounds);
    void linear_few(const std::vector<Product>& products, const void* x, Type type, long tokens);
    void linear_few_transposed(const std::vector<Product>& products, const Floats& x, long tokens);
    void linear_many(const std::vector<Product>& products, const void* x, Type type, long tokens, bool rounds);
    void moe_few(const Array& x, const Array& ids, const Array& weights, const Experts& experts, const Array& y,
                 const Array& residual);
    void moe_many(const Array& x, const Array& ids, const Array& weights, const Experts& experts, const Array& y,
                  const Array& residual, bool rounds);

    template <class Element, class Stored>
    void paged_attention_of(const PagedStep& step, const Attend<Stored>& attend,
                            void (*turn)(const Element*, const float*, const float*, long, float, float*));

    // Handing out a small task costs more than the task.
    template <class Task>
    void run_if_large(long elements, const Task& task) {
        if (threads_for(elements) == 1) {
            task(0, 1);
        } else {
            pool_.run(task);
        }
    }
    int threads_for(long elements) const { return elements < (1L << 17) ? 1 : pool_.size(); }

    const char* name_;
    const char* remark_;
    const Kernels& kernels_;
    const Gemm& gemm_;
    Stages stages_;
    Pool pool_;
};

}  // namespace ossia
