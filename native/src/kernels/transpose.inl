// Included by the forms of AVX-512 that transpose inside an unnamed namespace.

// Row i becomes the i-th 32 bits of each row.
inline void transpose(__m512i (&v)[16]) {
    __m512i a[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            v[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + 2 + j]);
            v[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + 2 + j]);
        }
    // Now v[4 * i + j] holds columns j, 4 + j, 8 + j and 12 + j of rows 4 * i to 4 * i + 3.
    for (int j = 0; j < 4; ++j) {
        const __m512i low0 = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88);
        const __m512i high0 = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xDD);
        const __m512i low1 = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        const __m512i high1 = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xDD);
        a[j] = _mm512_shuffle_i32x4(low0, low1, 0x88);
        a[8 + j] = _mm512_shuffle_i32x4(low0, low1, 0xDD);
        a[4 + j] = _mm512_shuffle_i32x4(high0, high1, 0x88);
        a[12 + j] = _mm512_shuffle_i32x4(high0, high1, 0xDD);
    }
    for (int i = 0; i < 16; ++i) v[i] = a[i];
}
