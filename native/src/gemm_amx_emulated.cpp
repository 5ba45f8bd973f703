// Products of many tokens as on AMX, by an emulated matrix unit: for tests.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "gemm.hpp"
#include "tiles_emulated.hpp"

namespace ossia {
namespace {

using Unit = EmulatedAmx;

#include "gemm_tiles.inl"

}  // namespace

const TileGemm& gemm_amx_emulated() { return kTileGemm; }

}  // namespace ossia
