// Any processor: plain C++ that the compiler vectorises for its baseline.
#include "tier.h"

namespace mmfast {
namespace {

constexpr int kVectorBytes = 16;
#include "tiers/lanes.h"

inline Doubles widen(HalfFloats v) { return __builtin_convertvector(v, Doubles); }
inline Doubles widen(HalfInts v) { return __builtin_convertvector(v, Doubles); }
inline HalfInts low_half(Ints v) { return HalfInts{v[0], v[1]}; }
inline HalfInts high_half(Ints v) { return HalfInts{v[2], v[3]}; }
template <class T>
inline void store_lanes_narrow(T* p, Ints v) {
  for (int lane = 0; lane < 2 * kLanes; ++lane) p[lane] = T(v[lane]);
}
inline void store_narrow(int8_t* p, Ints v) { store_lanes_narrow(p, v); }
inline void store_narrow(int16_t* p, Ints v) { store_lanes_narrow(p, v); }
inline unsigned lane_bits(Ints mask) {
  unsigned bits = 0;
  for (int lane = 0; lane < 2 * kLanes; ++lane) bits |= unsigned(mask[lane] & 1) << lane;
  return bits;
}
inline void add_pairs(Ints& acc, Ints a, Ints b) { acc += (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16); }

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/positives.h"
#include "tiers/sums.h"

void screen(const Screening& s) {
  for (int r = 0; r < s.row_count; ++r) {
    const int8_t* const row = s.rows + size_t(r) * s.depth;
    const RowBound& bound = s.bounds[r];
    int32_t acc[kPanel];
    for (int c = 0; c < kPanel; ++c) acc[c] = bound.start;
    for (int k = 0; k < s.depth; k += 4) {
      const uint8_t* column = s.panel + size_t(k) * kPanel;
      const int32_t r0 = row[k], r1 = row[k + 1], r2 = row[k + 2], r3 = row[k + 3];
      for (int c = 0; c < kPanel; ++c, column += 4)
        acc[c] += r0 * column[0] + r1 * column[1] + r2 * column[2] + r3 * column[3];
    }
    uint64_t mask = 0, active = 0;
    for (int c = 0; c < kPanel; ++c) {
      const float right = bound.v * float(acc[c]);
      mask |= uint64_t(!(bound.a * s.inverse[c] + s.weighted[c] >= right)) << c;
      active |= uint64_t(bound.b * s.inverse[c] + s.active_weighted[c] < right) << c;
    }
    s.masks[r] = mask;
    if (s.active) s.active[r] = active;
  }
}

bool available() { return true; }

}  // namespace

extern const Tier kPortable;
const Tier kPortable = {
    "portable", available, 127,       128, screen, count_ones, row_kernels<float>(), row_kernels<double>(),
    compare,    is_active, accumulate};

}  // namespace mmfast
