// Units of up to 64 x 64 pairs with many candidates: decided by float32 products, summed by tables.
// Products and sums may be fused in the function that bears this: its result is only compared with its bound.
#if defined(__clang__)
#define MMFAST_FUSED
#else
#define MMFAST_FUSED __attribute__((noinline, optimize("fp-contract=fast")))
#endif

// dots[r][c] (+)= sum over k of rows[r][k] * columns[k][c], for 4 rows.
MMFAST_FUSED void add_dots(const float* rows, const float* columns, int width, bool first, float* dots) {
  constexpr int kStep = 2 * kLanes;  // floats in a register
  for (int c = 0; c < kPanel; c += 2 * kStep) {
    Floats acc[4][2] = {};
    if (!first)
      for (int r = 0; r < 4; ++r)
        for (int h = 0; h < 2; ++h) acc[r][h] = load<Floats>(dots + r * kPanel + c + h * kStep);
    for (int k = 0; k < width; ++k) {
      const Floats low = load<Floats>(columns + k * kPanel + c), high = load<Floats>(columns + k * kPanel + c + kStep);
      for (int r = 0; r < 4; ++r) {
        const Floats row = rows[r * kComparedFeatures + k] - Floats{};  // in every lane; + would add zeros
        acc[r][0] += row * low;
        acc[r][1] += row * high;
      }
    }
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h) store(dots + r * kPanel + c + h * kStep, acc[r][h]);
  }
}

// z = unit (x - centre), rounded to float32, of some features of a row, `step` apart; adds |z|^2 to `norm`.
inline void centre_row(const float* x, const double* centre, double unit, int width, float* z, int step,
                       double* norm) {
  D8 sum8 = {};
  int k = 0;
  float lanes[8];
  for (; k + 8 <= width; k += 8) {
    const D8 wide = (load_double(x + k) - load_double(centre + k)) * unit;
    sum8 = sum8 + wide * wide;
    for (int i = 0; i < kParts; ++i) store(lanes + i * kLanes, __builtin_convertvector(wide.part[i], HalfFloats));
    for (int lane = 0; lane < 8; ++lane) z[(k + lane) * step] = lanes[lane];
  }
  double sum = total(sum8);
  for (; k < width; ++k) {
    const double wide = (double(x[k]) - centre[k]) * unit;
    sum += wide * wide;
    z[k * step] = float(wide);
  }
  *norm += sum;
}

// With u = 2^-24 and n = |z|^2, n in double from z before it is rounded: rounding both z to float32 moves twice their dot
// product by at most 4.1u |z_i| |z_j|, and its D products and sums by at most 2 (D + 2) u |z_i| |z_j| / (1 - D u). As
// |z_i| |z_j| <= (n_i + n_j) / 2, d^2 is off by less than c (n_i + n_j) with c = 2 (D + 16) u, by half of it while
// D u < 1/2, which leaves room for the rounding of the terms below; 4u (n + m/2) and 1e-30 more are for what the margin
// and denormals add to it. A pair is certainly inactive if low_i + low_j >= 2 z_i . z_j, certainly active if
// high_i + high_j < 2 z_i . z_j. Undecidable rows hold NaN, for which both are false.
inline void compare(const Comparison& c) {
  float* const rows = c.scratch;                                // (kBlock, kComparedFeatures)
  float* const columns = rows + kBlock * kComparedFeatures;     // (kBlockPanels, kComparedFeatures, kPanel)
  float* const dots = columns + kBlock * kComparedFeatures;     // (kBlockPanels, kBlock, kPanel)
  const int panels = (c.other_count + kPanel - 1) / kPanel;
  double norms[2][kBlock] = {};
  for (int begin = 0; begin == 0 || begin < c.features; begin += kComparedFeatures) {  // once if there are none
    const int left = c.features - begin, width = left < kComparedFeatures ? left : kComparedFeatures;
    int r = 0, o = 0;
    for (; r < c.anchor_count; ++r)
      centre_row(c.anchors[r] + begin, c.centre + begin, c.unit, width, rows + r * kComparedFeatures, 1, &norms[0][r]);
    for (; r % 4; ++r)
      for (int k = 0; k < width; ++k) rows[r * kComparedFeatures + k] = 0;
    for (; o < panels * kPanel; ++o) {
      float* const column = columns + o / kPanel * kPanel * kComparedFeatures + o % kPanel;
      if (o < c.other_count)
        centre_row(c.others[o] + begin, c.centre + begin, c.unit, width, column, kPanel, &norms[1][o]);
      else
        for (int k = 0; k < width; ++k) column[k * kPanel] = 0;
    }
    for (int p = 0; p < panels; ++p)
      for (r = 0; r < c.anchor_count; r += 4)
        if (c.units[p] >> (r / kPanel) & 1)
          add_dots(rows + r * kComparedFeatures, columns + p * kPanel * kComparedFeatures, width, begin == 0,
                   dots + (p * kBlock + r) * kPanel);
  }
  const double u = 0x1p-24, relative = 2 * (c.features + 16) * u, half = c.margin * c.unit * c.unit / 2;
  float low[2][kBlock], high[2][kBlock];
  for (int side = 0; side < 2; ++side)
    for (int i = 0; i < kBlock; ++i) {
      const double n = norms[side][i], slack = relative * n + 4 * u * (n + half) + 1e-30;
      const bool decidable = n < 1e30 && half < 1e30 && c.features < 1 << 22;
      low[side][i] = decidable ? float(n - half - slack) : __builtin_nanf("");
      high[side][i] = decidable ? float(n - half + slack) : __builtin_nanf("");
    }
  for (int p = 0; p < panels; ++p)
    for (int r = 0; r < c.anchor_count; ++r) {
      if (!(c.units[p] >> (r / kPanel) & 1)) continue;
      uint64_t inactive = 0, active = 0;
      for (int o = 0; o < kPanel; o += 2 * kLanes) {
        const Floats dot = load<Floats>(dots + (p * kBlock + r) * kPanel + o), twice = dot + dot;
        const Floats other_low = load<Floats>(low[1] + p * kPanel + o), other_high = load<Floats>(high[1] + p * kPanel + o);
        inactive |= uint64_t(lane_bits(low[0][r] + other_low >= twice)) << o;
        active |= uint64_t(lane_bits(high[0][r] + other_high < twice)) << o;
      }
      c.inactive[p * kBlock + r] = inactive;
      c.active[p * kBlock + r] = active;
    }
}

