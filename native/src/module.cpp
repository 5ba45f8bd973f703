// The Python bindings; ossia/ops/_native.pyi describes them. Every operation releases the GIL while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/machine.hpp"
#include "core/recording.hpp"
#if !defined(OSSIA_DRIVER)  // the driver's own nanobind.h reads its arrays
#include "tensors.hpp"
#endif

namespace nb = nanobind;
using namespace nb::literals;
using ossia::Array;
using ossia::Experts;
using ossia::Machine;
using ossia::Matrix;
using ossia::Pages;
using ossia::Recording;
using ossia::Stack;
using ossia::Tables;

namespace {

using Unlocked = nb::gil_scoped_release;

// An operation as Python calls it. A recording under way keeps it with its arguments, and their tensors alive.
template <class... Arguments>
auto operation(void (Machine::*method)(Arguments...)) {
    return [method](Machine& machine, Arguments... arguments) {
        {
            Unlocked unlocked;
            (machine.*method)(arguments...);
        }
        if (Recording* recording = Recording::current())
            recording->keep([=, &machine] { (machine.*method)(arguments...); }, ossia::tensors_of(arguments...));
    };
}

}  // namespace

NB_MODULE(_native, m) {
    // Machines and recordings live as long as the process, even if threads are at work when it exits.
    nb::set_leak_warnings(false);

    // A value keeps the tensors that it was made of alive.
    nb::class_<Matrix>(m, "Matrix")
        .def(nb::init<const Array&, const Array&, const Array&, long>(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
             nb::keep_alive<1, 4>(), "weight"_a, "bias"_a.none() = nb::none(), "scales"_a.none() = nb::none(),
             "group"_a = 0)
        .def_ro("weight", &Matrix::weight)
        .def_ro("bias", &Matrix::bias)
        .def_ro("scales", &Matrix::scales)
        .def_ro("group", &Matrix::group);

    nb::class_<Stack>(m, "Stack")
        .def(nb::init<const Array&, const Array&, const Array&>(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
             nb::keep_alive<1, 4>(), "weight"_a, "bias"_a.none() = nb::none(), "scales"_a.none() = nb::none())
        .def_ro("weight", &Stack::weight)
        .def_ro("bias", &Stack::bias)
        .def_ro("scales", &Stack::scales);

    nb::class_<Experts>(m, "Experts")
        .def(nb::init<const Stack&, const Stack&, bool, float, float>(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
             "gate_up"_a, "down"_a, "clamped"_a = false, "limit"_a = 0.0f, "alpha"_a = 0.0f)
        .def_ro("gate_up", &Experts::gate_up)
        .def_ro("down", &Experts::down)
        .def_ro("clamped", &Experts::clamped)
        .def_ro("limit", &Experts::limit)
        .def_ro("alpha", &Experts::alpha);

    nb::class_<Pages>(m, "Pages")
        .def(nb::init<const Array&, const Array&, const Array&, const Array&>(), nb::keep_alive<1, 2>(),
             nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(), "keys"_a, "values"_a,
             "key_scales"_a.none() = nb::none(), "value_scales"_a.none() = nb::none())
        .def_ro("keys", &Pages::keys)
        .def_ro("values", &Pages::values)
        .def_ro("key_scales", &Pages::key_scales)
        .def_ro("value_scales", &Pages::value_scales);

    nb::class_<Tables>(m, "Tables")
        .def(nb::init<const Array&, const Array&, const Array&>(), nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(),
             nb::keep_alive<1, 4>(), "page_table"_a, "lengths"_a, "query_lengths"_a)
        .def_ro("page_table", &Tables::page_table)
        .def_ro("lengths", &Tables::lengths)
        .def_ro("query_lengths", &Tables::query_lengths);

    nb::class_<Recording>(m, "Recording")
        .def(nb::init<>())
        .def("begin", &Recording::begin)
        .def("end", &Recording::end)
        .def("run", &Recording::run, nb::call_guard<Unlocked>())
        .def_prop_ro("size", &Recording::size);

    nb::class_<Machine>(m, "Machine")
        .def(nb::init<int, std::string>(), "threads"_a, "isa"_a)
        .def_prop_ro("isa", &Machine::isa)
        .def_prop_ro("remark", &Machine::remark)
        .def_prop_ro("threads", &Machine::threads)
        .def("pin", &Machine::pin)
        .def("sum", &Machine::sum, nb::call_guard<Unlocked>())
        .def("linear", operation(&Machine::linear), "x"_a, "matrix"_a, "y"_a, "residual"_a.none() = nb::none())
        .def("linears", operation(&Machine::linears))
        .def("quantize_int8", &Machine::quantize_int8, nb::call_guard<Unlocked>())
        .def("embed", operation(&Machine::embed), "ids"_a, "table"_a, "y"_a, "residual"_a.none() = nb::none())
        .def("rms_norm", operation(&Machine::rms_norm))
        .def("layer_norm", operation(&Machine::layer_norm))
        .def("rope_table", operation(&Machine::rope_table))
        .def("rotate", operation(&Machine::rotate))
        .def("gelu", operation(&Machine::gelu))
        .def("swiglu", operation(&Machine::swiglu))
        .def("clamped_swiglu", operation(&Machine::clamped_swiglu))
        .def("route", operation(&Machine::route))
        .def("moe", operation(&Machine::moe), "x"_a, "ids"_a, "weights"_a, "experts"_a, "y"_a,
             "residual"_a.none() = nb::none())
        .def("paged_attention", operation(&Machine::paged_attention), "q"_a, "k"_a, "v"_a, "y"_a, "pages"_a, "tables"_a,
             "window"_a = 0, "sinks"_a.none() = nb::none(), "cosines"_a.none() = nb::none(),
             "sines"_a.none() = nb::none());
}
