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
    constexpr int kBf16 = 22, kTiles = 24, kInt8 = 25;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> kBf16 & 1) || !(d >> kTiles & 1)) return {false, false, ""};
    const bool has_int8 = d >> kInt8 & 1;
    // The state that the system saves on a context switch: bit 17 is the tiles' configuration, bit 18 the tiles.
    unsigned saved = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && c >> 27 & 1) asm volatile("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));
    if ((saved >> 17 & 3) != 3) return {false, false, "AMX is not used: the system does not save its tiles"};
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
        return {false, false, "AMX is not used: the system does not permit it to this process"};
    const TileGemm& gemm = gemm_amx();
    if (!multiplies(gemm)) return {false, false, "AMX is not used: it gets a product of whole numbers wrong"};
    if (!has_int8) return {true, false, ""};
    if (!multiplies(*gemm.bytes)) return {true, false, "AMX multiplies no int8: it gets a product of bytes wrong"};
    return {true, true, ""};
}
#else
AmxState ask() { return {false, false, ""}; }
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

bool multiplies(const ByteTileGemm& gemm) {
    constexpr long kRows = 40, kCols = 300, kTokens = 37, kGroups = byte_groups(kCols);
    constexpr long kTiles = (kTokens + kTileTokens - 1) / kTileTokens;
    const auto code = [](long i, long c) { return static_cast<std::int8_t>(i * 31 + c * 17 + i * c); };
    const auto scale = [](long i, long group) { return static_cast<float>(1 << (i + group) % 3); };
    struct Memory {
        alignas(64) char scratch[kTileMemoryBytes];
        alignas(64) char tokens[kTiles * kGroups * kByteTileBytes];
        char records[kTileTokens * kByteRecord];
        std::int8_t codes[kRows * kCols];
        float scales[kRows * kGroups];
        float found[kTokens * kPanelRows];
    };
    const std::unique_ptr<Memory> memory(new Memory());
    for (long r = 0; r < kRows; ++r) {
        for (long c = 0; c < kCols; ++c) memory->codes[r * kCols + c] = code(r, c);
        for (long group = 0; group < kGroups; ++group) memory->scales[r * kGroups + group] = scale(r, group);
    }
    for (long tile = 0; tile < kTiles; ++tile)
        for (long group = 0; group < kGroups; ++group) {
            for (long i = 0; i < kTileTokens; ++i) {
                const long t = tile * kTileTokens + i + 100;
                char* record = memory->records + i * kByteRecord;
                for (long c = 0; c < kByteGroup; ++c) {
                    const long column = group * kByteGroup + c;
                    record[c] = static_cast<char>(column < kCols ? code(t, column) : 0);
                }
                const float own = scale(t, group);
                std::memcpy(record + kByteGroup, &own, sizeof own);
            }
            gemm.put(memory->records, memory->tokens + place_in_byte_tiles(tile * kTileTokens, group, kGroups));
        }
    gemm.int8(Int8{memory->codes, memory->scales, kCols, kByteGroup, kGroups}, memory->tokens, kTokens, 0, kRows,
              memory->scratch, memory->found);
    for (long t = 0; t < kTokens; ++t)
        for (long r = 0; r < kRows; ++r) {
            float expected = 0;
            for (long c = 0; c < kCols; ++c)
                expected += static_cast<float>(code(r, c) * code(t + 100, c)) * scale(r, c / kByteGroup) *
                            scale(t + 100, c / kByteGroup);
            if (memory->found[t * kPanelRows + r] != expected) return false;
        }
    return true;
}

}  // namespace ossia
