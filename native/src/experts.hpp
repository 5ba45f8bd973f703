// Which tokens chose which expert.
#pragma once

#include <cstdint>
#include <vector>

namespace ossia {

// The slots (token * chosen + choice) that chose one expert, in ascending order.
struct Group {
    long expert;
    std::vector<long> slots;
};

// The experts that were chosen, in ascending order. Throws std::out_of_range for an id outside [0, experts).
std::vector<Group> by_expert(const std::int64_t* ids, long slots, long experts);

}  // namespace ossia
