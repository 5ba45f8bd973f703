// The table of a form: its kernels by the names that every form gives them. Included last by each form inside an
// unnamed namespace.

constexpr Kernels table(const char* name) {
    return {
        name,
        dense_floats<bf16>,
        dense_floats<float>,
        dense_int8,
        words_size,
        to_words<bf16>,
        to_words<float>,
        to_codes<bf16>,
        to_codes<float>,
        pack_blocks<bf16>,
        pack_blocks<float>,
        unpack_blocks<bf16>,
        unpack_blocks<float>,
        sum_words,
        quantized_size,
        quantize,
        packed,
        turn<bf16>,
        turn<float>,
        attend_scratch,
        nullptr,
        kAttend<bf16>,
        kAttend<float>,
        kAttend<std::int8_t>,
        kRowwise<bf16>,
        kRowwise<float>,
        turns,
        kWeighing,
        kTraining,
    };
}
