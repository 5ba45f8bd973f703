// Dense weights to int8.
#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "core/check.hpp"
#include "core/machine.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ossia {

namespace {

// Requests huge pages: committing new memory then takes less than half the time.
void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] long size) {
#if defined(__linux__)
    constexpr std::uintptr_t kHuge = 1 << 21;
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(memory), first = (start + kHuge - 1) / kHuge * kHuge;
    const std::uintptr_t last = (start + size) / kHuge * kHuge;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

void Machine::quantize_int8(const Array& weight, const Array& codes, const Array& scales, long group) {
    require(
        weight.has_floats() && weight.dims == 2 && weight.size() > 0 && (weight.strides[1] == 1 || weight.last() == 1),
        "weight: expected bfloat16 or float32 (rows, cols) with contiguous rows");
    require(group > 0 && group <= kMostGroup && group % 32 == 0, "group: expected a multiple of 32 up to 256");
    const long rows = weight.shape[0], cols = weight.shape[1], stride = weight.strides[0];
    expect("codes", codes, Type::int8, {rows, cols});
    expect("scales", scales, Type::f32, {rows, (cols + group - 1) / group});
    const long groups = (cols + group - 1) / group, piece = std::max((1L << 17) / cols, 1L);
    Pieces pieces(rows, 1, piece, threads_for(rows * cols));
    std::atomic<bool> finite{true};
    prefer_huge_pages(codes.data, rows * cols);
    run_if_large(rows * cols, [&](int thread, int) {
        pieces.take(thread, [&](long begin, long end) {
            for (long r = begin; r < end && finite.load(std::memory_order_relaxed); ++r) {
                std::int8_t* const to = codes.as<std::int8_t>() + r * cols;
                float* const own = scales.as<float>() + r * groups;
                const bool good = weight.type == Type::bf16
                                      ? kernels_.codes_bf16(weight.as<const bf16>() + r * stride, cols, group, to, own)
                                      : kernels_.codes_f32(weight.as<const float>() + r * stride, cols, group, to, own);
                if (!good) finite.store(false, std::memory_order_relaxed);
            }
        });
    });
    if (!finite) throw std::invalid_argument("int8 cannot hold NaN or infinity");
}

}  // namespace ossia