// Sums of rows chosen by bits, by the method of the four Russians (Arlazarov, Dinic, Kronrod, Faradzev, 1970): the sums of
// all 16 subsets of 4 rows are tabulated, and each mask adds one of them where it would have added up to 4 rows. A row
// that is not active enters no sum that is used, not even to be taken off again: next to a huge one the others would
// lose their digits.
constexpr int kTabled = 32;  // rows at a time: their tables, 16 KiB, stay in the first-level cache

struct Entry {  // kSummedFeatures doubles
  D8 part[2];
};
inline Entry load_entry(const double* p) { return {{load_double(p), load_double(p + 8)}}; }
inline void store_entry(double* p, Entry e) {
  store_lanes(p, e.part[0]);
  store_lanes(p + 8, e.part[1]);
}
inline Entry operator+(Entry a, Entry b) { return {{a.part[0] + b.part[0], a.part[1] + b.part[1]}}; }

// sums[r] = sum of the partners whose bits are set in the masks of row r.
inline void masked_sums(const uint64_t* masks, int count, const double* partners, int partner_count, double* sums) {
  constexpr int kWidth = kSummedFeatures, kGroups = kTabled / 4;
  alignas(64) double table[kGroups * 16 * kWidth];
  for (int i = 0; i < count * kWidth; ++i) sums[i] = 0;
  for (int c = 0; c < partner_count; c += kTabled) {
    const uint64_t* const words = masks + c / kPanel * kBlock;
    uint64_t any = 0;
    for (int r = 0; r < count; ++r) any |= words[r];
    if (!any) continue;
    Entry all = {};
    for (int g = 0; g < kGroups; ++g) {
      double* const subsets = table + g * 16 * kWidth;
      store_entry(subsets, Entry{});
      for (int member = 0; member < 4; ++member) {
        const int row = c + 4 * g + member;
        const Entry partner = row < partner_count ? load_entry(partners + row * kWidth) : Entry{};
        for (int subset = 0; subset < 1 << member; ++subset)
          store_entry(subsets + ((1 << member) + subset) * kWidth, load_entry(subsets + subset * kWidth) + partner);
      }
      all = all + load_entry(subsets + 15 * kWidth);
    }
    for (int r = 0; r < count; ++r) {
      const uint64_t bits = uint32_t(words[r] >> c % kPanel);
      if (!bits) continue;
      Entry sum = load_entry(sums + r * kWidth);
      if (bits == 0xffffffff) {
        sum = sum + all;
      } else {
        for (int g = 0; g < kGroups; ++g)
          sum = sum + load_entry(table + g * 16 * kWidth + ((bits * kWidth >> 4 * g) & 15 * kWidth));
      }
      store_entry(sums + r * kWidth, sum);
    }
  }
}

// Bit c of word r becomes bit r of word c (Warren, Hacker's Delight, 7-3).
inline void transpose_bits(uint64_t* words) {
  uint64_t low = 0x00000000ffffffff;
  for (int j = 32; j; j /= 2, low ^= low << j)
    for (int k = 0; k < kPanel; k = (k + j + 1) & ~j) {
      const uint64_t swapped = (words[k] >> j ^ words[k + j]) & low;
      words[k] ^= swapped << j;
      words[k + j] ^= swapped;
    }
}

constexpr int kAhead = 8;  // rows to fetch ahead: the processor does not foresee a step of a whole row

