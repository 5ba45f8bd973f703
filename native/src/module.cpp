// The Python bindings; ossia/ops/_native.pyi describes them. Every operation releases the GIL while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/machine.hpp"
#include "core/mapped.hpp"
#include "core/recording.hpp"
#if !defined(OSSIA_DRIVER)  // the driver's own nanobind.h reads its arrays
#include "tensors.hpp"
#endif

namespace nb = nanobind;
using namespace nb::literals;
using ossia::Array;
using ossia::Edits;
using ossia::Experts;
using ossia::Machine;
using ossia::Matrix;
using ossia::Pages;
using ossia::Recording;
using ossia::SamplingTable;
using ossia::Stack;
using ossia::Stage;
using ossia::Tables;

namespace {

using Unlocked = nb::gil_scoped_release;

// An operation as Python calls it, and the stage it is counted in. A recording under way keeps it with its arguments,
// and machine and tensors alive.
template <class... Arguments>
auto operation(const char* stage, void (Machine::*method)(Arguments...)) {
    const auto run = [stage, method](Machine& machine, const Arguments&... arguments) {
        const Stage timed(machine.stages(), stage);
        (machine.*method)(arguments...);
    };
    return [run](Machine& machine, Arguments... arguments) {
        {
            Unlocked unlocked;
            run(machine, arguments...);
        }
        if (Recording::under_way())
            Recording::keep([=, &machine] { run(machine, arguments...); }, ossia::objects_of(machine, arguments...));
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

    nb::class_<Edits>(m, "Edits")
        .def(nb::init<const Array&, const Array&, const Array&, const Array&, const Array&, const Array&, const Array&,
                      const Array&>(),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(),
             nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>(), nb::keep_alive<1, 9>(),
             "rows"_a.none() = nb::none(), "lengths"_a.none() = nb::none(), "ids"_a.none() = nb::none(),
             "biases"_a.none() = nb::none(), "counts"_a.none() = nb::none(), "repetition"_a.none() = nb::none(),
             "frequency"_a.none() = nb::none(), "presence"_a.none() = nb::none())
        .def_ro("rows", &Edits::rows)
        .def_ro("lengths", &Edits::lengths)
        .def_ro("ids", &Edits::ids)
        .def_ro("biases", &Edits::biases)
        .def_ro("counts", &Edits::counts)
        .def_ro("repetition", &Edits::repetition)
        .def_ro("frequency", &Edits::frequency)
        .def_ro("presence", &Edits::presence);

    nb::class_<SamplingTable>(m, "SamplingTable")
        .def(nb::init<const Array&, const Array&, const Array&, const Array&, const Array&, const Array&,
                      const Edits&>(),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>(),
             nb::keep_alive<1, 6>(), nb::keep_alive<1, 7>(), nb::keep_alive<1, 8>(), "scale"_a, "top_k"_a, "top_p"_a,
             "log2_min_p"_a, "uniforms"_a, "bits"_a.none(), "edits"_a)
        .def_ro("scale", &SamplingTable::scale)
        .def_ro("top_k", &SamplingTable::top_k)
        .def_ro("top_p", &SamplingTable::top_p)
        .def_ro("log2_min_p", &SamplingTable::log2_min_p)
        .def_ro("uniforms", &SamplingTable::uniforms)
        .def_ro("bits", &SamplingTable::bits)
        .def_ro("edits", &SamplingTable::edits);

#if !defined(OSSIA_DRIVER)
    m.def("watch", &ossia::watch, "begin"_a, "size"_a, "line"_a);
    m.def("unwatch", &ossia::unwatch, "begin"_a);
#endif

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
        .def_prop_ro("multiplies_bytes", &Machine::multiplies_bytes)
        .def_prop_ro("threads", &Machine::threads)
        .def("pin", &Machine::pin)
        .def("share_threads", &Machine::share_threads)
        .def("sample", &Machine::sample, nb::call_guard<Unlocked>())
        .def("sum", &Machine::sum, nb::call_guard<Unlocked>())
        .def("linear", operation("linear layers", &Machine::linear), "x"_a, "matrix"_a, "y"_a,
             "residual"_a.none() = nb::none(), "rounds"_a = false)
        .def("linears", operation("linear layers", &Machine::linears), "x"_a, "matrices"_a, "ys"_a, "rounds"_a = false)
        .def("quantize_int8", &Machine::quantize_int8, nb::call_guard<Unlocked>())
        .def("pack_mxfp4", &Machine::pack_mxfp4, nb::call_guard<Unlocked>())
        .def("unpack_mxfp4", &Machine::unpack_mxfp4, nb::call_guard<Unlocked>())
        .def("grouped", &Machine::grouped, nb::call_guard<Unlocked>(), "x"_a, "counts"_a, "stack"_a, "y"_a,
             "turned"_a = false)
        .def("embed", operation("embedding", &Machine::embed), "ids"_a, "table"_a, "y"_a,
             "residual"_a.none() = nb::none())
        .def("rms_norm", operation("norms", &Machine::rms_norm))
        .def("layer_norm", operation("norms", &Machine::layer_norm))
        .def("rope_table", operation("rotary positions", &Machine::rope_table))
        .def("rotate", operation("rotary positions", &Machine::rotate))
        .def("gelu", operation("activations", &Machine::gelu))
        .def("swiglu", operation("activations", &Machine::swiglu))
        .def("clamped_swiglu", operation("activations", &Machine::clamped_swiglu))
        .def("gate_pairs", &Machine::gate_pairs, nb::call_guard<Unlocked>())
        .def("gate_gradient", &Machine::gate_gradient, nb::call_guard<Unlocked>())
        .def("gelu_gradient", &Machine::gelu_gradient, nb::call_guard<Unlocked>())
        .def("gated_gradient", &Machine::gated_gradient, nb::call_guard<Unlocked>())
        .def("norm", &Machine::norm, nb::call_guard<Unlocked>(), "x"_a, "weight"_a, "bias"_a.none(), "y"_a, "eps"_a,
             "round_before_weight"_a)
        .def("norm_gradient", &Machine::norm_gradient, nb::call_guard<Unlocked>(), "x"_a, "weight"_a, "gradient"_a,
             "y"_a, "d_weight"_a, "d_bias"_a.none(), "eps"_a)
        .def("softmax_loss", &Machine::softmax_loss, nb::call_guard<Unlocked>())
        .def("weight_gradient", &Machine::weight_gradient, nb::call_guard<Unlocked>(), "gradient"_a, "x"_a, "counts"_a,
             "y"_a, "bias"_a.none(), "add"_a)
        .def("route", operation("routing", &Machine::route))
        .def("moe", operation("experts", &Machine::moe), "x"_a, "ids"_a, "weights"_a, "experts"_a, "y"_a,
             "residual"_a.none() = nb::none(), "rounds"_a = false)
        .def("paged_attention", operation("attention", &Machine::paged_attention), "q"_a, "k"_a, "v"_a, "y"_a,
             "pages"_a, "tables"_a, "window"_a = 0, "sinks"_a.none() = nb::none(), "cosines"_a.none() = nb::none(),
             "sines"_a.none() = nb::none());

#if !defined(OSSIA_DRIVER)
    m.def("time_stages", [](Machine& machine) { machine.stages().start(); }, "machine"_a);
    m.def(
        "stages",
        [](Machine& machine) {
            nb::list found;
            for (const auto& [name, calls, seconds, busy] : machine.stages().end())
                found.append(nb::make_tuple(name, calls, seconds, busy));
            return found;
        },
        "machine"_a);
#endif
}
