// Units with many candidates, screened again with digits of 16 bits: the proof is screen.h's, for e = 0.52 sqrt(D) s.
//
// A digit is off by 1/2, by 3u |q| < 0.006 as z / s is rounded, and by 2u |z| / s < 0.004 as z is, u = 2^-24; what
// denormals lose is below the 2^-38 that is added. The step (screen.cpp) keeps |q|^2 below 2^31 for each row and so, by
// Cauchy-Schwarz, every dot product and every part of one.

constexpr int kAhead = 8;  // rows to fetch ahead: the processor does not foresee a step of a whole row
constexpr int kWords = kComparedFeatures / 2;  // two digits each

// Packs the digits of some features of a row, words kPanel apart; returns the sum of their squares.
inline int64_t pack_digits(const float* x, const float* centre, float unit, float step, int width, int32_t* words) {
  const float inverse = 1 / step, limit = 32767;
  Ints squares = {};
  int k = 0;
  for (; k + 16 <= width; k += 16, words += 8 * kPanel) {
    const F16 digit = clamp(nearest((load_wide(x + k) - load_wide(centre + k)) * unit * inverse), limit);
    int16_t digits[16];
    for (int i = 0; i < kParts; ++i) {
      const Ints integer = __builtin_convertvector(digit.part[i], Ints);
      squares += integer * integer;
      store_narrow(digits + i * 2 * kLanes, integer);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) __builtin_memcpy(words + i * kPanel, digits + 2 * i, 4);
  }
  int64_t sum = 0;
  for (int lane = 0; lane < 2 * kLanes; ++lane) sum += squares[lane];
  for (; k < width; k += 2, words += kPanel) {
    int16_t digits[2] = {};
    for (int i = 0; i < 2 && k + i < width; ++i) {
      digits[i] = int16_t(clamp(nearest((x[k + i] - centre[k + i]) * unit * inverse), limit));
      sum += int64_t(digits[i]) * digits[i];
    }
    __builtin_memcpy(words, digits, 4);
  }
  return sum;
}

// dots[r][c] (+)= sum over k of the digits of row r times those of column c, for 4 rows.
MMFAST_ALONE void add_dots(const int32_t* rows, const int32_t* columns, int words, bool first, int32_t* dots) {
  constexpr int kStep = 2 * kLanes, kColumns = kVectorBytes == 64 ? 4 : 2;  // times 4 rows: 16 or 8 accumulators
  for (int c = 0; c < kPanel; c += kColumns * kStep) {
    Ints acc[4][kColumns];
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < kColumns; ++h) acc[r][h] = first ? Ints{} : load<Ints>(dots + r * kPanel + c + h * kStep);
    for (int k = 0; k < words; ++k) {
      Ints column[kColumns];
#pragma GCC unroll 4
      for (int h = 0; h < kColumns; ++h) column[h] = load<Ints>(columns + k * kPanel + c + h * kStep);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const Ints row = Ints{} + rows[k * kPanel + r];  // in every lane
#pragma GCC unroll 4
        for (int h = 0; h < kColumns; ++h) add_pairs(acc[r][h], column[h], row);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r)
#pragma GCC unroll 4
      for (int h = 0; h < kColumns; ++h) store(dots + r * kPanel + c + h * kStep, acc[r][h]);
  }
}

// What the screen's condition needs of the rows of one side.
struct FineBounds {
  RowBound rows[kBlock];
  float inverse[kBlock], weighted[kBlock], active_weighted[kBlock];

  FineBounds(const float* steps, const int64_t* squares, int features, double margin) {
    const double residual = 0.52 * __builtin_sqrt(double(features));
    for (int r = 0; r < kBlock; ++r) {
      const double s = steps[r] > 0 ? steps[r] : 1;
      const Limits l = steps[r] > 0 ? limits(s * s * double(squares[r]), residual * s + 0x1p-38, margin) : kNoLimits;
      rows[r] = {float(2 * s), float(l.inactive), float(l.active)};
      inverse[r] = float(1 / s);
      weighted[r] = float(l.inactive / s);
      active_weighted[r] = float(l.active / s);
    }
  }
};

inline void compare(const Comparison& c) {
  int32_t* const digits[2] = {c.scratch, c.scratch + kBlock * kWords};  // (kBlockPanels, kWords, kPanel)
  int32_t* const dots = c.scratch + 2 * kBlock * kWords;                // (kBlockPanels, kBlock, kPanel)
  const float* const* const rows[2] = {c.anchors, c.others};
  const int counts[2] = {c.anchor_count, c.other_count};
  const float* const given[2] = {c.anchor_steps, c.other_steps};
  const int panels = (c.other_count + kPanel - 1) / kPanel;
  unsigned panels_used[2] = {};
  for (int p = 0; p < panels; ++p) panels_used[0] |= c.units[p], panels_used[1] |= unsigned(c.units[p] != 0) << p;
  float steps[2][kBlock] = {};
  int64_t squares[2][kBlock] = {};
  for (int side = 0; side < 2; ++side)
    for (int r = 0; r < counts[side]; ++r) steps[side][r] = given[side][r];
  for (int begin = 0; begin < c.features; begin += kComparedFeatures) {
    const int left = c.features - begin, width = left < kComparedFeatures ? left : kComparedFeatures;
    const int words = (width + 1) / 2;
    for (int side = 0; side < 2; ++side)
      for (int r = 0; r < (counts[side] + kPanel - 1) / kPanel * kPanel; ++r) {
        if (!(panels_used[side] >> r / kPanel & 1)) continue;
        int32_t* const row = digits[side] + r / kPanel * kPanel * kWords + r % kPanel;
        if (r + kAhead < counts[side])
          for (int k = 0; k < width; k += 16) __builtin_prefetch(rows[side][r + kAhead] + begin + k);
        if (steps[side][r] > 0)
          squares[side][r] += pack_digits(rows[side][r] + begin, c.centre + begin, c.unit, steps[side][r], width, row);
        else
          for (int k = 0; k < words; ++k) row[k * kPanel] = 0;
      }
    for (int p = 0; p < panels; ++p)
      for (int r = 0; r < c.anchor_count; r += 4)
        if (c.units[p] >> (r / kPanel) & 1)
          add_dots(digits[0] + r / kPanel * kPanel * kWords + r % kPanel, digits[1] + p * kPanel * kWords, words,
                   begin == 0, dots + (p * kBlock + r) * kPanel);
  }

  const FineBounds anchors(steps[0], squares[0], c.features, c.margin);
  const FineBounds others(steps[1], squares[1], c.features, c.margin);
  for (int p = 0; p < panels; ++p)
    for (int r = 0; r < c.anchor_count; ++r) {
      if (!(c.units[p] >> (r / kPanel) & 1)) continue;
      uint64_t inactive = 0, active = 0;
      for (int bit = 0, o = p * kPanel; bit < kPanel; bit += 2 * kLanes, o += 2 * kLanes) {
        const Ints products = load<Ints>(dots + (p * kBlock + r) * kPanel + bit);
        inactive |= inactive_bits(products, anchors.rows[r], others.inverse + o, others.weighted + o) << bit;
        active |= active_bits(products, anchors.rows[r], others.inverse + o, others.active_weighted + o) << bit;
      }
      c.inactive[p * kBlock + r] = inactive;
      c.active[p * kBlock + r] = active;
    }
}
