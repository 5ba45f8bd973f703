// Linear layers: checks, and the choice between the halves for few and for many tokens.
#include "core/check.hpp"
#include "core/machine.hpp"
#include "ops/product.hpp"

namespace ossia {

Matrix::Matrix(const Array& weight, const Array& bias, const Array& scales, long group)
    : weight(weight), bias(bias), scales(scales), group(group) {
    if (weight.dims != 2 || weight.size() == 0 || (!weight.has_floats() && weight.type != Type::int8))
        require(false, ("weight: expected a matrix of bfloat16, float32 or int8, got " + describe(weight)).c_str());
    rows = weight.shape[0];
    cols = weight.shape[1];
    transposed = weight.strides[1] != 1;
    stride = transposed ? weight.strides[1] : weight.strides[0];
    if (weight.type == Type::int8) {
        require(group > 0 && group <= kMostGroup && group % kWordBlock == 0,
                "group: expected a multiple of 32 up to 256");
        expect("weight", weight, Type::int8, {rows, cols});
        expect("scales", scales, Type::f32, {rows, (cols + group - 1) / group});
        stride = cols;
        transposed = false;
    } else {
        require(!scales, "scales: a dense weight has none");
        require(weight.strides[0] == 1 || weight.strides[1] == 1,
                "weight: neither its rows nor its columns are contiguous");
    }
    if (bias) {
        expect_rows("bias", bias, rows);
        expect("bias", bias, bias.type, {rows});
    }
}

void Machine::linear(const Array& x, const Matrix& matrix, const Array& y, const Array& residual, bool rounds) {
    const long tokens = expect_rows("x", x, matrix.cols);
    require(matrix.weight.type == Type::int8 || matrix.weight.type == x.type, "weight: expected x's type");
    require(y.type == x.type || y.type == Type::f32, "y: expected x's type or float32");
    require(expect_rows("y", y, matrix.rows) == tokens, "y: expected as many rows as x");
    require(!matrix.bias || matrix.bias.type == y.type, "bias: expected y's type");
    if (residual) expect_like("residual", residual, y.type, y);
    linear_of({Product(matrix, y, residual)}, x.data, x.type, tokens, rounds);
}

void Machine::linears(const Array& x, const std::vector<Matrix>& matrices, const std::vector<Array>& ys, bool rounds) {
    require(!matrices.empty() && matrices.size() == ys.size(), "ys: expected one for each matrix");
    const Matrix& first = matrices.front();
    const long tokens = expect_rows("x", x, first.cols);
    std::vector<Product> products;
    products.reserve(matrices.size());
    for (std::size_t i = 0; i < matrices.size(); ++i) {
        const Matrix& matrix = matrices[i];
        require(matrix.cols == first.cols && matrix.weight.type == first.weight.type && matrix.group == first.group &&
                    matrix.transposed == first.transposed,
                "matrices: expected all of one type and layout, with as many columns");
        require(matrix.weight.type == Type::int8 || matrix.weight.type == x.type, "weight: expected x's type");
        require(ys[i].type == x.type && expect_rows("y", ys[i], matrix.rows) == tokens,
                "y: expected x's type and rows");
        require(!matrix.bias || matrix.bias.type == x.type, "bias: expected x's type");
        products.emplace_back(matrix, ys[i], Array());
    }
    linear_of(products, x.data, x.type, tokens, rounds);
}

void Machine::linear_of(const std::vector<Product>& products, const void* x, Type type, long tokens, bool rounds) {
    const Product& first = products.front();
    require(!rounds || (first.weight_type == Type::int8 && first.group == kByteGroup),
            "rounds: expected weights in int8, in groups of 128");
    if (tokens == 0) return;
    if (tokens > kFewTokens) return linear_many(products, x, type, tokens, rounds);
    linear_few(products, x, type, tokens);
}

}  // namespace ossia
