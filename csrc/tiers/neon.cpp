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
inline unsigned at_least(Floats a, Floats b) { return lane_bits(a >= b); }
inline void add_pairs(Ints& acc, Ints a, Ints b) {
  const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
  acc += (Ints)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}

constexpr int kScreenedRows = 4, kHeld = 4;  // 16 accumulators of the 32 registers
constexpr int kOffset = 0;                   // of rows

// acc += products of rows and columns.
template <int ROWS, int HELD>
inline void add_products(const uint8_t* rows, const int8_t* panel, int depth, Ints (&acc)[ROWS][HELD]) {
  for (int k = 0; k < depth; k += 8, panel += 8 * kPanel) {
    int8x16_t near[HELD], far[HELD];
    for (int h = 0; h < HELD; ++h) {
      near[h] = vld1q_s8(panel + 16 * h);
      far[h] = vld1q_s8(panel + 4 * kPanel + 16 * h);
    }
    for (int r = 0; r < ROWS; ++r) {
      const int8x8_t row = vld1_s8((const int8_t*)rows + size_t(r) * depth + k);
      for (int h = 0; h < HELD; ++h) {
        const int32x4_t half = vdotq_lane_s32((int32x4_t)acc[r][h], near[h], row, 0);
        acc[r][h] = (Ints)vdotq_lane_s32(half, far[h], row, 1);
      }
    }
  }
}

// out[r] = the numbers in a plane's row r times the digits of the query.
template <int ROWS>
inline void half_products(const uint8_t* const (&rows)[ROWS], const int8_t* query, int width, int32_t* out) {
  const int8_t* const upper = query + query_part(width);
  const uint8x16_t low = vdupq_n_u8(15);
  int32x4_t acc[ROWS] = {};
  for (int k = 0; k < width; k += 16) {
    const int8x16_t near = vld1q_s8(query + k), far = vld1q_s8(upper + k);
    for (int r = 0; r < ROWS; ++r) {
      const uint8x16_t bytes = vld1q_u8(rows[r] + k);
      acc[r] = vdotq_s32(acc[r], vreinterpretq_s8_u8(vandq_u8(bytes, low)), near);
      acc[r] = vdotq_s32(acc[r], vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), far);
    }
  }
  for (int r = 0; r < ROWS; ++r) out[r] = vaddvq_s32(acc[r]);
}

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/dots.h"
#include "tiers/positives.h"
#include "tiers/screen.h"
#include "tiers/sums.h"

bool available() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // Apple's processors all have it
#endif
}

}  // namespace

extern const Tier kNeon;
const Tier kNeon = {"neon",
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
