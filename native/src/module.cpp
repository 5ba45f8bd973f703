// The Python face: addresses and sizes in, nothing of torch. Every call gives up the interpreter's lock while it
// computes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "core/machine.hpp"
#include "core/recording.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using ossia::Machine;
using ossia::Recording;
using ossia::Type;

namespace {

using Address = std::uintptr_t;  // 0 for absent

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

Machine::Experts experts(Address weights, Address scales, long expert_stride, long stride, bool transposed,
                         Address bias, long rows, long cols) {
    return {at<const void>(weights),
            at<const std::uint8_t>(scales),
            at<const void>(bias),
            rows,
            cols,
            expert_stride,
            stride,
            transposed};
}

// A call as Python makes it. The recording under way, if there is one, keeps it with its arguments.
template <class... Arguments>
auto operation(void (*call)(Machine&, Arguments...)) {
    return [call](Machine& machine, Arguments... arguments) {
        call(machine, arguments...);
        Recording::keep([=, &machine] { call(machine, arguments...); });
    };
}

}  // namespace

NB_MODULE(_native, m) {
    // A machine and its recordings live as long as the process, also in threads that its end finds at work.
    nb::set_leak_warnings(false);
    nb::enum_<Type>(m, "Type").value("bf16", Type::bf16).value("f32", Type::f32);

    nb::class_<Recording>(m, "Recording")
        .def(nb::init<>())
        .def("begin", &Recording::begin)
        .def("end", &Recording::end)
        .def("run", &Recording::run, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("size", &Recording::size);

    nb::class_<Machine>(m, "Machine")
        .def(nb::init<int, std::string>(), "threads"_a, "isa"_a)
        .def_prop_ro("isa", &Machine::isa)
        .def_prop_ro("remark", &Machine::remark)
        .def_prop_ro("threads", &Machine::threads)
        .def("pin", &Machine::pin)
        .def(
            "sum",
            [](Machine& machine, Address words, long count) {
                return machine.sum(at<const std::uint64_t>(words), count);
            },
            nb::call_guard<nb::gil_scoped_release>())
        .def("linear",
             operation(+[](Machine& machine, Address weight, Type weight_type, Address bias, Address residual,
                           long rows, long cols, long stride, bool transposed, Address x, Address y, Type type,
                           Type y_type, long tokens) {
                 machine.linear({{at<const void>(weight), weight_type, at<const void>(bias), at<const void>(residual),
                                  rows, cols, stride, transposed, at<void>(y), y_type}},
                                at<const void>(x), type, tokens);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("linear_int8",
             operation(+[](Machine& machine, Address codes, Address scales, long group, Address bias, Address residual,
                           long rows, long cols, Address x, Address y, Type type, Type y_type, long tokens) {
                 machine.linear({{at<const void>(codes), Type::int8, at<const void>(bias), at<const void>(residual),
                                  rows, cols, cols, false, at<void>(y), y_type, at<const float>(scales), group}},
                                at<const void>(x), type, tokens);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("linears",  // two matrices, or three where the last has rows
             operation(+[](Machine& machine, Address x, Type type, long tokens, long cols, bool transposed,
                           Address weight, Address bias, long rows, long stride, Address y, Address weight_2,
                           Address bias_2, long rows_2, long stride_2, Address y_2, Address weight_3, Address bias_3,
                           long rows_3, long stride_3, Address y_3) {
                 const auto matrix = [&](Address weight, Address bias, long rows, long stride,
                                         Address y) -> Machine::Linear {
                     return {at<const void>(weight),
                             type,
                             at<const void>(bias),
                             nullptr,
                             rows,
                             cols,
                             stride,
                             transposed,
                             at<void>(y),
                             type};
                 };
                 std::vector<Machine::Linear> matrices{matrix(weight, bias, rows, stride, y),
                                                       matrix(weight_2, bias_2, rows_2, stride_2, y_2)};
                 if (rows_3) matrices.push_back(matrix(weight_3, bias_3, rows_3, stride_3, y_3));
                 machine.linear(matrices, at<const void>(x), type, tokens);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("linears_int8",  // as linears
             operation(+[](Machine& machine, Address x, Type type, long tokens, long cols, long group, Address codes,
                           Address scales, Address bias, long rows, Address y, Address codes_2, Address scales_2,
                           Address bias_2, long rows_2, Address y_2, Address codes_3, Address scales_3, Address bias_3,
                           long rows_3, Address y_3) {
                 const auto matrix = [&](Address codes, Address scales, Address bias, long rows,
                                         Address y) -> Machine::Linear {
                     return {
                         at<const void>(codes), Type::int8, at<const void>(bias),    nullptr, rows, cols, cols, false,
                         at<void>(y),           type,       at<const float>(scales), group};
                 };
                 std::vector<Machine::Linear> matrices{matrix(codes, scales, bias, rows, y),
                                                       matrix(codes_2, scales_2, bias_2, rows_2, y_2)};
                 if (rows_3) matrices.push_back(matrix(codes_3, scales_3, bias_3, rows_3, y_3));
                 machine.linear(matrices, at<const void>(x), type, tokens);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def(
            "quantize_int8",
            [](Machine& machine, Address weight, Type type, long rows, long cols, long stride, long group,
               Address codes, Address scales) {
                machine.quantize_int8(at<const void>(weight), type, rows, cols, stride, group, at<std::int8_t>(codes),
                                      at<float>(scales));
            },
            nb::call_guard<nb::gil_scoped_release>())
        .def("rms_norm",
             operation(+[](Machine& machine, Address x, Address weight, Address y, Type type, long rows, long size,
                           float eps, bool round_before_weight) {
                 machine.rms_norm(at<const void>(x), at<const void>(weight), at<void>(y), type, rows, size, eps,
                                  round_before_weight);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("layer_norm",
             operation(+[](Machine& machine, Address x, Address weight, Address bias, Address y, Type type, long rows,
                           long size, float eps) {
                 machine.layer_norm(at<const void>(x), at<const void>(weight), at<const void>(bias), at<void>(y), type,
                                    rows, size, eps);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("gelu", operation(+[](Machine& machine, Address x, Address y, Type type, long count) {
                 machine.gelu(at<const void>(x), at<void>(y), type, count);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("swiglu", operation(+[](Machine& machine, Address gate, Address up, Address y, Type type, long count) {
                 machine.swiglu(at<const void>(gate), at<const void>(up), at<void>(y), type, count);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("clamped_swiglu",
             operation(+[](Machine& machine, Address gate, Address up, Address y, Type type, long count, float limit,
                           float alpha) {
                 machine.clamped_swiglu(at<const void>(gate), at<const void>(up), at<void>(y), type, count, limit,
                                        alpha);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("route",
             operation(+[](Machine& machine, Address logits, Address ids, Address weights, Type type, long tokens,
                           long experts, long chosen, bool softmax_first, bool renormalize) {
                 machine.route(at<const void>(logits), at<std::int64_t>(ids), at<float>(weights), type, tokens, experts,
                               chosen, softmax_first, renormalize);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("rotate",
             operation(+[](Machine& machine, Address x, Address cosines, Address sines, Address y, Type type,
                           long tokens, long heads, long head_dim) {
                 machine.rotate(at<const void>(x), at<const float>(cosines), at<const float>(sines), at<void>(y), type,
                                tokens, heads, head_dim);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("moe",
             operation(+[](Machine& machine, Address gate_up, Address gate_up_scales, long gate_up_expert,
                           long gate_up_stride, bool gate_up_transposed, Address gate_up_bias, Address down,
                           Address down_scales, long down_expert, long down_stride, bool down_transposed,
                           Address down_bias, long experts_count, long chosen, long hidden, long inter, bool clamped,
                           float limit, float alpha, Address x, Address ids, Address weights, Address residual,
                           Address y, Type type, Type y_type, long tokens) {
                 const Machine::MoE moe{
                     experts(gate_up, gate_up_scales, gate_up_expert, gate_up_stride, gate_up_transposed, gate_up_bias,
                             2 * inter, hidden),
                     experts(down, down_scales, down_expert, down_stride, down_transposed, down_bias, hidden, inter),
                     experts_count,
                     chosen,
                     clamped,
                     limit,
                     alpha};
                 machine.moe(moe, at<const void>(x), at<const std::int64_t>(ids), at<const float>(weights),
                             at<const void>(residual), at<void>(y), type, y_type, tokens);
             }),
             nb::call_guard<nb::gil_scoped_release>())
        .def("paged_attention",
             operation(+[](Machine& machine, Address keys, Address values, Address key_scales, Address value_scales,
                           Address page_table, Address lengths, Address query_lengths, long pages, long page_size,
                           long columns, long sequences, long heads, long kv_heads, long head_dim, long window,
                           Address sinks, Type sinks_type, Address cosines, Address sines, Address q, Address k,
                           Address v, Address y, Type type, long tokens) {
                 const Machine::Paged paged{at<void>(keys),
                                            at<void>(values),
                                            at<float>(key_scales),
                                            at<float>(value_scales),
                                            at<const std::int32_t>(page_table),
                                            at<const std::int64_t>(lengths),
                                            at<const std::int64_t>(query_lengths),
                                            pages,
                                            page_size,
                                            columns,
                                            sequences,
                                            heads,
                                            kv_heads,
                                            head_dim,
                                            window,
                                            at<const void>(sinks),
                                            sinks_type,
                                            at<const float>(cosines),
                                            at<const float>(sines)};
                 machine.paged_attention(paged, at<const void>(q), at<const void>(k), at<const void>(v), at<void>(y),
                                         type, tokens);
             }),
             nb::call_guard<nb::gil_scoped_release>());
}
