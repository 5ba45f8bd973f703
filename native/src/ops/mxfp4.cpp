// Dense weights to MXFP4 and back.
#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "core/check.hpp"
#include "core/machine.hpp"

namespace ossia {

namespace {

constexpr long kBytes = kWordBlock / 2;

// Rows and blocks of a row of a contiguous packed matrix.
struct Extent {
    Extent(const Array& codes, const Array& scales) {
        expect("blocks", codes, Type::uint8, {kAny, kAny, kBytes});
        rows = codes.shape[0];
        blocks = codes.shape[1];
        expect("scales", scales, Type::uint8, {rows, blocks});
    }
    long rows, blocks;
};

// Rows that a thread takes at a time.
long piece_of(long blocks) { return std::max((1L << 15) / std::max(blocks * kWordBlock, 1L), 1L); }

}  // namespace

void Machine::pack_mxfp4(const Array& weight, const Array& codes, const Array& scales, const Array& sums) {
    const Extent extent(codes, scales);
    const long rows = extent.rows, blocks = extent.blocks;
    require(weight.has_floats() && weight.dims == 2 && weight.shape[0] == rows &&
                weight.shape[1] == blocks * kWordBlock && (weight.strides[1] == 1 || weight.size() == 0),
            "weight: expected bfloat16 or float32 (rows, cols) with contiguous rows, cols 32 times the blocks");
    expect("sums", sums, Type::f64, {rows, 2});
    if (weight.size() == 0) return;
    const long stride = weight.strides[0], elements = rows * blocks * kWordBlock;
    Pieces pieces(rows, 1, piece_of(blocks), threads_for(elements));
    std::atomic<bool> finite{true};
    run_if_large(elements, [&](int thread, int) {
        pieces.take(thread, [&](long begin, long end) {
            for (long r = begin; r < end && finite.load(std::memory_order_relaxed); ++r) {
                auto *to = codes.as<std::uint8_t>() + r * blocks * kBytes,
                     *own = scales.as<std::uint8_t>() + r * blocks;
                double* const sum = sums.as<double>() + 2 * r;
                sum[0] = sum[1] = 0;
                const bool good = weight.type == Type::bf16
                                      ? kernels_.pack_bf16(weight.as<const bf16>() + r * stride, blocks, to, own, sum)
                                      : kernels_.pack_f32(weight.as<const float>() + r * stride, blocks, to, own, sum);
                if (!good) finite.store(false, std::memory_order_relaxed);
            }
        });
    });
    if (!finite) throw std::invalid_argument("MXFP4 cannot hold NaN or infinity");
}

void Machine::unpack_mxfp4(const Array& codes, const Array& scales, const Array& y) {
    const Extent extent(codes, scales);
    const long rows = extent.rows, blocks = extent.blocks, cols = blocks * kWordBlock;
    expect_floats("y", y);
    expect("y", y, y.type, {rows, cols});
    if (y.size() == 0) return;
    Pieces pieces(rows, 1, piece_of(blocks), threads_for(rows * cols));
    run_if_large(rows * cols, [&](int thread, int) {
        pieces.take(thread, [&](long begin, long end) {
            const auto *from = codes.as<const std::uint8_t>() + begin * blocks * kBytes,
                       *own = scales.as<const std::uint8_t>() + begin * blocks;
            const long count = (end - begin) * blocks;
            if (y.type == Type::bf16) {
                kernels_.unpack_bf16(from, own, count, y.as<bf16>() + begin * cols);
            } else {
                kernels_.unpack_f32(from, own, count, y.as<float>() + begin * cols);
            }
        });
    });
}

}  // namespace ossia
