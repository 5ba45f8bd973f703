// AMX's products of many tokens on the emulated matrix unit. Only a build for tests (OSSIA_EMULATE_AMX) has them.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "gemm/gemm.hpp"
#include "tiles_emulated.hpp"

namespace ossia {
namespace {

using Unit = EmulatedAmx;

#include "amx/gemm.inl"

}  // namespace

const TileGemm& gemm_amx_emulated() { return kTileGemm; }

}  // namespace ossia
