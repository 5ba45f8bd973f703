// AMX: products of many tokens on the processor's matrix unit.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "amx/tiles.hpp"
#include "gemm/gemm.hpp"

namespace ossia {
namespace {

using Unit = Amx;

#include "amx/gemm.inl"

}  // namespace

const TileGemm& gemm_amx() { return kTileGemm; }

}  // namespace ossia
