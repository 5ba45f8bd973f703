#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/numbers.hpp"

namespace ossia {

void Machine::route(const void* logits, std::int64_t* ids, float* weights, Type type, long tokens, long experts,
                    long chosen, bool softmax_first, bool renormalize) {
    std::vector<float> row(experts);
    std::vector<std::int64_t> order(experts);
    for (long t = 0; t < tokens; ++t) {
        for (long e = 0; e < experts; ++e) row[e] = read(logits, type, t * experts + e);
        // NaN is the largest, as in torch; a comparison must order whatever it is given.
        const auto rank = [&](std::int64_t e) {
            return std::isnan(row[e]) ? std::numeric_limits<float>::infinity() : row[e];
        };
        std::iota(order.begin(), order.end(), std::int64_t{0});
        std::partial_sort(order.begin(), order.begin() + chosen, order.end(), [&](std::int64_t a, std::int64_t b) {
            return rank(a) > rank(b) || (rank(a) == rank(b) && a < b);
        });
        float* weight = weights + t * chosen;
        float sum = 0;
        for (long c = 0; c < chosen; ++c) {
            ids[t * chosen + c] = order[c];
            weight[c] = std::exp(row[order[c]] - row[order[0]]);
            sum += weight[c];
        }
        if (softmax_first && !renormalize)
            for (long c = chosen; c < experts; ++c) sum += std::exp(row[order[c]] - row[order[0]]);
        for (long c = 0; c < chosen; ++c) weight[c] /= sum;
    }
}

}  // namespace ossia
