// The weight of a linear layer.
#pragma once

#include "core/array.hpp"

namespace ossia {

// A matrix (rows, cols) in memory, and its bias. Throws std::invalid_argument for parts that do not fit together.
struct Matrix {
    // weight: bfloat16 or float32 with contiguous rows or, as in GPT-2's checkpoints, columns, and no scales; or
    // contiguous int8 codes and their float32 scales (rows, ceil(cols / group)), `group` a multiple of 32 up to 256.
    // bias: (rows,) or none.
    Matrix(const Array& weight, const Array& bias, const Array& scales, long group);

    Array weight, bias, scales;
    long group;
    long rows, cols;
    long stride;      // elements from row to row, or from column to column if transposed
    bool transposed;  // columns are contiguous
};

}  // namespace ossia
