// Units of up to 64 x 64 pairs with many candidates: decided by float32 products, summed by masks.
// Products and sums may be fused in the two functions that bear this: in one all products are exact, so that fusing
// changes no bit; the other's result is only compared with its bound.
#if defined(__clang__)
#define MMFAST_FUSED
#else
#define MMFAST_FUSED __attribute__((noinline, optimize("fp-contract=fast")))
#endif

// dots[r][c] += sum over k of rows[r][k] * columns[k][c], for 4 rows.
MMFAST_FUSED void add_dots(const float* rows, const float* columns, int width, float* dots) {
  constexpr int kStep = 2 * kLanes;  // floats in a register
  for (int c = 0; c < kPanel; c += 2 * kStep) {
    Floats acc[4][2];
    for (int r = 0; r < 4; ++r)
      for (int h = 0; h < 2; ++h) acc[r][h] = load<Floats>(dots + r * kPanel + c + h * kStep);
    for (int k = 0; k < width; ++k) {
      const Floats low = load<Floats>(columns + k * kPanel + c), high = load<Floats>(columns + k * kPanel + c + kStep);
      for (int r = 0; r < 4; ++r) {
        const Floats row = rows[r * kDenseFeatures + k] - Floats{};  // in every lane; + would add zeros
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
  float* const rows = c.scratch;  // (kPanel, kDenseFeatures)
  float* const columns = rows + kPanel * kDenseFeatures;  // (kDenseFeatures, kPanel)
  float* const dots = columns + kPanel * kDenseFeatures;  // (kPanel, kPanel)
  for (int i = 0; i < 2 * kPanel * kDenseFeatures + kPanel * kPanel; ++i) rows[i] = 0;
  double norms[2][kPanel] = {};
  for (int begin = 0; begin < c.features; begin += kDenseFeatures) {
    const int left = c.features - begin, width = left < kDenseFeatures ? left : kDenseFeatures;
    for (int r = 0; r < c.anchor_count; ++r)
      centre_row(c.anchors[r] + begin, c.centre + begin, c.unit, width, rows + r * kDenseFeatures, 1, &norms[0][r]);
    for (int o = 0; o < c.other_count; ++o)
      centre_row(c.others[o] + begin, c.centre + begin, c.unit, width, columns + o, kPanel, &norms[1][o]);
    for (int r = 0; r < c.anchor_count; r += 4)
      add_dots(rows + r * kDenseFeatures, columns, width, dots + r * kPanel);
  }
  const double u = 0x1p-24, relative = 2 * (c.features + 16) * u, half = c.margin * c.unit * c.unit / 2;
  float low[2][kPanel], high[2][kPanel];
  for (int side = 0; side < 2; ++side)
    for (int i = 0; i < kPanel; ++i) {
      const double n = norms[side][i], slack = relative * n + 4 * u * (n + half) + 1e-30;
      const bool decidable = n < 1e30 && half < 1e30 && c.features < 1 << 22;
      low[side][i] = decidable ? float(n - half - slack) : __builtin_nanf("");
      high[side][i] = decidable ? float(n - half + slack) : __builtin_nanf("");
    }
  for (int r = 0; r < c.anchor_count; ++r) {
    uint64_t inactive = 0, active = 0;
    for (int o = 0; o < c.other_count; ++o) {
      const float twice = 2 * dots[r * kPanel + o];
      inactive |= uint64_t(low[0][r] + low[1][o] >= twice) << o;
      active |= uint64_t(high[0][r] + high[1][o] < twice) << o;
    }
    c.inactive[r] = inactive;
    c.active[r] = active;
  }
}

// sums[r] = weight[r] * rows[r] - sum over c of mask[r][c] * others[c], for 4 rows. Masks are 0 or 1, so their products
// are exact, and the order of the sum is that of c: every tier returns the same bits.
MMFAST_FUSED void masked_sums(const double* rows, const double* weight, const double* masks, const double* others,
                        int other_count, int width, double* sums) {
  for (int k = 0; k < width; k += 2 * kLanes) {
    Doubles acc[4][2] = {};
    for (int c = 0; c < other_count; ++c) {
      const Doubles low = load<Doubles>(others + c * kDenseFeatures + k);
      const Doubles high = load<Doubles>(others + c * kDenseFeatures + k + kLanes);
      for (int r = 0; r < 4; ++r) {
        const Doubles mask = masks[r * kPanel + c] - Doubles{};  // in every lane; + would add zeros
        acc[r][0] += mask * low;
        acc[r][1] += mask * high;
      }
    }
    for (int r = 0; r < 4; ++r)
      for (int half = 0; half < 2; ++half) {
        const int at = r * kDenseFeatures + k + half * kLanes;
        store(sums + at, load<Doubles>(rows + at) * weight[r] - acc[r][half]);
      }
  }
}

// One side's sums of a unit: by masks, or where every pair is active from the sum of all others. A row that is not active
// must not enter a sum, not even to be taken off again: next to a huge one the others would lose their digits. Among
// active ones that cannot be: where their values of a feature are not within a factor of 2 of each other, and so summed
// without rounding, some difference is as large as they are.
inline void side_sums(const double* rows, const uint64_t* active, int count, const double* others, int other_count,
                      int width, double* masks, double* sums) {
  bool all = true;
  double weight[kPanel] = {};
  for (int r = 0; r < count; ++r) {
    weight[r] = __builtin_popcountll(active[r]);
    all = all && weight[r] == other_count;
  }
  if (!all) {
    for (int r = 0; r < (count + 3) / 4 * 4; ++r)
      for (int c = 0; c < other_count; ++c) masks[r * kPanel + c] = r < count ? double(active[r] >> c & 1) : 0.0;
    for (int r = 0; r < count; r += 4)
      masked_sums(rows + r * kDenseFeatures, weight + r, masks + r * kPanel, others, other_count, width,
                  sums + r * kDenseFeatures);
    return;
  }
  double total[kDenseFeatures] = {};
  for (int c = 0; c < other_count; ++c)
    for (int k = 0; k < width; ++k) total[k] += others[c * kDenseFeatures + k];
  for (int r = 0; r < count; ++r)
    for (int k = 0; k < width; ++k)
      sums[r * kDenseFeatures + k] = weight[r] * rows[r * kDenseFeatures + k] - total[k];
}

// Widens `width` features of each row from `begin` on; pads with zeros to a multiple of 16, and of 4 rows.
inline void widen(const float* const* rows, int count, int begin, int width, double* out) {
  for (int r = 0; r < count; ++r) {
    double* const wide = out + r * kDenseFeatures;
    int k = 0;
    for (; k + 8 <= width; k += 8) store_lanes(wide + k, load_double(rows[r] + begin + k));
    for (; k < width; ++k) wide[k] = double(rows[r][begin + k]);
    for (; k % 16; ++k) wide[k] = 0;
  }
  for (int r = count; r % 4; ++r)
    for (int k = 0; k < kDenseFeatures; ++k) out[r * kDenseFeatures + k] = 0;
}

// Adds the sums of a side to where they belong; returns sum of (row - origin) . sums, and adds |row - origin|^2 to
// `norms`, (count,).
inline double collect(const double* rows, const double* origin, const double* sums, int count, int begin, int width,
                      double* const* targets, double* norms) {
  double dot = 0;
  for (int r = 0; r < count; ++r) {
    D8 dot8 = {}, norm8 = {};
    for (int k = 0; k < width; k += 8) {
      const D8 deviation = load_double(rows + r * kDenseFeatures + k) - load_double(origin + k);
      dot8 = dot8 + deviation * load_double(sums + r * kDenseFeatures + k);
      norm8 = norm8 + deviation * deviation;
    }
    dot += total(dot8);
    norms[r] += total(norm8);
    if (!targets) continue;
    int k = 0;
    for (; k + 8 <= width; k += 8)
      store_lanes(targets[r] + begin + k, load_double(targets[r] + begin + k) + load_double(sums + r * kDenseFeatures + k));
    for (; k < width; ++k) targets[r][begin + k] += sums[r * kDenseFeatures + k];
  }
  return dot;
}

// With S_i = sum_j A_ij (x_i - x_j) and S_j = sum_i A_ij (x_j - x_i), sum_ij A_ij |x_i - x_j|^2 is the sum of x_i . S_i
// and x_j . S_j from any origin.
inline DenseResult accumulate(const DenseUnit& unit) {
  double* const anchors = unit.scratch;  // each (kPanel, kDenseFeatures)
  double* const others = anchors + kPanel * kDenseFeatures;
  double* const anchor_sums = others + kPanel * kDenseFeatures;
  double* const other_sums = anchor_sums + kPanel * kDenseFeatures;
  double* const masks = other_sums + kPanel * kDenseFeatures;
  uint64_t turned[kPanel] = {};
  for (int r = 0; r < unit.anchor_count; ++r)
    for (uint64_t left = unit.active[r]; left; left &= left - 1)
      turned[__builtin_ctzll(left)] |= uint64_t(1) << r;

  double squares = 0, anchor_norms[kPanel] = {}, other_norms[kPanel] = {};
  for (int begin = 0; begin < unit.features; begin += kDenseFeatures) {
    const int left = unit.features - begin, width = left < kDenseFeatures ? left : kDenseFeatures;
    const int padded = (width + 15) / 16 * 16;
    widen(unit.anchors, unit.anchor_count, begin, width, anchors);
    widen(unit.others, unit.other_count, begin, width, others);
    side_sums(anchors, unit.active, unit.anchor_count, others, unit.other_count, padded, masks, anchor_sums);
    side_sums(others, turned, unit.other_count, anchors, unit.anchor_count, padded, masks, other_sums);
    squares += collect(anchors, anchors, anchor_sums, unit.anchor_count, begin, width, unit.anchor_sums, anchor_norms);
    squares += collect(others, anchors, other_sums, unit.other_count, begin, width, unit.other_sums, other_norms);
  }
  double spread = 0;
  for (int r = 0; r < kPanel; ++r) {
    spread = anchor_norms[r] > spread ? anchor_norms[r] : spread;
    spread = other_norms[r] > spread ? other_norms[r] : spread;
  }
  return {squares, spread};
}
