// What every tier compiles from the same text: quantising a row, evaluating the candidates the screen left, and the
// sums of units with many active pairs.
//
// Included by a tier file inside its own namespace, after the tier's target pragma and its kVectorBytes. Sums run in 8
// or 16 lanes whatever the width of a register, so that the order of every sum, and with it every bit of the result, is
// the same in all tiers. Nothing from the standard library is instantiated here: the linker could pick that copy for
// the whole program.

typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
typedef int32_t HalfInts __attribute__((vector_size(kVectorBytes / 2)));
constexpr int kLanes = kVectorBytes / 8;  // doubles in a register
constexpr int kParts = 8 / kLanes;        // registers of 8 doubles, and of 16 floats

template <class V, class T>
inline V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V, class T>
inline void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Registers that together hold 8 doubles or 16 floats. One vector type of that size would be taken apart lane by lane
// where no register is as wide.
template <class V>
struct Lanes {
  V part[kParts];
};
typedef Lanes<Doubles> D8;
typedef Lanes<Floats> F16;

template <class V>
inline Lanes<V> operator+(Lanes<V> a, Lanes<V> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] += b.part[i];
  return a;
}
template <class V>
inline Lanes<V> operator-(Lanes<V> a, Lanes<V> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] -= b.part[i];
  return a;
}
template <class V>
inline Lanes<V> operator*(Lanes<V> a, Lanes<V> b) {
  for (int i = 0; i < kParts; ++i) a.part[i] *= b.part[i];
  return a;
}
inline D8 operator+(D8 a, double b) {
  for (int i = 0; i < kParts; ++i) a.part[i] += b;
  return a;
}
inline D8 operator*(D8 a, double b) {
  for (int i = 0; i < kParts; ++i) a.part[i] *= b;
  return a;
}
inline D8 larger_magnitude(D8 a, D8 b) {  // of a, which is not negative, and |b|
  for (int i = 0; i < kParts; ++i) {
    const Doubles magnitude = b.part[i] < 0 ? -b.part[i] : b.part[i];
    a.part[i] = magnitude > a.part[i] ? magnitude : a.part[i];
  }
  return a;
}
inline D8 clamp(D8 a, double limit) {  // NaN to limit
  for (int i = 0; i < kParts; ++i) {
    const Doubles high = a.part[i] <= limit ? a.part[i] : Doubles{} + limit;
    a.part[i] = high >= -limit ? high : Doubles{} - limit;
  }
  return a;
}
inline void store_digits(int8_t* p, D8 digits) {
  int32_t wide[8];
  for (int i = 0; i < kParts; ++i) store(wide + i * kLanes, __builtin_convertvector(digits.part[i], HalfInts));
  for (int k = 0; k < 8; ++k) p[k] = int8_t(wide[k]);
}

// Part by part: the compiler would copy the whole in pieces that a wider load has to wait for.
template <class V, class T>
inline Lanes<V> load_lanes(const T* p) {
  Lanes<V> v;
  for (int i = 0; i < kParts; ++i) v.part[i] = load<V>(p + i * int(sizeof(V) / sizeof(T)));
  return v;
}
template <class V, class T>
inline void store_lanes(T* p, Lanes<V> v) {
  for (int i = 0; i < kParts; ++i) store(p + i * int(sizeof(V) / sizeof(T)), v.part[i]);
}
inline D8 load_double(const double* p) { return load_lanes<Doubles>(p); }
inline D8 load_double(const float* p) {
  D8 v;
  for (int i = 0; i < kParts; ++i) v.part[i] = __builtin_convertvector(load<HalfFloats>(p + i * kLanes), Doubles);
  return v;
}

inline double total(D8 v) {
  double l[8];
  store_lanes(l, v);
  return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
}

// Round to the nearest integer, |v| < 2^51, by adding and subtracting 1.5 * 2^52.
inline D8 nearest(D8 v) {
  const double shift = 6755399441055744.0;
  return (v + shift) + -shift;
}

