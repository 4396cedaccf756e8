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
inline unsigned at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
inline void add_pairs(Ints& acc, Ints a, Ints b) { asm("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b)); }

constexpr int kScreenedRows = 6, kHeld = 4;  // 24 accumulators of the 32 registers
constexpr int kOffset = 128;                 // of rows

// acc += products of rows and columns. vpdpbusd is not written as an intrinsic, nor vpdpwssd above: GCC 12 moves every
// accumulator of theirs through the stack, which more than halves the speed of the loop.
template <int ROWS, int HELD>
inline void add_products(const uint8_t* rows, const int8_t* panel, int depth, Ints (&acc)[ROWS][HELD]) {
  for (int k = 0; k < depth; k += 4, panel += 4 * kPanel) {
    Ints column[HELD];
#pragma GCC unroll 4
    for (int c = 0; c < HELD; ++c) column[c] = load<Ints>(panel + 64 * c);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Ints row = load<int32_t>(rows + size_t(r) * depth + k) - Ints{};  // in every lane
#pragma GCC unroll 4
      for (int c = 0; c < HELD; ++c) asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][c]) : "v"(row), "v"(column[c]));
    }
  }
}

inline __m256i halves_added(Ints v) { return (__m256i)(low_half(v) + high_half(v)); }
#include "tiers/x86.h"

// out[r] = the numbers in a plane's row r times the digits of the query.
template <int ROWS>
__attribute__((always_inline)) inline void half_products(const uint8_t* const (&rows)[ROWS], const int8_t* query,
                                                         int width, int32_t* out) {
  const int8_t* const upper = query + query_part(width);
  const Ints low = int32_t(0x0f0f0f0f) - Ints{};
  Ints near_sums[ROWS] = {}, far_sums[ROWS] = {};  // the latter times 16
  for (int k = 0; k < width; k += 64) {
    const Ints near = load<Ints>(query + k), far = load<Ints>(upper + k);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      const Ints bytes = load<Ints>(rows[r] + k);
      asm("vpdpbusd %2, %1, %0" : "+v"(near_sums[r]) : "v"(bytes & low), "v"(near));
      asm("vpdpbusd %2, %1, %0" : "+v"(far_sums[r]) : "v"(bytes & ~low), "v"(far));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r) near_sums[r] += far_sums[r] >> 4;
  store_totals(near_sums, out);
}

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/dots.h"
#include "tiers/positives.h"
#include "tiers/screen.h"
#include "tiers/sums.h"

// The compiler's probe reads CPUID and, through XGETBV, which registers the operating system saves.
bool available() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace

extern const Tier kAvx512Vnni;
const Tier kAvx512Vnni = {"avx512vnni",
                          available,
                          127,
                          kOffset,
                          screen,
                          count_ones,
                          127,
                          6,
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
