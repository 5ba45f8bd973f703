// The experts that each token goes to.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/check.hpp"
#include "core/machine.hpp"
#include "core/numbers.hpp"

namespace ossia {

void Machine::route(const Array& logits, const Array& ids, const Array& weights, bool softmax_first, bool renormalize) {
    const long experts = logits.last(), tokens = expect_rows("logits", logits, experts);
    expect("logits", logits, logits.type, {tokens, experts});
    expect("ids", ids, Type::int64, {tokens, kAny});
    expect_like("weights", weights, Type::f32, ids);
    const long chosen = ids.shape[1];
    require(chosen <= experts, "ids: more are chosen than there are experts");
    constexpr long kSorting = 16;  // times the work of the operations that run_if_large knows
    run_if_large(tokens * experts * kSorting, [&](int thread, int threads) {
        std::vector<float> row(experts);
        std::vector<std::int64_t> order(experts);
        const Share mine = share(tokens, 1, thread, threads);
        for (long t = mine.begin; t < mine.end; ++t) {
            for (long e = 0; e < experts; ++e) row[e] = read(logits.data, logits.type, t * experts + e);
            // NaN is the largest, as in torch; the comparison must be a strict weak order.
            const auto rank = [&](std::int64_t e) {
                return std::isnan(row[e]) ? std::numeric_limits<float>::infinity() : row[e];
            };
            std::iota(order.begin(), order.end(), std::int64_t{0});
            std::partial_sort(order.begin(), order.begin() + chosen, order.end(), [&](std::int64_t a, std::int64_t b) {
                return rank(a) > rank(b) || (rank(a) == rank(b) && a < b);
            });
            float* const weight = weights.as<float>() + t * chosen;
            std::int64_t* const id = ids.as<std::int64_t>() + t * chosen;
            float sum = 0;
            for (long c = 0; c < chosen; ++c) {
                id[c] = order[c];
                weight[c] = std::exp(row[order[c]] - row[order[0]]);
                sum += weight[c];
            }
            if (softmax_first && !renormalize)
                for (long c = chosen; c < experts; ++c) sum += std::exp(row[order[c]] - row[order[0]]);
            for (long c = 0; c < chosen; ++c) weight[c] /= sum;
        }
    });
}

}  // namespace ossia
