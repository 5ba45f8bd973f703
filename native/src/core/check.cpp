#include "core/check.hpp"

#include <algorithm>
#include <stdexcept>

namespace ossia {

namespace {

const char* name_of(Type type) {
    switch (type) {
        case Type::none:
            return "none";
        case Type::bf16:
            return "bfloat16";
        case Type::f32:
            return "float32";
        case Type::f64:
            return "float64";
        case Type::int8:
            return "int8";
        case Type::uint8:
            return "uint8";
        case Type::int32:
            return "int32";
        case Type::int64:
            return "int64";
        case Type::other:
            break;
    }
    return "a tensor that no kernel reads, of another type, device or number of dimensions, or without memory";
}

std::string describe(Type type, const long* shape, int dims) {
    std::string text = std::string(name_of(type)) + " (";
    for (int i = 0; i < dims; ++i)
        text += std::string(i ? ", " : "") + (shape[i] == kAny ? "*" : std::to_string(shape[i]));
    return text + (dims == 1 ? ",)" : ")");
}

[[noreturn]] void refuse(const char* name, const Array& array, const std::string& expected) {
    std::string found = describe(array);
    if (array && array.type != Type::other && !array.is_contiguous()) found += " that is not contiguous";
    throw std::invalid_argument(std::string(name) + ": expected " + expected + ", got " + found);
}

bool fits(const Array& array, const long* shape, int dims) {
    if (array.dims != dims || !array.is_contiguous()) return false;
    for (int i = 0; i < dims; ++i)
        if (shape[i] != kAny && array.shape[i] != shape[i]) return false;
    return true;
}

}  // namespace

long Array::size() const {
    long product = 1;
    for (int i = 0; i < dims; ++i) product *= shape[i];
    return product;
}

bool Array::is_occupied() const {
    return std::all_of(shape, shape + dims, [](long extent) { return extent > 0; });
}

long Array::bytes() const {
    switch (type) {
        case Type::bf16:
            return 2 * size();
        case Type::f32:
        case Type::int32:
            return 4 * size();
        case Type::f64:
        case Type::int64:
            return 8 * size();
        default:
            return size();
    }
}

bool Array::is_contiguous() const {
    long step = 1;
    bool contiguous = true;
    for (int i = dims - 1; i >= 0; --i) {
        if (shape[i] == 0) return true;
        if (shape[i] != 1 && strides[i] != step) contiguous = false;
        step *= shape[i];
    }
    return contiguous;
}

std::string describe(const Array& array) {
    if (array.type == Type::none || array.type == Type::other) return name_of(array.type);
    return describe(array.type, array.shape, array.dims);
}

void require(bool condition, const char* otherwise) {
    if (!condition) throw std::invalid_argument(otherwise);
}

void expect(const char* name, const Array& array, Type type, std::initializer_list<long> shape) {
    const int dims = static_cast<int>(shape.size());
    if (array.type != type || !fits(array, shape.begin(), dims))
        refuse(name, array, describe(type, shape.begin(), dims));
}

void expect_floats(const char* name, const Array& array) {
    if (!array.has_floats() || !array.is_contiguous()) refuse(name, array, "bfloat16 or float32");
}

long expect_rows(const char* name, const Array& array, long last) {
    if (!array.has_floats() || !array.dims || array.last() != last || last <= 0 || !array.is_contiguous())
        refuse(name, array, "bfloat16 or float32 (..., " + std::to_string(last) + ")");
    return array.size() / last;
}

void expect_like(const char* name, const Array& array, Type type, const Array& other) {
    if (array.type != type || !fits(array, other.shape, other.dims))
        refuse(name, array, describe(type, other.shape, other.dims));
}

void expect_apart(const char* name, const Array& written, const Array& read) {
    const char *const to = written.as<const char>(), *const from = read.as<const char>();
    if (written && read && to < from + read.bytes() && from < to + written.bytes())
        throw std::invalid_argument(std::string(name) + ": expected memory apart from what says where to write");
}

}  // namespace ossia
