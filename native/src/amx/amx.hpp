// Detection of the processor's matrix unit.
#pragma once

#include "gemm/gemm.hpp"

namespace ossia {

struct AmxState {
    bool usable, multiplies_bytes;
    const char* remark;  // the reason if the processor has a unit that is not usable, or not for bytes
};

// Queries the processor, requests permission from the system, and checks products; once per process.
const AmxState& amx_state();

// Whether a small product of whole numbers, which needs no rounding, is right.
bool multiplies(const TileGemm& gemm);
bool multiplies(const ByteTileGemm& gemm);

}  // namespace ossia
