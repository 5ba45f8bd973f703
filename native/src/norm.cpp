#include <cmath>
#include <vector>

#include "numbers.hpp"

namespace ossia {

namespace {

float mean_square(const float* x, long size) {
    constexpr int kLanes = 16;
    float lanes[kLanes] = {};
    long i = 0;
    for (; i + kLanes <= size; i += kLanes)
        for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
    float sum = 0;
    for (float lane : lanes) sum += lane;
    for (; i < size; ++i) sum += x[i] * x[i];
    return sum / static_cast<float>(size);
}

}  // namespace

void Machine::rms_norm(const void* x, const void* weight, void* y, Type type, long rows, long size, float eps,
                       bool round_before_weight) {
    run_if_large(rows * size, [&](int thread, int threads) {
        const Share mine = share(rows, 1, thread, threads);
        std::vector<float> wide(size);
        for (long row = mine.begin; row < mine.end; ++row) {
            for (long i = 0; i < size; ++i) wide[i] = read(x, type, row * size + i);
            const float scale = 1 / std::sqrt(mean_square(wide.data(), size) + eps);
            for (long i = 0; i < size; ++i) {
                const float normal = wide[i] * scale;
                write(y, type, row * size + i, (round_before_weight ? rounded(normal, type) : normal) * read(weight, type, i));
            }
        }
    });
}

void Machine::rotate(const void* x, const float* cosines, const float* sines, void* y, Type type, long tokens, long heads,
                     long head_dim) {
    const long half = head_dim / 2;
    run_if_large(tokens * heads * head_dim, [&](int thread, int threads) {
        const Share mine = share(tokens, 1, thread, threads);
        for (long token = mine.begin; token < mine.end; ++token)
            for (long head = 0; head < heads; ++head) {
                const long first = (token * heads + head) * head_dim, second = first + half;
                for (long i = 0; i < half; ++i) {
                    const float c = cosines[token * half + i], s = sines[token * half + i];
                    const float a = read(x, type, first + i), b = read(x, type, second + i);
                    write(y, type, first + i, a * c - b * s);
                    write(y, type, second + i, b * c + a * s);
                }
            }
    });
}

}  // namespace ossia
