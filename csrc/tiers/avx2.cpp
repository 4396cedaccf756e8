// AVX2: vpmaddubsw adds pairs of byte products into int16, which saturates for 8-bit digits. With digits in
// [-63, 63], packed as 1..127, two such pairs fit: 2 * 2 * 127 * 63 = 32,004 < 32,768, so one widening
// (vpmaddwd by ones) serves eight products.
#include "tier.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace mmfast {
namespace {

constexpr int kVectorBytes = 32;
#include "tiers/lanes.h"

inline Doubles widen(HalfFloats v) { return (Doubles)_mm256_cvtps_pd((__m128)v); }
inline Doubles widen(HalfInts v) { return (Doubles)_mm256_cvtepi32_pd((__m128i)v); }
inline HalfInts low_half(Ints v) { return (HalfInts)_mm256_castsi256_si128((__m256i)v); }
inline HalfInts high_half(Ints v) { return (HalfInts)_mm256_extracti128_si256((__m256i)v, 1); }
inline __m128i narrow(Ints v) { return _mm_packs_epi32((__m128i)low_half(v), (__m128i)high_half(v)); }
inline void store_narrow(int8_t* p, Ints v) { _mm_storeu_si64(p, _mm_packs_epi16(narrow(v), narrow(v))); }
inline void store_narrow(int16_t* p, Ints v) { _mm_storeu_si128((__m128i*)p, narrow(v)); }
inline unsigned lane_bits(Ints mask) { return unsigned(_mm256_movemask_ps((__m256)mask)); }
inline void add_pairs(Ints& acc, Ints a, Ints b) { acc += (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/positives.h"
#include "tiers/sums.h"

// ROWS x 16 dot products in registers (4 x 2 accumulators of the 16), then one comparison each.
template <int ROWS>
inline void screen_rows(const Screening& s, int first) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int8_t* const rows = s.rows + size_t(first) * s.depth;
  const RowBound* const bounds = s.bounds + first;
  uint64_t found[ROWS] = {}, active[ROWS] = {};
  for (int c = 0; c < kPanel; c += 16) {
    __m256i acc[ROWS][2];
    for (int r = 0; r < ROWS; ++r) acc[r][0] = acc[r][1] = _mm256_set1_epi32(bounds[r].start);
    const uint8_t* p = s.panel + 4 * c;
    for (int k = 0; k < s.depth; k += 8, p += 8 * kPanel) {
      const __m256i a0 = _mm256_loadu_si256((const __m256i*)p);
      const __m256i a1 = _mm256_loadu_si256((const __m256i*)(p + 32));
      const __m256i b0 = _mm256_loadu_si256((const __m256i*)(p + 4 * kPanel));
      const __m256i b1 = _mm256_loadu_si256((const __m256i*)(p + 4 * kPanel + 32));
      for (int r = 0; r < ROWS; ++r) {
        int32_t four[2];
        __builtin_memcpy(four, rows + size_t(r) * s.depth + k, 8);
        const __m256i ra = _mm256_set1_epi32(four[0]), rb = _mm256_set1_epi32(four[1]);
        const __m256i s0 = _mm256_add_epi16(_mm256_maddubs_epi16(a0, ra), _mm256_maddubs_epi16(b0, rb));
        const __m256i s1 = _mm256_add_epi16(_mm256_maddubs_epi16(a1, ra), _mm256_maddubs_epi16(b1, rb));
        acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(s0, ones));
        acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(s1, ones));
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int column = c, h = 0; h < 2; ++h, column += 8) {
        const __m256 right = _mm256_mul_ps(_mm256_set1_ps(bounds[r].v), _mm256_cvtepi32_ps(acc[r][h]));
        const __m256 inverse = _mm256_loadu_ps(s.inverse + column);
        const __m256 low = _mm256_fmadd_ps(_mm256_set1_ps(bounds[r].a), inverse, _mm256_loadu_ps(s.weighted + column));
        found[r] |= uint64_t(unsigned(_mm256_movemask_ps(_mm256_cmp_ps(low, right, _CMP_NGE_UQ)))) << column;
        if (!s.active) continue;
        const __m256 high =
            _mm256_fmadd_ps(_mm256_set1_ps(bounds[r].b), inverse, _mm256_loadu_ps(s.active_weighted + column));
        active[r] |= uint64_t(unsigned(_mm256_movemask_ps(_mm256_cmp_ps(high, right, _CMP_LT_OQ)))) << column;
      }
  }
  for (int r = 0; r < ROWS; ++r) {
    s.masks[first + r] = found[r];
    if (s.active) s.active[first + r] = active[r];
  }
}

void screen(const Screening& s) {
  int r = 0;
  for (; r + 4 <= s.row_count; r += 4) screen_rows<4>(s, r);
  for (; r < s.row_count; ++r) screen_rows<1>(s, r);
}

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Tier kAvx2;
const Tier kAvx2 = {"avx2",  available, 63,        64, screen, count_ones, row_kernels<float>(), row_kernels<double>(),
                    compare, is_active, accumulate};

}  // namespace mmfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
