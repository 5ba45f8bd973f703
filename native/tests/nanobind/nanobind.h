// As much of nanobind as src/module.cpp uses, without Python: what it binds is called by name, with arguments as words
// of text. So a processor for which there is no Python, or one under an emulator, runs the same bindings.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nanobind {

// The words of one call, as Python prints its arguments; `@i` is the address of the call's memory i.
struct Call {
    std::shared_ptr<void> self;
    std::vector<std::string> words;
    std::vector<void*> memories;
};

// By "function", "Class" (which makes one) or "Class.method"; the result as Python would print it.
using Function = std::function<std::string(Call&)>;
inline std::map<std::string, Function> functions;
inline std::map<std::string, long> enumerators;  // by "Enum.name"

template <class T>
std::decay_t<T> read_word(const Call& call, std::size_t i) {
    using Value = std::decay_t<T>;
    const std::string& word = call.words.at(i);
    if constexpr (std::is_same_v<Value, bool>) {
        return word == "True";
    } else if constexpr (std::is_enum_v<Value>) {
        return static_cast<Value>(enumerators.at(word));
    } else if constexpr (std::is_floating_point_v<Value>) {
        return static_cast<Value>(std::stod(word));
    } else if constexpr (std::is_integral_v<Value>) {
        if (word[0] != '@') return static_cast<Value>(std::stoll(word));
        return static_cast<Value>(reinterpret_cast<std::uintptr_t>(call.memories.at(std::stoul(word.substr(1)))));
    } else {
        return word;
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
template <class Self, class Method, class Result, class... Arguments, std::size_t... I>
Function method_of(Method method, std::index_sequence<I...>) {
    return [method](Call& call) {
        Self& self = *static_cast<Self*>(call.self.get());
        return printed<Result>([&]() -> Result { return std::invoke(method, self, read_word<Arguments>(call, I)...); });
    };
}
template <class Self, class Lambda, class Result, class... Arguments>
Function bound(Lambda lambda, Result (Lambda::*)(Self&, Arguments...) const) {
    return method_of<Self, Lambda, Result, Arguments...>(lambda, std::index_sequence_for<Arguments...>());
}
template <class Self, class Lambda>
Function bound(Lambda lambda) {
    return bound<Self>(lambda, &Lambda::operator());
}
template <class Self, class Result, class... Arguments>
Function bound(Result (Self::*method)(Arguments...)) {
    return method_of<Self, decltype(method), Result, Arguments...>(method, std::index_sequence_for<Arguments...>());
}
template <class Self, class Result, class... Arguments>
Function bound(Result (Self::*method)(Arguments...) const) {
    return method_of<Self, decltype(method), Result, Arguments...>(method, std::index_sequence_for<Arguments...>());
}

struct module_ {};

struct arg {};
namespace literals {
inline arg operator""_a(const char*, std::size_t) { return {}; }
}  // namespace literals

inline void set_leak_warnings(bool) {}

struct gil_scoped_release {};
template <class... Guards>
struct call_guard {};

template <class... Arguments>
struct init {};

template <class T>
class enum_ {
  public:
    enum_(module_&, const char* name) : name_(name) {}
    enum_& value(const char* name, T value) {
        enumerators[name_ + "." + name] = static_cast<long>(value);
        return *this;
    }

  private:
    std::string name_;
};

template <class T>
class class_ {
  public:
    class_(module_&, const char* name) : name_(name) {}

    template <class... Arguments, class... Extra>
    class_& def(init<Arguments...>, const Extra&...) {
        return made(static_cast<init<Arguments...>*>(nullptr), std::index_sequence_for<Arguments...>());
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

  private:
    template <class... Arguments, std::size_t... I>
    class_& made(init<Arguments...>*, std::index_sequence<I...>) {
        functions[name_] = [](Call& call) {
            call.self = std::make_shared<T>(read_word<Arguments>(call, I)...);
            return std::string("None");
        };
        return *this;
    }

    std::string name_;
};

void bind(module_& m);

}  // namespace nanobind

#define NB_MODULE(name, m) void nanobind::bind([[maybe_unused]] nanobind::module_& m)
