// Conversion between numbers in memory and float32.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "core/array.hpp"
#include "kernels/kernels.hpp"

namespace ossia {

// Rounds to nearest, ties to even.
inline void narrow(float value, bf16* out) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    *out = std::isnan(value) ? 0x7FC0 : static_cast<bf16>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float value, float* out) { *out = value; }

inline float read(const void* data, Type type, long i) {
    return type == Type::bf16 ? widen(static_cast<const bf16*>(data)[i]) : static_cast<const float*>(data)[i];
}
inline void write(void* data, Type type, long i, float value) {
    if (type == Type::bf16) {
        narrow(value, static_cast<bf16*>(data) + i);
    } else {
        static_cast<float*>(data)[i] = value;
    }
}

// Calls task with a value of the C++ type.
template <class Task>
inline void with_type(Type type, const Task& task) {
    if (type == Type::bf16) {
        task(bf16{});
    } else {
        task(float{});
    }
}

// The data as float32, without a copy if it already is.
inline const float* floats(const void* data, Type type, long count, std::vector<float>& storage) {
    if (type == Type::f32) return static_cast<const float*>(data);
    storage.resize(count);
    for (long i = 0; i < count; ++i) storage[i] = widen(static_cast<const bf16*>(data)[i]);
    return storage.data();
}

// Memory aligned to a cache line.
constexpr std::align_val_t kLine{64};
struct FreeLines {
    void operator()(void* memory) const { ::operator delete[](memory, kLine); }
};
template <class T>
using Lines = std::unique_ptr<T[], FreeLines>;
template <class T>
inline Lines<T> lines(long count) {
    return Lines<T>(new (kLine) T[count]);
}

}  // namespace ossia
