// AVX-512 with VNNI: vpdpbusd multiplies four unsigned by four signed bytes and adds them to an int32 lane.
#include "tier.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#endif

namespace mmfast {
namespace {

constexpr int kVectorBytes = 64;
#include "tiers/lanes.h"

inline Doubles widen(HalfFloats v) { return (Doubles)_mm512_cvtps_pd((__m256)v); }
inline Doubles widen(HalfInts v) { return (Doubles)_mm512_cvtepi32_pd((__m256i)v); }
inline HalfInts low_half(Ints v) { return (HalfInts)_mm512_castsi512_si256((__m512i)v); }
inline HalfInts high_half(Ints v) { return (HalfInts)_mm512_extracti64x4_epi64((__m512i)v, 1); }
inline void store_narrow(int8_t* p, Ints v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v)); }
inline void store_narrow(int16_t* p, Ints v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)v)); }
inline unsigned lane_bits(Ints mask) { return _mm512_movepi32_mask((__m512i)mask); }
inline void add_pairs(Ints& acc, Ints a, Ints b) { asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b)); }

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/positives.h"
#include "tiers/sums.h"

// acc += products of four unsigned by four signed bytes. As intrinsics, GCC 12 moves every accumulator through the
// stack (and add_pairs's), which more than halves the speed of the loop.
inline void add_products(__m512i& acc, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// ROWS x 64 dot products in registers (6 x 4 accumulators of the 32), then one comparison each.
template <int ROWS>
inline void screen_rows(const Screening& s, int first) {
  const int8_t* const rows = s.rows + size_t(first) * s.depth;
  const RowBound* const bounds = s.bounds + first;
  const uint8_t* panel = s.panel;
  __m512i acc[ROWS][4];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = _mm512_set1_epi32(bounds[r].start);
  for (int k = 0; k < s.depth; k += 4, panel += 4 * kPanel) {
    __m512i column[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) column[c] = _mm512_loadu_si512(panel + 64 * c);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      int32_t four;
      __builtin_memcpy(&four, rows + size_t(r) * s.depth + k, 4);
      const __m512i row = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) add_products(acc[r][c], column[c], row);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    uint64_t mask = 0, active = 0;
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512 right = _mm512_mul_ps(_mm512_set1_ps(bounds[r].v), _mm512_cvtepi32_ps(acc[r][c]));
      const __m512 inverse = _mm512_loadu_ps(s.inverse + 16 * c);
      const __m512 low = _mm512_fmadd_ps(_mm512_set1_ps(bounds[r].a), inverse, _mm512_loadu_ps(s.weighted + 16 * c));
      mask |= uint64_t(_mm512_cmp_ps_mask(low, right, _CMP_NGE_UQ)) << (16 * c);
      if (!s.active) continue;
      const __m512 high =
          _mm512_fmadd_ps(_mm512_set1_ps(bounds[r].b), inverse, _mm512_loadu_ps(s.active_weighted + 16 * c));
      active |= uint64_t(_mm512_cmp_ps_mask(high, right, _CMP_LT_OQ)) << (16 * c);
    }
    s.masks[first + r] = mask;
    if (s.active) s.active[first + r] = active;
  }
}

void screen(const Screening& s) {
  int r = 0;
  for (; r + 6 <= s.row_count; r += 6) screen_rows<6>(s, r);
  for (; r + 2 <= s.row_count; r += 2) screen_rows<2>(s, r);
  for (; r < s.row_count; ++r) screen_rows<1>(s, r);
}

// The compiler's probe reads CPUID and, through XGETBV, which registers the operating system saves.
bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

extern const Tier kAvx512Vnni;
const Tier kAvx512Vnni = {
    "avx512vnni",          available, 127,       128,       screen, count_ones, row_kernels<float>(),
    row_kernels<double>(), compare,   is_active, accumulate};

}  // namespace mmfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
