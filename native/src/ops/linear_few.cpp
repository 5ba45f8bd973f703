// Linear layers over few tokens: weights are multiplied in place.
#include <algorithm>
#include <memory>

#include "core/machine.hpp"
#include "core/numbers.hpp"
#include "ops/product.hpp"

namespace ossia {

namespace {

constexpr long kGrain = 16;    // rows
constexpr long kColumns = 96;  // of a transposed matrix, summed at a time

long size_of(Type type) { return type == Type::int8 ? 1 : type == Type::bf16 ? 2 : 4; }

// Rows that a thread takes at a time: 128 KB, ten times as long to read as to claim.
long piece(const Product& w) {
    const long rows = (1L << 17) / (size_of(w.weight_type) * std::max(w.cols, 1L));
    return std::max(rows / kGrain * kGrain, kGrain);
}

// Whether the kernels read tokens in bfloat16.
bool as_pairs(const Kernels& kernels, const Product& w) {
    return kernels.dense_pairs && w.weight_type == Type::bf16 && !w.transposed;
}

// Few tokens in the form that the kernels read: floats, bfloat16, or words for int8 weights. Words are finer than
// bfloat16 but coarser than float32, so for float32 the rounding error becomes words too and its products are added.
class Inputs {
  public:
    Inputs(const Kernels& kernels, const Product& w, const void* x, Type type, long tokens) {
        if (as_pairs(kernels, w)) {
            set_narrow(static_cast<const bf16*>(x), tokens, w.cols);
            return;
        }
        if (w.weight_type != Type::int8) {
            set_floats(x, type, tokens, w.cols);
            return;
        }
        constexpr long kLineWords = 32;
        const long groups = w.int8().groups, stride = padded(kernels.words_size(w.cols, w.group), kLineWords);
        const int parts = type == Type::f32 ? 2 : 1;
        words_ = lines<std::int16_t>(parts * tokens * stride);
        scales_.reset(new float[parts * tokens * groups]);
        for (int part = 0; part < parts; ++part)
            words_of_.push_back(
                {words_.get() + part * tokens * stride, scales_.get() + part * tokens * groups, stride, groups});
        if (type == Type::f32) storage_.resize(w.cols);
        for (long t = 0; t < tokens; ++t) {
            std::int16_t* const words = words_.get() + t * stride;
            float* const scales = scales_.get() + t * groups;
            if (type == Type::bf16) {
                kernels.words_bf16(static_cast<const bf16*>(x) + t * w.cols, w.cols, w.group, words, scales, nullptr);
                continue;
            }
            kernels.words_f32(static_cast<const float*>(x) + t * w.cols, w.cols, w.group, words, scales,
                              storage_.data());
            kernels.words_f32(storage_.data(), w.cols, w.group, words + tokens * stride, scales + tokens * groups,
                              nullptr);
        }
    }

    const Floats& as_floats() const { return floats_; }
    const Tokens<bf16>& as_narrow() const { return narrow_; }
    const std::vector<Words>& words() const { return words_of_; }

  private:
    void set_floats(const void* x, Type type, long tokens, long cols) {
        if (tokens == 1 && type == Type::f32) {
            floats_ = {static_cast<const float*>(x), cols};
            return;
        }
        constexpr long kLineFloats = 16;
        const long stride = padded(cols, kLineFloats);
        copy_ = lines<float>(tokens * stride);
        for (long t = 0; t < tokens; ++t)
            for (long c = 0; c < cols; ++c) copy_[t * stride + c] = read(x, type, t * cols + c);
        floats_ = {copy_.get(), stride};
    }

    void set_narrow(const bf16* x, long tokens, long cols) {
        narrow_ = {x, cols};
        if (tokens == 1) return;
        constexpr long kLineNumbers = 32;
        const long stride = padded(cols, kLineNumbers);
        narrow_copy_ = lines<bf16>(tokens * stride);
        for (long t = 0; t < tokens; ++t) std::copy_n(x + t * cols, cols, narrow_copy_.get() + t * stride);
        narrow_ = {narrow_copy_.get(), stride};
    }

