// The parameters of sampling; ossia/ops/sampling.py defines what they do.
#pragma once

#include "core/array.hpp"

namespace ossia {

// What bias and penalties change in some rows of logits. Throws std::invalid_argument for parts that do not fit
// together. The contents change from step to step and are checked at each use.
struct Edits {
    // int64 rows (edited,), lengths (edited, 1), ids and counts (edited, slots); float32 biases (edited, slots),
    // repetition, frequency and presence (edited, 1). Or none of them.
    Edits(const Array& rows, const Array& lengths, const Array& ids, const Array& biases, const Array& counts,
          const Array& repetition, const Array& frequency, const Array& presence);

    Array rows, lengths, ids, biases, counts, repetition, frequency, presence;
    long edited = 0, slots = 0;
};

// The parameters of each row. Throws std::invalid_argument for parts that do not fit together.
struct SamplingTable {
    // (rows, 1): float32 scale and log2_min_p, int64 top_k, float64 top_p and uniforms. bits: int32 (rows, words) or
    // none.
    SamplingTable(const Array& scale, const Array& top_k, const Array& top_p, const Array& log2_min_p,
                  const Array& uniforms, const Array& bits, const Edits& edits);

    Array scale, top_k, top_p, log2_min_p, uniforms, bits;
    Edits edits;
    long rows;
};

}  // namespace ossia
