// Checks of arguments, kept in every build: a wrong size would mean access beyond a tensor's memory. They throw
// std::invalid_argument, a ValueError in Python.
#pragma once

#include <initializer_list>

#include "core/array.hpp"

namespace ossia {

constexpr long kAny = -1;  // any extent

void require(bool condition, const char* otherwise);

// A contiguous array of this type and shape.
void expect(const char* name, const Array& array, Type type, std::initializer_list<long> shape);

// A contiguous array of bfloat16 or float32.
void expect_floats(const char* name, const Array& array);

// The same, with `last` as its last dimension. Returns the product of the other dimensions.
long expect_rows(const char* name, const Array& array, long last);

// A contiguous array of this type and of another's shape.
void expect_like(const char* name, const Array& array, Type type, const Array& other);

// An array that is written to must not lie over one whose contents, checked before, are read meanwhile: they could then
// name memory that there is not. Both are contiguous.
void expect_apart(const char* name, const Array& written, const Array& read);

}  // namespace ossia
