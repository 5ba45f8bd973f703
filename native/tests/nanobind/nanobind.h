// As much of nanobind as src/module.cpp uses, without Python: what it binds is called by name, with arguments as words
// of text, as tests/ops/cpu/remote.py writes them. So a processor for which there is no Python, or one under an
// emulator, runs the same bindings.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/array.hpp"

namespace ossia {

// There are no Python objects to keep alive.
template <class... Arguments>
std::shared_ptr<void> objects_of(const Arguments&...) {
    return nullptr;
}

}  // namespace ossia

namespace nanobind {

// The words of one call and its memories.
struct Call {
    std::shared_ptr<void> self;
    std::vector<std::string> words;
    std::vector<void*> memories;
    std::size_t next = 0;

    const std::string& word() { return words.at(next++); }
    void skip(const std::string& expected) {
        if (const std::string& found = word(); found != expected) throw std::logic_error("a call's word " + found);
    }
};

// By "function", "Class" (which makes one) or "Class.method"; the result as Python would print it.
using Function = std::function<std::string(Call&)>;
inline std::map<std::string, Function> functions;

// How an argument of a bound class is made, from its constructor's arguments.
template <class T>
inline std::function<T(Call&)> maker;

template <class T>
struct is_vector : std::false_type {};
template <class T>
struct is_vector<std::vector<T>> : std::true_type {};

// `@memory:type:shape:strides`, the last two as numbers with an x between them; or None.
inline ossia::Array read_array(Call& call) {
    static const std::map<std::string, ossia::Type> types{
        {"torch.bfloat16", ossia::Type::bf16}, {"torch.float32", ossia::Type::f32},
        {"torch.float64", ossia::Type::f64},   {"torch.int8", ossia::Type::int8},
        {"torch.uint8", ossia::Type::uint8},   {"torch.int32", ossia::Type::int32},
        {"torch.int64", ossia::Type::int64}};
    ossia::Array array;
    const std::string& word = call.word();
    if (word == "None") return array;
    std::istringstream fields(word.substr(1));
    std::string memory, type, shape, strides, number;
    std::getline(fields, memory, ':');
    std::getline(fields, type, ':');
    std::getline(fields, shape, ':');
    std::getline(fields, strides, ':');
    array.type = types.count(type) ? types.at(type) : ossia::Type::other;
    array.data = call.memories.at(std::stoul(memory));
    for (std::istringstream numbers(shape); std::getline(numbers, number, 'x');)
        array.shape[array.dims++] = std::stol(number);
    int dim = 0;
    for (std::istringstream numbers(strides); std::getline(numbers, number, 'x');)
        array.strides[dim++] = std::stol(number);
    return array;
}

template <class T>
std::decay_t<T> read(Call& call) {
    using Value = std::decay_t<T>;
    if constexpr (std::is_same_v<Value, ossia::Array>) {
        return read_array(call);
    } else if constexpr (std::is_same_v<Value, bool>) {
        return call.word() == "True";
    } else if constexpr (std::is_floating_point_v<Value>) {
        return static_cast<Value>(std::stod(call.word()));
    } else if constexpr (std::is_integral_v<Value>) {
        return static_cast<Value>(std::stoll(call.word()));
    } else if constexpr (std::is_same_v<Value, std::string>) {
        return call.word();
    } else if constexpr (is_vector<Value>::value) {
        Value values;
        call.skip("[");
        while (call.words.at(call.next) != "]") values.push_back(read<typename Value::value_type>(call));
        call.skip("]");
        return values;
    } else {
        return maker<Value>(call);
    }
}

inline std::string print(const std::string& value) { return value; }
template <class T>
std::string print(T value) {
    return std::to_string(value);
}

template <class Result, class Do>
std::string printed(const Do& run) {
    if constexpr (std::is_void_v<Result>) {
        run();
        return "None";
    } else {
        return print(run());
    }
}

// A method is a lambda whose first parameter is the object, or a member function.
template <class Self, class Method, class Result, class... Arguments>
Function method_of(Method method) {
    return [method](Call& call) {
        Self& self = *static_cast<Self*>(call.self.get());
        // Braces read the arguments from left to right.
        std::tuple<std::decay_t<Arguments>...> arguments{read<Arguments>(call)...};
        return printed<Result>([&]() -> Result {
            return std::apply([&](const auto&... values) -> Result { return std::invoke(method, self, values...); },
                              arguments);
        });
    };
}
template <class Self, class Lambda, class Result, class... Arguments>
Function bound(Lambda lambda, Result (Lambda::*)(Self&, Arguments...) const) {
    return method_of<Self, Lambda, Result, Arguments...>(lambda);
}
template <class Self, class Lambda>
Function bound(Lambda lambda) {
    return bound<Self>(lambda, &Lambda::operator());
}
template <class Self, class Result, class... Arguments>
Function bound(Result (Self::*method)(Arguments...)) {
    return method_of<Self, decltype(method), Result, Arguments...>(method);
}
template <class Self, class Result, class... Arguments>
Function bound(Result (Self::*method)(Arguments...) const) {
    return method_of<Self, decltype(method), Result, Arguments...>(method);
}

struct module_ {};

// Every argument is given, so neither names nor defaults matter.
struct none {};
struct arg {
    arg& none() { return *this; }
    template <class T>
    arg& operator=(const T&) {
        return *this;
    }
};
namespace literals {
inline arg operator""_a(const char*, std::size_t) { return {}; }
}  // namespace literals

inline void set_leak_warnings(bool) {}

struct gil_scoped_release {};
template <class... Guards>
struct call_guard {};
template <int kKeeper, int kKept>
struct keep_alive {};

template <class... Arguments>
struct init {};

template <class T>
class class_ {
  public:
    class_(module_&, const char* name) : name_(name) {}

    template <class... Arguments, class... Extra>
    class_& def(init<Arguments...>, const Extra&...) {
        maker<T> = [name = name_](Call& call) {
            call.skip(name + "(");
            std::tuple<std::decay_t<Arguments>...> arguments{read<Arguments>(call)...};
            call.skip(")");
            return std::make_from_tuple<T>(arguments);
        };
        functions[name_] = [](Call& call) {
            std::tuple<std::decay_t<Arguments>...> arguments{read<Arguments>(call)...};
            call.self = std::apply([](const auto&... values) { return std::make_shared<T>(values...); }, arguments);
            return std::string("None");
        };
        return *this;
    }
    template <class Method, class... Extra>
    class_& def(const char* name, Method method, const Extra&...) {
        functions[name_ + "." + name] = bound<T>(method);
        return *this;
    }
    template <class Method, class... Extra>
    class_& def_prop_ro(const char* name, Method method, const Extra&...) {
        return def(name, method);
    }
    template <class Member>
    class_& def_ro(const char*, Member) {
        return *this;
    }

  private:
    std::string name_;
};

void bind(module_& m);

}  // namespace nanobind

#define NB_MODULE(name, m) void nanobind::bind([[maybe_unused]] nanobind::module_& m)
