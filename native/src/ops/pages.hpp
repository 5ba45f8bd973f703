// Keys and values in pages.
#pragma once

#include "core/array.hpp"

namespace ossia {

// The pages of one layer. Throws std::invalid_argument for parts that do not fit together.
struct Pages {
    // keys, values: bfloat16, float32 or int8 (pages, page_size, kv_heads, head_dim). Scales, for int8 only: float32
    // (pages, page_size, kv_heads).
    Pages(const Array& keys, const Array& values, const Array& key_scales, const Array& value_scales);

    Array keys, values, key_scales, value_scales;
    long count, page_size, kv_heads, head_dim;
};

// The sequences of one step, shared by all layers of a kind. Throws std::invalid_argument for parts that do not fit
// together. The contents change from step to step and are checked at each use.
struct Tables {
    // page_table: int32 (sequences, columns); lengths, which include this step's tokens, and query_lengths: int64
    // (sequences,).
    Tables(const Array& page_table, const Array& lengths, const Array& query_lengths);

    Array page_table, lengths, query_lengths;
    long sequences, columns;
};

}  // namespace ossia
