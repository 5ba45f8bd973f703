// Converts a torch tensor to an Array without linking against torch, so that one build serves every version. torch 2.10
// and later describe a tensor to C callers (DLPack's exchange API, https://dmlc.github.io/dlpack), which takes tens of
// nanoseconds. Otherwise its attributes are read through Python, in a few hundred.
#pragma once

#include <nanobind/nanobind.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "core/array.hpp"
#include "core/machine.hpp"
#include "ops/experts.hpp"
#include "ops/matrix.hpp"
#include "ops/pages.hpp"

namespace ossia {

// ---- By DLPack.

// DLPack 1's description of a tensor.
struct DLPackTensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t dims;
    std::uint8_t code, bits;
    std::uint16_t lanes;
    std::int64_t *shape, *strides;  // in elements
    std::uint64_t byte_offset;
};

// DLPack 1's table of functions, of which one is used here.
struct DLPackExchange {
    std::uint32_t major, minor;
    void* older;
    void* others[3];
    int (*describe)(void* object, DLPackTensor* tensor);  // not 0 with a Python exception, or null
    void* stream;
};

inline Type type_of(const DLPackTensor& tensor) {
    constexpr int kCpu = 1, kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4;
    if (tensor.device_type != kCpu || tensor.lanes != 1) return Type::other;
    const auto is = [&](int code, int bits) { return tensor.code == code && tensor.bits == bits; };
    return is(kBfloat, 16)  ? Type::bf16
           : is(kFloat, 32) ? Type::f32
           : is(kInt, 8)    ? Type::int8
           : is(kUint, 8)   ? Type::uint8
           : is(kInt, 32)   ? Type::int32
           : is(kInt, 64)   ? Type::int64
                            : Type::other;
}