// z = unit * (x - centre) is written as s q + r with q in [-qmax, qmax]. Where z is too large to square, the residual is
// not finite, and the caller does not screen the row. The rounding of z, of s q and of the sums is covered by `residual`: each component is off by
// less than 2^-50 (|z| + |s q|) <= 2^-48 |z|, and a sum of D positive terms by the factor 1 + D 2^-52.
template <class T>
QuantisedRow quantise(const T* x, const double* centre, int features, double unit, int qmax, int8_t* q) {
  const int whole = features & ~7;
  D8 largest8 = {};
  for (int k = 0; k < whole; k += 8)
    largest8 = larger_magnitude(largest8, (load_double(x + k) - load_double(centre + k)) * unit);
  double lanes[8];
  store_lanes(lanes, largest8);
  double largest = 0;
  for (double lane : lanes) largest = lane > largest ? lane : largest;
  for (int k = whole; k < features; ++k) {
    const double z = (double(x[k]) - centre[k]) * unit;
    const double magnitude = z < 0 ? -z : z;
    largest = magnitude > largest ? magnitude : largest;
  }

  const double floor = 9.094947017729282e-13;  // 2^-40: keeps 1 / s and a / s far from overflow
  const double wanted = largest / qmax;
  const double scale = float(wanted > floor ? wanted : floor);
  const double inverse = 1 / scale;

  D8 squares8 = {}, residual8 = {}, norm8 = {};
  D8 sum8 = {};
  for (int k = 0; k < whole; k += 8) {
    const D8 z = (load_double(x + k) - load_double(centre + k)) * unit;
    const D8 digit = clamp(nearest(z * inverse), qmax);
    const D8 rest = z - digit * scale;
    squares8 = squares8 + digit * digit;
    sum8 = sum8 + digit;
    residual8 = residual8 + rest * rest;
    norm8 = norm8 + z * z;
    store_digits(q + k, digit);
  }
  double squares = total(squares8), sum = total(sum8), residual = total(residual8), norm = total(norm8);
  for (int k = whole; k < features; ++k) {
    const double z = (double(x[k]) - centre[k]) * unit;
    const double shift = 6755399441055744.0;
    double digit = (z * inverse + shift) - shift;
    digit = digit <= qmax ? digit : qmax;
    digit = digit >= -qmax ? digit : -qmax;
    const double rest = z - scale * digit;
    squares += digit * digit;
    sum += digit;
    residual += rest * rest;
    norm += z * z;
    q[k] = int8_t(digit);
  }
  const double slack = 1 + 1e-6;  // > 1 + D 2^-52 for every D this engine accepts
  residual = __builtin_sqrt(residual) * slack + __builtin_sqrt(norm) * 0x1p-47;
  return {scale, residual, int64_t(squares), int32_t(sum)};
}

// The squared distance in double, differences first: nothing is lost near a duplicate.
template <class T>
inline double squared_distance(const T* x, const T* y, int features) {
  D8 sum8 = {};
  const int whole = features & ~7;
  for (int k = 0; k < whole; k += 8) {
    const D8 difference = load_double(x + k) - load_double(y + k);
    sum8 = sum8 + difference * difference;
  }
  double sum = total(sum8);
  for (int k = whole; k < features; ++k) {
    const double difference = double(x[k]) - double(y[k]);
    sum += difference * difference;
  }
  return sum;
}

// True only if the float32 distance already proves d^2 >= margin. A difference, its square and at most D / 32 + 48
// additions are each off by a factor within 1 +- 2^-24, or by a denormal; twice that is allowed for.
inline bool certainly_inactive(const float* x, const float* y, int features, double margin) {
  F16 sum0 = {}, sum1 = {};
  int k = 0;
  for (; k + 32 <= features; k += 32) {
    const F16 d0 = load_lanes<Floats>(x + k) - load_lanes<Floats>(y + k);
    const F16 d1 = load_lanes<Floats>(x + k + 16) - load_lanes<Floats>(y + k + 16);
    sum0 = sum0 + d0 * d0;
    sum1 = sum1 + d1 * d1;
  }
  sum0 = sum0 + sum1;
  float lanes[16], sum = 0;
  store_lanes(lanes, sum0);
  for (int lane = 0; lane < 16; ++lane) sum += lanes[lane];
  for (; k < features; ++k) {
    const float difference = x[k] - y[k];
    sum += difference * difference;
  }
  const double relative = (features / 16 + 128) * 0x1p-24, absolute = features * 1e-37;
  return sum <= 3.4028234e38f && double(sum) * (1 - relative) - absolute >= margin;
}
inline bool certainly_inactive(const double*, const double*, int, double) { return false; }

inline bool is_active(const float* x, const float* y, int features, double margin) {
  return squared_distance(x, y, features) < margin;
}

