#include "amx/amx.hpp"

#include <cstring>
#include <memory>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ossia {

namespace {

#if defined(__x86_64__) && defined(__linux__)
AmxState ask() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1))
        return {false, ""};  // bf16, tiles
    // The state that the system saves on a context switch: bit 17 is the tiles' configuration, bit 18 the tiles.
    unsigned saved = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && c >> 27 & 1) asm volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if ((saved >> 17 & 3) != 3) return {false, "AMX is not used: the system does not save its tiles"};
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
        return {false, "AMX is not used: the system does not permit it to this process"};
    if (!multiplies(gemm_amx())) return {false, "AMX is not used: it gets a product of whole numbers wrong"};
    return {true, ""};
}
#else
AmxState ask() { return {false, ""}; }
#endif

}  // namespace

const AmxState& amx_state() {
    static const AmxState answer = ask();
    return answer;
}

bool multiplies(const TileGemm& gemm) {
    constexpr long kRows = 40, kCols = 70, kTokens = 37, kBlocks = 3;
    const auto number = [](long i, long c) { return static_cast<float>((i * 31 + c * 17 + i * c) % 15 - 7); };
    const auto narrow = [](float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return static_cast<bf16>(bits >> 16);
    };
    struct Memory {
        alignas(64) char scratch[kTileMemoryBytes];
        char tokens[(kTokens + kTileTokens - 1) / kTileTokens * kTileTokens * kBlocks * kWordBlock * sizeof(bf16)];
        bf16 weights[kRows * kCols];
        float found[kTokens * kPanelRows];
    };
    const std::unique_ptr<Memory> memory(new Memory());
    for (long r = 0; r < kRows; ++r)
        for (long c = 0; c < kCols; ++c) memory->weights[r * kCols + c] = narrow(number(r, c));
    for (long t = 0; t < kTokens; ++t)
        for (long block = 0; block < kBlocks; ++block) {
            float x[kWordBlock];
            const long count = block + 1 < kBlocks ? kWordBlock : kCols - block * kWordBlock;
            for (long c = 0; c < count; ++c) x[c] = number(t + 100, block * kWordBlock + c);
            gemm.put_f32(x, count, memory->tokens + place_in_tiles(t, block, kBlocks));
        }
    gemm.dense(Dense<bf16>{memory->weights, kCols, kCols, false}, memory->tokens, kTokens, 0, kRows, memory->scratch,
               memory->found);
    for (long t = 0; t < kTokens; ++t)
        for (long r = 0; r < kRows; ++r) {
            float expected = 0;
            for (long c = 0; c < kCols; ++c) expected += number(r, c) * number(t + 100, c);
            if (memory->found[t * kPanelRows + r] != expected) return false;
        }
    return true;
}

}  // namespace ossia
