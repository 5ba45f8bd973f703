// One matrix product of a linear layer.
#pragma once

#include "core/array.hpp"
#include "kernels/kernels.hpp"
#include "ops/matrix.hpp"

namespace ossia {

struct Product {
    Product(const Matrix& matrix, const Array& y, const Array& residual)
        : weight(matrix.weight.data),
          weight_type(matrix.weight.type),
          bias(matrix.bias.data),
          residual(residual.data),
          rows(matrix.rows),
          cols(matrix.cols),
          stride(matrix.stride),
          transposed(matrix.transposed),
          y(y.data),
          y_type(y.type),
          scales(matrix.scales.as<const float>()),
          group(matrix.group) {}

    Int8 int8() const {
        return {static_cast<const std::int8_t*>(weight), scales, cols, group, (cols + group - 1) / group};
    }

    const void* weight;  // (rows, cols), see Matrix
    Type weight_type;
    const void* bias;      // (rows,) of y's type, or null
    const void* residual;  // (tokens, rows) of y's type, or null
    long rows, cols, stride;
    bool transposed;
    void* y;  // (tokens, rows)
    Type y_type;
    const float* scales;  // of int8 codes
    long group;
};

}  // namespace ossia