template <class T>
inline void add_difference(const T* x, const T* y, int features, double* plus, double* minus) {
  int k = 0;
  for (; k + 8 <= features; k += 8) {
    const D8 difference = load_double(x + k) - load_double(y + k);
    if (plus) store_lanes(plus + k, load_double(plus + k) + difference);
    if (minus) store_lanes(minus + k, load_double(minus + k) - difference);
  }
  for (; k < features; ++k) {
    const double difference = double(x[k]) - double(y[k]);
    if (plus) plus[k] += difference;
    if (minus) minus[k] -= difference;
  }
}

template <class T>
double evaluate(const Candidates<T>& c, int64_t* active) {
  double loss = 0;
  int64_t found = 0;
  for (int j = 0; j < c.count; ++j) {
    if (certainly_inactive(c.anchor, c.others[j], c.features, c.margin)) continue;
    const double d2 = squared_distance(c.anchor, c.others[j], c.features);
    if (!(d2 < c.margin)) continue;
    loss += c.margin - d2;
    ++found;
    if (c.anchor_sum || c.other_sums)
      add_difference(c.anchor, c.others[j], c.features, c.anchor_sum, c.other_sums ? c.other_sums[j] : nullptr);
  }
  *active += found;
  return loss;
}

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

// With u = 2^-24 and n = |z|^2: rounding z moves a distance by at most u (|z_i| + |z_j|), and a dot product of D
// terms is off by at most (D + 2) u |z_i| |z_j|; so n_i + n_j - 2 z_i . z_j is off d^2 by at most
// (D + 16) u (|z_i| + |z_j|)^2 <= c (n_i + n_j) with c = 2 (D + 16) u, which covers the rounding of n in double and
// of the comparison's float32 terms but for what the margin adds to them. A pair is certainly inactive if
// low_i + low_j >= 2 z_i . z_j, certainly active if high_i + high_j < 2 z_i . z_j.
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
      const bool decidable = n < 1e30 && half < 1e30;  // NaN is not
      low[side][i] = decidable ? float(n - half - slack) : -__builtin_inff();
      high[side][i] = decidable ? float(n - half + slack) : __builtin_inff();
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

// One side's sums of a unit, from all others less the few that are not active where that is less work.
inline void side_sums(const double* rows, const uint64_t* active, int count, const double* others, int other_count,
                      int width, double* masks, double* sums) {
  const uint64_t all = other_count == 64 ? ~uint64_t(0) : (uint64_t(1) << other_count) - 1;
  int64_t missing = 0;
  double weight[kPanel];
  for (int r = 0; r < kPanel; ++r) {
    const int k = r < count ? __builtin_popcountll(active[r]) : 0;
    weight[r] = k;
    if (r < count) missing += other_count - k;
  }
  if (missing * 12 > int64_t(count) * other_count) {
    for (int r = 0; r < (count + 3) / 4 * 4; ++r)
      for (int c = 0; c < other_count; ++c) masks[r * kPanel + c] = r < count ? double(active[r] >> c & 1) : 0.0;
    for (int r = 0; r < count; r += 4)
      masked_sums(rows + r * kDenseFeatures, weight + r, masks + r * kPanel, others, other_count, width,
                  sums + r * kDenseFeatures);
    return;
  }
  double total[kDenseFeatures];
  for (int k = 0; k < width; ++k) total[k] = 0;
  for (int c = 0; c < other_count; ++c)
    for (int k = 0; k < width; ++k) total[k] += others[c * kDenseFeatures + k];
  for (int r = 0; r < count; ++r) {
    double* const out = sums + r * kDenseFeatures;
    for (int k = 0; k < width; ++k) out[k] = weight[r] * rows[r * kDenseFeatures + k] - total[k];
    for (uint64_t left = all & ~active[r]; left; left &= left - 1) {
      const double* const other = others + __builtin_ctzll(left) * kDenseFeatures;
      for (int k = 0; k < width; ++k) out[k] += other[k];
    }
  }
}

// Widens `width` features of each row from `begin` on; pads with zeros to a multiple of 16.
inline void widen(const float* const* rows, int count, int begin, int width, double* out) {
  for (int r = 0; r < count; ++r) {
    double* const wide = out + r * kDenseFeatures;
    int k = 0;
    for (; k + 8 <= width; k += 8) store_lanes(wide + k, load_double(rows[r] + begin + k));
    for (; k < width; ++k) wide[k] = double(rows[r][begin + k]);
    for (; k % 16; ++k) wide[k] = 0;
  }
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
