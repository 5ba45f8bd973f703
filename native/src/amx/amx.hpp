// Whether this process may use the processor's matrix unit.
#pragma once

#include "gemm/gemm.hpp"

namespace ossia {

struct AmxState {
    bool usable;
    const char* remark;  // why not, if the processor has one
};

// Asks the processor, the system for the process's permission, and a product for the truth; once.
const AmxState& amx_state();

// Whether a small product, of whole numbers and so without rounding, is right.
bool multiplies(const TileGemm& gemm);

}  // namespace ossia
