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
inline unsigned at_least(Floats a, Floats b) { return lane_bits(a >= b); }
inline void add_pairs(Ints& acc, Ints a, Ints b) { acc += (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16); }

constexpr int kScreenedRows = 2, kHeld = kPanel / (2 * kLanes);
constexpr int kOffset = 128;  // of rows

// acc += products of rows and columns.
template <int ROWS, int HELD>
inline void add_products(const uint8_t* rows, const int8_t* panel, int depth, Ints (&acc)[ROWS][HELD]) {
  for (int r = 0; r < ROWS; ++r, rows += depth) {
    constexpr int kColumns = HELD * 2 * kLanes;
    int32_t sums[kColumns] = {};
    for (int k = 0; k < depth; k += 4) {
      const int8_t* column = panel + size_t(k) * kPanel;
      const int32_t r0 = rows[k], r1 = rows[k + 1], r2 = rows[k + 2], r3 = rows[k + 3];
      for (int c = 0; c < kColumns; ++c, column += 4)
        sums[c] += r0 * column[0] + r1 * column[1] + r2 * column[2] + r3 * column[3];
    }
    for (int h = 0; h < HELD; ++h) acc[r][h] += load<Ints>(sums + h * 2 * kLanes);
  }
}

// out[r] = the numbers in a plane's row r times the digits of the query.
template <int ROWS>
inline void half_products(const uint8_t* const (&rows)[ROWS], const int8_t* query, int width, int32_t* out) {
  const int8_t* const upper = query + query_part(width);
  for (int r = 0; r < ROWS; ++r) {
    int32_t sum = 0;
    for (int k = 0; k < width; ++k) sum += (rows[r][k] & 15) * query[k] + (rows[r][k] >> 4) * upper[k];
    out[r] = sum;
  }
}

#include "tiers/body.h"
#include "tiers/compare.h"
#include "tiers/dots.h"
#include "tiers/positives.h"
#include "tiers/screen.h"
#include "tiers/sums.h"

bool available() { return true; }

}  // namespace

extern const Tier kPortable;
const Tier kPortable = {"portable",
                        available,
                        127,
                        kOffset,
                        screen,
                        count_ones,
                        127,
                        88,
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
