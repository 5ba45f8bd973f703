// Cosines and sines of positions.
#include "core/check.hpp"
#include "core/machine.hpp"

namespace ossia {

void Machine::rope_table(const Array& positions, const Array& frequencies, double factor, const Array& cosines,
                         const Array& sines) {
    require(positions.type == Type::int64 && positions.is_contiguous(), "positions: expected contiguous int64");
    const long count = positions.size(), half = frequencies.size();
    expect("frequencies", frequencies, Type::f32, {half});
    require(expect_rows("cosines", cosines, half) == count, "cosines: expected a row for each position");
    expect_like("cosines", cosines, Type::f32, cosines);
    expect_like("sines", sines, Type::f32, cosines);
    // An angle costs about as much as ten elements of other operations.
    run_if_large(count * half * 8, [&](int thread, int threads) {
        const Share mine = share(count, 1, thread, threads);
        for (long i = mine.begin; i < mine.end; ++i)
            kernels_.turns(static_cast<float>(positions.as<const std::int64_t>()[i]), frequencies.as<const float>(),
                           half, factor, cosines.as<float>() + i * half, sines.as<float>() + i * half);
    });
}

}  // namespace ossia