// The functions for a type of tensor, or null. Only torch's own types: others may have no memory to point to.
inline const DLPackExchange* find_exchange(PyTypeObject* type) {
    PyObject* const object = reinterpret_cast<PyObject*>(type);
    const auto attribute = [object](const char* name) {
        PyObject* const value = PyObject_GetAttrString(object, name);
        if (!value) PyErr_Clear();
        return nanobind::steal<nanobind::object>(value);
    };
    const nanobind::object module = attribute("__module__"), capsule = attribute("__dlpack_c_exchange_api__");
    if (!module.is_valid() || !capsule.is_valid() || !PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api"))
        return nullptr;
    const std::string name = nanobind::cast<std::string>(module);
    if (name != "torch" && name != "torch.nn.parameter") return nullptr;
    const auto* exchange =
        static_cast<const DLPackExchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    return exchange->major == 1 && exchange->describe ? exchange : nullptr;
}

// As find_exchange; it remembers the types that it has seen last, which are Tensor and Parameter.
inline const DLPackExchange* exchange_of(PyTypeObject* type) {
    struct Known {
        PyTypeObject* type = nullptr;
        const DLPackExchange* exchange = nullptr;
    };
    static std::array<Known, 2> known;
    static std::size_t oldest = 0;
    for (const Known& entry : known)
        if (entry.type == type) return entry.exchange;
    const DLPackExchange* const found = find_exchange(type);
    if (found) {  // torch's types live as long as the process, and so their addresses stay theirs
        known[oldest] = {type, found};
        oldest = (oldest + 1) % known.size();
    }
    return found;
}

// An array of type `other` for what DLPack cannot describe.
inline Array describe_tensor(PyObject* object, const DLPackExchange& exchange) {
    Array array;
    array.type = Type::other;
    DLPackTensor tensor;
    if (exchange.describe(object, &tensor) != 0) {
        PyErr_Clear();
        return array;
    }
    if (tensor.dims <= Array::kMostDims) array.type = type_of(tensor);
    if (array.type == Type::other) return array;
    array.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    array.dims = tensor.dims;
    long step = 1;
    for (int i = tensor.dims - 1; i >= 0; --i) {
        array.shape[i] = tensor.shape[i];
        array.strides[i] = tensor.strides ? tensor.strides[i] : step;
        step *= tensor.shape[i];
    }
    return array;
}

// ---- By attributes.

struct TensorNames {
    PyObject* dtype = PyUnicode_InternFromString("dtype");
    PyObject* is_cpu = PyUnicode_InternFromString("is_cpu");
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject* shape = PyUnicode_InternFromString("shape");
    PyObject* stride = PyUnicode_InternFromString("stride");
};

// torch keeps one object for each dtype, so once its name has been read its address identifies it.
inline Type type_of(PyObject* dtype) {
    struct Known {
        const char* name;
        Type type;
        PyObject* object;
    };
    static std::array<Known, 7> known{{{"torch.bfloat16", Type::bf16, nullptr},
                                       {"torch.float32", Type::f32, nullptr},
                                       {"torch.float64", Type::f64, nullptr},
                                       {"torch.int8", Type::int8, nullptr},
                                       {"torch.uint8", Type::uint8, nullptr},
                                       {"torch.int32", Type::int32, nullptr},
                                       {"torch.int64", Type::int64, nullptr}}};
    for (const Known& entry : known)
        if (entry.object == dtype) return entry.type;
    const nanobind::str name(nanobind::handle{dtype});
    for (Known& entry : known)
        if (std::strcmp(name.c_str(), entry.name) == 0) {
            Py_INCREF(dtype);
            entry.object = dtype;
            return entry.type;
        }
    return Type::other;
}

// Reads a tuple of at most kMostDims numbers. Returns their count, or -1 for anything else.
inline int read_numbers(const nanobind::object& tuple, long (&numbers)[Array::kMostDims]) {
    if (!PyTuple_Check(tuple.ptr()) || PyTuple_GET_SIZE(tuple.ptr()) > Array::kMostDims) return -1;
    const int count = static_cast<int>(PyTuple_GET_SIZE(tuple.ptr()));
    for (int i = 0; i < count; ++i) numbers[i] = PyLong_AsLong(PyTuple_GET_ITEM(tuple.ptr(), i));
    return count;
}

// Throws nanobind::python_error for what is not a tensor.
inline Array read_attributes(PyObject* tensor) {
    static const TensorNames names;
    const auto result = [](PyObject* value) {
        if (!value) throw nanobind::python_error();
        return nanobind::steal<nanobind::object>(value);
    };
    Array array;
    array.type = Type::other;
    if (result(PyObject_GetAttr(tensor, names.is_cpu)).ptr() != Py_True) return array;
    const int dims = read_numbers(result(PyObject_GetAttr(tensor, names.shape)), array.shape);
    const int strides = read_numbers(result(PyObject_CallMethodNoArgs(tensor, names.stride)), array.strides);
    if (dims < 0 || strides != dims) return array;
    array.dims = dims;
    array.data = PyLong_AsVoidPtr(result(PyObject_CallMethodNoArgs(tensor, names.data_ptr)).ptr());
    array.type = type_of(result(PyObject_GetAttr(tensor, names.dtype)).ptr());
    if (PyErr_Occurred()) throw nanobind::python_error();
    return array;
}

// Throws nanobind::python_error for what is not a tensor.
inline Array read_tensor(PyObject* tensor) {
    const DLPackExchange* const exchange = exchange_of(Py_TYPE(tensor));
    Array array = exchange ? describe_tensor(tensor, *exchange) : Array();
    if (!exchange || array.type == Type::other) array = read_attributes(tensor);
    if (!array.data && array.is_occupied()) array.type = Type::other;  // its storage was given up
    array.object = tensor;
    return array;
}

// The machine of an operation and the tensors among its arguments, kept alive until this is destroyed, with the GIL
// held.
class HeldObjects {
  public:
    void add(const Machine& machine) { objects_.push_back(nanobind::find(machine)); }
    void add(const Array& array) {
        if (array) objects_.push_back(nanobind::borrow(static_cast<PyObject*>(array.object)));
    }
    void add(const Matrix& matrix) { add_all(matrix.weight, matrix.bias, matrix.scales); }
    void add(const Stack& stack) { add_all(stack.weight, stack.bias, stack.scales); }
    void add(const Experts& experts) { add_all(experts.gate_up, experts.down); }
    void add(const Pages& pages) { add_all(pages.keys, pages.values, pages.key_scales, pages.value_scales); }
    void add(const Tables& tables) { add_all(tables.page_table, tables.lengths, tables.query_lengths); }
    template <class T>
    void add(const std::vector<T>& values) {
        for (const T& value : values) add(value);
    }
    void add(double) {}  // numbers hold nothing

    template <class... Values>
    void add_all(const Values&... values) {
        (add(values), ...);
    }

  private:
    std::vector<nanobind::object> objects_;
};

template <class... Arguments>
std::shared_ptr<void> objects_of(const Machine& machine, const Arguments&... arguments) {
    const auto held = std::make_shared<HeldObjects>();
    held->add_all(machine, arguments...);
    return held;
}

}  // namespace ossia

namespace nanobind::detail {

// None is an Array without a tensor. Whoever keeps an Array keeps its tensor alive.
template <>
struct type_caster<ossia::Array> {
    NB_TYPE_CASTER(ossia::Array, const_name("torch.Tensor"))

    bool from_python(handle source, std::uint8_t, cleanup_list*) noexcept {
        value = ossia::Array();
        if (source.is_none()) return true;
        try {
            value = ossia::read_tensor(source.ptr());
            return true;
        } catch (python_error&) {
            return false;  // nanobind then raises a TypeError that names the arguments
        }
    }

    static handle from_cpp(const ossia::Array& array, rv_policy, cleanup_list*) noexcept {
        return handle(array ? static_cast<PyObject*>(array.object) : Py_None).inc_ref();
    }
};

}  // namespace nanobind::detail
