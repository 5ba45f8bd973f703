// Products of many tokens as on AMX, by an emulated matrix unit: for tests.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "amx/tiles_emulated.hpp"
#include "gemm/gemm.hpp"

namespace ossia {
namespace {

using Unit = EmulatedAmx;

#include "amx/gemm.inl"

}  // namespace

const TileGemm& gemm_amx_emulated() { return kTileGemm; }

}  // namespace ossia
