// The two halves of an operation: over few tokens a weight is multiplied as it lies, over many it is unpacked once for
// all of them.
#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "core/machine.hpp"
#include "ops/experts.hpp"

namespace ossia {

void Machine::linear(const std::vector<Linear>& matrices, const void* x, Type type, long tokens) {
    if (tokens > kFewTokens) return linear_many(matrices, x, type, tokens);
    linear_few(matrices, x, type, tokens);
}

void Machine::moe(const MoE& m, const void* x, const std::int64_t* ids, const float* weights, const void* residual,
                  void* y, Type type, Type y_type, long tokens) {
    if (tokens > kFewTokens || !m.gate_up.scales)
        return moe_many(m, x, ids, weights, residual, y, type, y_type, tokens);
    moe_few(m, x, ids, weights, residual, y, type, y_type, tokens);
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
