// Detection of the processor's matrix unit.
#pragma once

#include "gemm/gemm.hpp"

namespace ossia {

struct AmxState {
    bool usable;
    const char* remark;  // the reason if the processor has a unit that is not usable
};

// Queries the processor, requests permission from the system, and checks a product; once per process.
const AmxState& amx_state();

// Whether a small product of whole numbers, which needs no rounding, is right.
bool multiplies(const TileGemm& gemm);

}  // namespace ossia
