// A tensor of the caller's: its address, type and shape. It needs nothing of torch.
#pragma once

#include <string>

namespace ossia {

// none: no tensor. other: a tensor that no kernel reads, because of its device, its type, its number of dimensions or
// memory that it lacks.
enum class Type { none, bf16, f32, f64, int8, uint8, int32, int64, other };

struct Array {
    static constexpr int kMostDims = 6;

    void* data = nullptr;
    Type type = Type::none;
    int dims = 0;
    long shape[kMostDims] = {};
    long strides[kMostDims] = {};  // in elements
    void* object = nullptr;        // the Python tensor, kept alive by whoever made the array

    explicit operator bool() const { return type != Type::none; }
    bool has_floats() const { return type == Type::bf16 || type == Type::f32; }
    long size() const;
    bool is_occupied() const;  // no dimension is 0
    long bytes() const;        // of a contiguous array
    long last() const { return dims ? shape[dims - 1] : 1; }
    bool is_contiguous() const;

    template <class T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

// For messages: "bfloat16 (3, 64)".
std::string describe(const Array& array);

}  // namespace ossia
