// Advanced SIMD with the dot product extension: sdot multiplies four signed by four signed bytes and adds them to an
// int32 lane.
#include "tier.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

namespace mmfast {
namespace {

constexpr int kVectorBytes = 16;
#include "tiers/lanes.h"

inline Doubles widen(HalfFloats v) { return (Doubles)vcvt_f64_f32((float32x2_t)v); }
inline Doubles widen(HalfInts v) { return (Doubles)vcvtq_f64_s64(vmovl_s32((int32x2_t)v)); }
inline HalfInts low_half(Ints v) { return (HalfInts)vget_low_s32((int32x4_t)v); }
inline HalfInts high_half(Ints v) { return (HalfInts)vget_high_s32((int32x4_t)v); }
inline void store_narrow(int8_t* p, Ints v) {
  const int16x4_t half = vmovn_s32((int32x4_t)v);
  const int8x8_t bytes = vmovn_s16(vcombine_s16(half, half));
  __builtin_memcpy(p, &bytes, 4);
}
inline void store_narrow(int16_t* p, Ints v) { vst1_s16(p, vmovn_s32((int32x4_t)v)); }
inline unsigned lane_bits(Ints mask) {
  const uint32x4_t weights = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32((uint32x4_t)mask, weights));
}
inline void add_pairs(Ints& acc, Ints a, Ints b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  acc += (Ints)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/positives.h"
#include "tiers/sums.h"

// ROWS x 16 dot products in registers (4 x 4 accumulators of the 32), then one comparison each.
template <int ROWS>
inline void screen_rows(const Screening& s, int first) {
  const int8_t* const rows = s.rows + size_t(first) * s.depth;
  const RowBound* const bounds = s.bounds + first;
  uint64_t found[ROWS] = {}, active[ROWS] = {};
  for (int c = 0; c < kPanel; c += 16) {
    int32x4_t acc[ROWS][4];
    for (int r = 0; r < ROWS; ++r)
      for (int h = 0; h < 4; ++h) acc[r][h] = vdupq_n_s32(bounds[r].start);
    const int8_t* p = (const int8_t*)s.panel + 4 * c;
    for (int k = 0; k < s.depth; k += 8, p += 8 * kPanel) {
      int8x16_t near[4], far[4];
      for (int h = 0; h < 4; ++h) near[h] = vld1q_s8(p + 16 * h), far[h] = vld1q_s8(p + 4 * kPanel + 16 * h);
      for (int r = 0; r < ROWS; ++r) {
        const int8x8_t row = vld1_s8(rows + size_t(r) * s.depth + k);
        for (int h = 0; h < 4; ++h) {
          acc[r][h] = vdotq_lane_s32(acc[r][h], near[h], row, 0);
          acc[r][h] = vdotq_lane_s32(acc[r][h], far[h], row, 1);
        }
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int column = c, h = 0; h < 4; ++h, column += 4) {
        const float32x4_t right = vmulq_n_f32(vcvtq_f32_s32(acc[r][h]), bounds[r].v);
        const float32x4_t inverse = vld1q_f32(s.inverse + column);
        const float32x4_t low = vfmaq_n_f32(vld1q_f32(s.weighted + column), inverse, bounds[r].a);
        found[r] |= uint64_t(lane_bits((Ints)vmvnq_u32(vcgeq_f32(low, right)))) << column;
        if (!s.active) continue;
        const float32x4_t high = vfmaq_n_f32(vld1q_f32(s.active_weighted + column), inverse, bounds[r].b);
        active[r] |= uint64_t(lane_bits((Ints)vcltq_f32(high, right))) << column;
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

bool available() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // Apple's processors all have it
#endif
}

}  // namespace

extern const Tier kNeon;
const Tier kNeon = {"neon",  available, 127,       0, screen, count_ones, row_kernels<float>(), row_kernels<double>(),
                    compare, is_active, accumulate};

}  // namespace mmfast

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
