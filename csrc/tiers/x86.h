// What both x86 tiers share.

// out[r] = the sum of the lanes of v[r].
template <int ROWS>
inline void store_totals(const Ints (&v)[ROWS], int32_t* out) {
  if (ROWS == 4) {
    __m256i half[4];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) half[r] = halves_added(v[r % ROWS]);
    const __m256i pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(half[0], half[1]), _mm256_hadd_epi32(half[2], half[3]));
    const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storeu_si128((__m128i*)out, sums);
    return;
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) {
    const __m256i half = halves_added(v[r]);
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1));
    out[r] = _mm_cvtsi128_si32(sums);
  }
}
