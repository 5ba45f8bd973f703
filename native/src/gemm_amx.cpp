// AMX: products of many tokens on the processor's matrix unit.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "gemm.hpp"
#include "tiles.hpp"

namespace ossia {
namespace {

using Unit = Amx;

#include "gemm_tiles.inl"

}  // namespace

const TileGemm& gemm_amx() { return kTileGemm; }

}  // namespace ossia