// One side of a dense tile.
struct DenseSide {
  const float* const* rows;
  double* const* targets;  // null: not wanted
  int count;
  const uint64_t* masks;   // over the other side
  double weight[kBlock];     // the number of bits
  double norms[kBlock * 8];  // |row - origin|^2 in 8 parts

  DenseSide(const float* const* rows, double* const* targets, int count, const uint64_t* masks, int panels)
      : rows(rows), targets(targets), count(count), masks(masks) {
    for (int r = 0; r < count; ++r) {
      int bits = 0;
      for (int p = 0; p < panels; ++p) bits += __builtin_popcountll(masks[p * kBlock + r]);
      weight[r] = bits;
      store_lanes(norms + r * 8, D8{});
    }
  }

  // Widens the features from `begin` on; pads with zeros.
  void widen(int begin, int width, double* wide) const {
    for (int r = 0; r < count; ++r, wide += kSummedFeatures) {
      const float* const row = rows[r] + begin;
      if (r + kAhead < count) __builtin_prefetch(rows[r + kAhead] + begin);
      int k = 0;
      for (; k + 8 <= width; k += 8) store_lanes(wide + k, load_double(row + k));
      for (; k < kSummedFeatures; ++k) wide[k] = k < width ? double(row[k]) : 0;
    }
  }

  // Turns the partners' sums into sums of differences, adds them to where they belong, and returns their products with
  // row - origin.
  double collect(const double* wide, const double* sums, const double* origin, int begin, int width) {
    D8 dot = {};
    for (int r = 0; r < count; ++r, wide += kSummedFeatures, sums += kSummedFeatures) {
      if (weight[r] == 0) continue;
      D8 norm = load_double(norms + r * 8);
      double differences[kSummedFeatures];
      for (int k = 0; k < kSummedFeatures; k += 8) {
        const D8 row = load_double(wide + k), deviation = row - load_double(origin + k);
        const D8 difference = row * weight[r] - load_double(sums + k);  // the product is exact
        dot = dot + deviation * difference;
        norm = norm + deviation * deviation;
        store_lanes(differences + k, difference);
      }
      store_lanes(norms + r * 8, norm);
      if (!targets) continue;
      double* const target = targets[r] + begin;
      if (r + kAhead < count) {
        __builtin_prefetch(targets[r + kAhead] + begin, 1);
        __builtin_prefetch(targets[r + kAhead] + begin + 8, 1);
      }
      int k = 0;
      for (; k + 8 <= width; k += 8) store_lanes(target + k, load_double(target + k) + load_double(differences + k));
      for (; k < width; ++k) target[k] += differences[k];
    }
    return total(dot);
  }

  // The largest |row - origin|^2 of a row that was summed.
  double spread() const {
    double largest = 0;
    for (int r = 0; r < count; ++r) {
      const double norm = total(load_double(norms + r * 8));
      largest = norm > largest ? norm : largest;
    }
    return largest;
  }
};

// With S_i = sum_j A_ij (x_i - x_j) and S_j = sum_i A_ij (x_j - x_i), sum_ij A_ij |x_i - x_j|^2 is the sum of x_i . S_i
// and x_j . S_j from any origin.
inline DenseResult accumulate(const DenseTile& tile) {
  constexpr int kSide = kBlock * kSummedFeatures;
  double* const anchor_rows = tile.scratch;
  double* const other_rows = anchor_rows + kSide;
  double* const anchor_sums = other_rows + kSide;
  double* const other_sums = anchor_sums + kSide;
  const int panels = (tile.other_count + kPanel - 1) / kPanel, turned_panels = (tile.anchor_count + kPanel - 1) / kPanel;
  uint64_t turned[kMaskWords];
  for (int a = 0; a < turned_panels; ++a)
    for (int p = 0; p < panels; ++p) {
      uint64_t* const unit = turned + a * kBlock + p * kPanel;
      for (int r = 0; r < kPanel; ++r) {
        const int row = a * kPanel + r;
        unit[r] = row < tile.anchor_count ? tile.active[p * kBlock + row] : 0;
      }
      transpose_bits(unit);
    }
  DenseSide anchors(tile.anchors, tile.anchor_sums, tile.anchor_count, tile.active, panels);
  DenseSide others(tile.others, tile.other_sums, tile.other_count, turned, turned_panels);

  double squares = 0;
  for (int begin = 0; begin < tile.features; begin += kSummedFeatures) {
    const int left = tile.features - begin, width = left < kSummedFeatures ? left : kSummedFeatures;
    anchors.widen(begin, width, anchor_rows);
    others.widen(begin, width, other_rows);
    masked_sums(anchors.masks, anchors.count, other_rows, others.count, anchor_sums);
    masked_sums(others.masks, others.count, anchor_rows, anchors.count, other_sums);
    squares += anchors.collect(anchor_rows, anchor_sums, anchor_rows, begin, width);
    squares += others.collect(other_rows, other_sums, anchor_rows, begin, width);
  }
  const double a = anchors.spread(), o = others.spread();
  return {squares, a > o ? a : o};
}
