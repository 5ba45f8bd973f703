// Which tokens chose which expert.
#pragma once

#include <cstdint>
#include <vector>

namespace ossia {

constexpr long kPlaces = 16;

// The slots (token * chosen + choice) that chose one expert, in ascending order.
struct Group {
    long expert;
    long place;  // of the first where vectors lie expert by expert: each expert's begin at a multiple of kPlaces
    std::vector<long> slots;

    long end() const { return place + (static_cast<long>(slots.size()) + kPlaces - 1) / kPlaces * kPlaces; }
};

// The experts that were chosen, in ascending order. Throws std::out_of_range for an id outside [0, experts).
std::vector<Group> by_expert(const std::int64_t* ids, long slots, long experts);

}  // namespace ossia
