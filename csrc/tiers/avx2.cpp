// AVX2: vpmaddubsw adds pairs of byte products into int16, which saturates for 8-bit digits. With digits in
// [-63, 63], of rows as 1..127, two such pairs fit: 2 * 2 * 127 * 63 = 32,004 < 32,768, so one widening
// (vpmaddwd by ones) serves eight products. Search has rows of 1..255, and so queries in [-31, 31]: 2 * 2 * 255 * 31 =
// 31,620.
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
inline unsigned at_least(Floats a, Floats b) { return lane_bits(a >= b); }
inline void add_pairs(Ints& acc, Ints a, Ints b) { acc += (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }

constexpr int kScreenedRows = 4, kHeld = 2;  // 8 accumulators of the 16 registers
constexpr int kOffset = 64;                  // of rows

// acc += products of rows and columns.
template <int ROWS, int HELD>
inline void add_products(const uint8_t* rows, const int8_t* panel, int depth, Ints (&acc)[ROWS][HELD]) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int k = 0; k < depth; k += 8, panel += 8 * kPanel) {
    __m256i near[HELD], far[HELD];
    for (int h = 0; h < HELD; ++h) {
      near[h] = _mm256_loadu_si256((const __m256i*)(panel + 32 * h));
      far[h] = _mm256_loadu_si256((const __m256i*)(panel + 4 * kPanel + 32 * h));
    }
    for (int r = 0; r < ROWS; ++r) {
      const uint8_t* const row = rows + size_t(r) * depth + k;
      const __m256i a = _mm256_set1_epi32(load<int32_t>(row)), b = _mm256_set1_epi32(load<int32_t>(row + 4));
      for (int h = 0; h < HELD; ++h) {
        const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a, near[h]), _mm256_maddubs_epi16(b, far[h]));
        acc[r][h] += (Ints)_mm256_madd_epi16(pairs, ones);
      }
    }
  }
}

inline __m256i halves_added(Ints v) { return (__m256i)v; }
#include "tiers/x86.h"

// out[r] = the numbers in a plane's row r times the digits of the query: four products of up to 15 * 127 fit into
// int16.
template <int ROWS>
inline void half_products(const uint8_t* const (&rows)[ROWS], const int8_t* query, int width, int32_t* out) {
  const int8_t* const upper = query + query_part(width);
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
  Ints acc[ROWS] = {};
  for (int k = 0; k < width; k += 32) {
    const __m256i near = _mm256_loadu_si256((const __m256i*)(query + k));
    const __m256i far = _mm256_loadu_si256((const __m256i*)(upper + k));
    for (int r = 0; r < ROWS; ++r) {
      const __m256i bytes = _mm256_loadu_si256((const __m256i*)(rows[r] + k));
      const __m256i pairs =
          _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_and_si256(bytes, low), near),
                           _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), low), far));
      acc[r] += (Ints)_mm256_madd_epi16(pairs, ones);
    }
  }
  store_totals(acc, out);
}

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/dots.h"
#include "tiers/positives.h"
#include "tiers/screen.h"
#include "tiers/sums.h"

bool available() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Tier kAvx2;
const Tier kAvx2 = {"avx2",
                    available,
                    63,
                    kOffset,
                    screen,
                    count_ones,
                    31,
                    7,
                    unpack,
                    dots,
                    scan,
                    widen_bf16,
                    widen_f16,
                    row_kernels<float>(),
                    row_kernels<double>(),
                    compare,
                    is_active,
                    accumulate};

}  // namespace mmfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
