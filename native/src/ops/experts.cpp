// The experts of a layer: checks, and the choice between the halves for few and for many tokens.
#include "ops/experts.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "core/check.hpp"
#include "core/machine.hpp"

namespace ossia {

Stack::Stack(const Array& weight, const Array& bias, const Array& scales) : weight(weight), bias(bias), scales(scales) {
    if (scales) {
        expect("weight", weight, Type::uint8, {kAny, kAny, kAny, kWordBlock / 2});
        expect("scales", scales, Type::uint8, {weight.shape[0], weight.shape[1], weight.shape[2]});
    } else {
        require(
            weight.has_floats() && weight.dims == 3 && (weight.strides[1] == 1 || weight.strides[2] == 1),
            "weight: expected bfloat16 or float32 (experts, rows, cols), each matrix with contiguous rows or columns");
    }
    require(weight.size() > 0, "weight: it is empty");
    experts = weight.shape[0];
    rows = weight.shape[1];
    cols = scales ? weight.shape[2] * kWordBlock : weight.shape[2];
    if (!scales) {
        expert_stride = weight.strides[0];
        transposed = weight.strides[2] != 1;
        stride = transposed ? weight.strides[2] : weight.strides[1];
    }
    if (bias) expect("bias", bias, bias.has_floats() ? bias.type : Type::f32, {experts, rows});
}

Experts::Experts(const Stack& gate_up, const Stack& down, bool clamped, float limit, float alpha)
    : gate_up(gate_up),
      down(down),
      clamped(clamped),
      limit(limit),
      alpha(alpha),
      count(gate_up.experts),
      hidden(gate_up.cols),
      inter(down.cols) {
    require(down.experts == count && gate_up.rows == 2 * inter && down.rows == hidden,
            "experts: expected gate_up (experts, 2 * inter, hidden) and down (experts, hidden, inter)");
    require(gate_up.weight.type == down.weight.type, "experts: expected gate_up and down of one type");
}

void Machine::moe(const Array& x, const Array& ids, const Array& weights, const Experts& experts, const Array& y,
                  const Array& residual, bool rounds) {
    const long tokens = expect_rows("x", x, experts.hidden);
    expect("x", x, x.type, {tokens, experts.hidden});
    expect("ids", ids, Type::int64, {tokens, kAny});
    expect_like("weights", weights, Type::f32, ids);
    require(y.type == x.type || y.type == Type::f32, "y: expected x's type or float32");
    expect_like("y", y, y.type, x);
    if (residual) expect_like("residual", residual, x.type, x);
    for (const Stack* stack : {&experts.gate_up, &experts.down}) {
        require(stack->is_packed() || stack->weight.type == x.type, "experts: expected weights of x's type");
        require(!stack->bias || stack->bias.type == x.type, "experts: expected biases of x's type");
    }
    require(!rounds || experts.gate_up.is_packed(), "rounds: expected experts in MXFP4");
    if (tokens == 0) return;
    if (tokens > kFewTokens || !experts.gate_up.is_packed())
        return moe_many(x, ids, weights, experts, y, residual, rounds);
    moe_few(x, ids, weights, experts, y, residual);
}

std::vector<Group> by_expert(const std::int64_t* ids, long slots, long experts) {
    std::vector<long> order(slots);
    std::iota(order.begin(), order.end(), 0L);
    std::stable_sort(order.begin(), order.end(), [&](long a, long b) { return ids[a] < ids[b]; });
    std::vector<Group> groups;
    for (long slot : order) {
        if (ids[slot] < 0 || ids[slot] >= experts) throw std::out_of_range("an expert id is outside the experts");
        if (groups.empty() || groups.back().expert != ids[slot])
            groups.push_back({static_cast<long>(ids[slot]), groups.empty() ? 0 : groups.back().end(), {}});
        groups.back().slots.push_back(slot);
    }
    return groups;
}

}  // namespace ossia