    Tokens<bf16> narrow_{};
    Lines<bf16> narrow_copy_;
    Floats floats_{};
    Lines<float> copy_;
    std::vector<float> storage_;
    Lines<std::int16_t> words_;
    std::unique_ptr<float[]> scales_;
    std::vector<Words> words_of_;
};

void products_of(const Kernels& kernels, const Product& w, const Inputs& inputs, float* products, long tokens,
                 Share rows) {
    const Floats& x = inputs.as_floats();
    if (w.weight_type == Type::int8) {
        bool add = false;
        for (const Words& words : inputs.words()) {
            kernels.dense_int8(w.int8(), words, tokens, add, products, w.rows, rows.begin, rows.end);
            add = true;
        }
    } else if (w.weight_type == Type::bf16) {
        const Dense<bf16> matrix{static_cast<const bf16*>(w.weight), w.stride, w.cols, w.transposed};
        if (as_pairs(kernels, w)) {
            kernels.dense_pairs(matrix, inputs.as_narrow(), tokens, products, w.rows, rows.begin, rows.end);
        } else {
            kernels.dense_bf16(matrix, x, tokens, products, w.rows, rows.begin, rows.end);
        }
    } else {
        const Dense<float> matrix{static_cast<const float*>(w.weight), w.stride, w.cols, w.transposed};
        kernels.dense_f32(matrix, x, tokens, products, w.rows, rows.begin, rows.end);
    }
}

// Rows [begin, end) of y = x w + bias + residual.
template <class Out>
void linear_rows(const Kernels& kernels, const Product& w, const Inputs& x, float* products, long tokens, Share rows) {
    products_of(kernels, w, x, products, tokens, rows);
    Out* y = static_cast<Out*>(w.y);
    if (static_cast<void*>(products) == w.y && !w.bias && !w.residual) return;
    const Out *bias = static_cast<const Out*>(w.bias), *residual = static_cast<const Out*>(w.residual);
    for (long t = 0; t < tokens; ++t) {
        const long at = t * w.rows + rows.begin;
        kernels.rowwise(y).finish(products + at, bias ? bias + rows.begin : nullptr, residual ? residual + at : nullptr,
                                  y + at, rows.end - rows.begin);
    }
}

// The rows of the transposed matrix that begins at `first` and continues in the next ones, as GPT-2's queries, keys and
// values do.
template <class Weight>
long rows_together(const std::vector<Product>& matrices, std::size_t first, std::size_t* last) {
    const Product& w = matrices[first];
    long rows = 0;
    for (*last = first; *last < matrices.size(); ++*last) {
        const Product& next = matrices[*last];
        if (next.weight != static_cast<const Weight*>(w.weight) + rows || next.stride != w.stride) break;
        rows += next.rows;
    }
    return rows;
}

// sums (rows) = columns [first, first + count) of the matrices, one below the other, times those of x.
template <class Weight>
void add_columns(const Kernels& kernels, const std::vector<Product>& matrices, const float* x, long first, long count,
                 float* sums) {
    for (std::size_t i = 0, last = 0; i < matrices.size(); i = last) {
        const Product& w = matrices[i];
        const long rows = rows_together<Weight>(matrices, i, &last);
        const Dense<Weight> part{static_cast<const Weight*>(w.weight) + first * w.stride, w.stride, count, true};
        if constexpr (sizeof(Weight) == sizeof(bf16)) {
            kernels.dense_bf16(part, {x + first, count}, 1, sums, rows, 0, rows);
        } else {
            kernels.dense_f32(part, {x + first, count}, 1, sums, rows, 0, rows);
        }
        sums += rows;
    }
}

}  // namespace

// A transposed matrix has contiguous columns: threads take a fixed number of columns at a time, and the partial sums
// are added in the order of the columns, whichever thread computed them.
void Machine::linear_few_transposed(const std::vector<Product>& matrices, const Floats& x, long tokens) {
    const long cols = matrices.front().cols, parts = (cols + kColumns - 1) / kColumns;
    long rows = 0;
    for (const Product& w : matrices) rows += w.rows;
    const std::unique_ptr<float[]> sums(new float[parts * tokens * rows]);
    Pieces pieces(parts, 1, 1, threads_for(rows * cols));
    run_if_large(rows * cols, [&](int thread, int) {
        pieces.take(thread, [&](long part, long) {
            const long first = part * kColumns, count = std::min(kColumns, cols - first);
            for (long t = 0; t < tokens; ++t) {
                float* to = sums.get() + (part * tokens + t) * rows;
                const float* const token = x.data + t * x.stride;
                if (matrices.front().weight_type == Type::bf16) {
                    add_columns<bf16>(kernels_, matrices, token, first, count, to);
                } else {
                    add_columns<float>(kernels_, matrices, token, first, count, to);
                }
            }
        });
    });
    run_if_large(rows * cols, [&](int thread, int threads) {
        long above = 0;
        for (const Product& w : matrices) {
            const Share mine = share(w.rows, kGrain, thread, threads);
            for (long t = 0; t < tokens; ++t) {
                float* total = sums.get() + t * rows + above + mine.begin;
                for (long part = 1; part < parts; ++part)
                    for (long r = 0; r < mine.end - mine.begin; ++r) total[r] += total[part * tokens * rows + r];
                with_type(w.y_type, [&](auto element) {
                    using Out = decltype(element);
                    const long at = t * w.rows + mine.begin;
                    const Out *bias = static_cast<const Out*>(w.bias), *residual = static_cast<const Out*>(w.residual);
                    kernels_.rowwise(&element).finish(total, bias ? bias + mine.begin : nullptr,
                                                      residual ? residual + at : nullptr, static_cast<Out*>(w.y) + at,
                                                      mine.end - mine.begin);
                });
            }
            above += w.rows;
        }
    });
}

void Machine::linear_few(const std::vector<Product>& matrices, const void* x, Type type, long tokens) {
    const Inputs inputs(kernels_, matrices.front(), x, type, tokens);
    if (matrices.front().transposed) return linear_few_transposed(matrices, inputs.as_floats(), tokens);
    // Memory for the products; a float32 result takes them in place.
    long elements = 0, size = 0;
    for (const Product& w : matrices) {
        elements += w.rows * w.cols;
        if (w.y_type != Type::f32) size += tokens * w.rows;
    }
    const std::unique_ptr<float[]> products(new float[size]);
    std::vector<Pieces> pieces;
    pieces.reserve(matrices.size());
    for (const Product& w : matrices) pieces.emplace_back(w.rows, kGrain, piece(w), threads_for(elements));
    run_if_large(elements, [&](int thread, int) {
        float* free = products.get();
        for (std::size_t i = 0; i < matrices.size(); ++i) {
            const Product& w = matrices[i];
            float* own = static_cast<float*>(w.y);
            if (w.y_type != Type::f32) {
                own = free;
                free += tokens * w.rows;
            }
            pieces[i].take(thread, [&](long begin, long end) {
                if (w.y_type == Type::bf16) {
                    linear_rows<bf16>(kernels_, w, inputs, own, tokens, {begin, end});
                } else {
                    linear_rows<float>(kernels_, w, inputs, own, tokens, {begin, end});
                }
            });
        }
    });
}

}  // namespace ossia
