// Activations for packed kernels that look up a block's low and high nibbles apart. Included by such forms inside an
// unnamed namespace.

constexpr int kBlock = 32;

long quantized_size(long cols) { return cols; }

// Each block's even columns, then its odd ones: the order of the low and high nibbles.
void quantize(const float* x, long cols, std::int16_t* words, float* scale, float* rest) {
    quantize_to(x, cols, words, scale, rest, [](long c) { return c / kBlock * kBlock + c % 2 * 16 + c % kBlock / 2; });
}
