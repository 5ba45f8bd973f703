// The experts of a layer, and the tokens of each.
#pragma once

#include <cstdint>
#include <vector>

#include "core/array.hpp"

namespace ossia {

// One matrix of each expert of a layer, and their biases. Throws std::invalid_argument for parts that do not fit
// together.
struct Stack {
    // weight: bfloat16 or float32 (experts, rows, cols), each matrix with contiguous rows or columns, and no scales; or
    // MXFP4's contiguous uint8 blocks (experts, rows, cols/32, 16) and scales (experts, rows, cols/32). bias: (experts,
    // rows) or none.
    Stack(const Array& weight, const Array& bias, const Array& scales);

    bool is_packed() const { return static_cast<bool>(scales); }

    Array weight, bias, scales;
    long experts, rows, cols;
    // Strides of dense matrices, in elements: from one matrix to the next; from row to row, or from column to column if
    // transposed.
    long expert_stride = 0, stride = 0;
    bool transposed = false;
};

// A layer's experts: gate_up (experts, 2 * inter, hidden), its rows gate, up, gate, up, ...; down (experts, hidden,
// inter). Throws std::invalid_argument for stacks that do not fit together.
struct Experts {
    // If `clamped`, the activation is gpt-oss's SwiGLU with this limit and alpha.
    Experts(const Stack& gate_up, const Stack& down, bool clamped, float limit, float alpha);

    Stack gate_up, down;
    bool clamped;
    float limit, alpha;
    long count, hidden, inter;
};

constexpr long kPlaces = 16;

// The slots (token * chosen + choice) that chose one expert, in ascending order.
struct Group {
    long expert;
    long place;  // of the first slot where vectors are stored expert by expert, each expert from a multiple of kPlaces
                 // on
    std::vector<long> slots;

    long end() const { return place + (static_cast<long>(slots.size()) + kPlaces - 1) / kPlaces * kPlaces; }
};

// The experts that were chosen, in ascending order. Throws std::out_of_range for an id outside [0, experts).
std::vector<Group> by_expert(const std::int64_t* ids, long slots, long experts);

}  // namespace ossia
