#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "core/numbers.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace ossia {

namespace {

// Asks for huge pages, where they are to be had: new memory then comes in less than half the time.
void prefer_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] long size) {
#if defined(__linux__)
    constexpr std::uintptr_t kHuge = 1 << 21;
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(memory), first = (start + kHuge - 1) / kHuge * kHuge;
    const std::uintptr_t last = (start + size) / kHuge * kHuge;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

void Machine::quantize_int8(const void* weight, Type type, long rows, long cols, long stride, long group,
                            std::int8_t* codes, float* scales) {
    const long groups = (cols + group - 1) / group, piece = std::max((1L << 17) / cols, 1L);
    Pieces pieces(rows, 1, piece, threads_for(rows * cols));
    std::atomic<bool> finite{true};
    prefer_huge_pages(codes, rows * cols);
    run_if_large(rows * cols, [&](int thread, int) {
        pieces.take(thread, [&](long begin, long end) {
            for (long r = begin; r < end && finite.load(std::memory_order_relaxed); ++r) {
                std::int8_t* const to = codes + r * cols;
                float* const own = scales + r * groups;
                const bool good =
                    type == Type::bf16
                        ? kernels_.codes_bf16(static_cast<const bf16*>(weight) + r * stride, cols, group, to, own)
                        : kernels_.codes_f32(static_cast<const float*>(weight) + r * stride, cols, group, to, own);
                if (!good) finite.store(false, std::memory_order_relaxed);
            }
        });
    });
    if (!finite) throw std::invalid_argument("int8 cannot hold NaN or infinity");
}

}  // namespace ossia
