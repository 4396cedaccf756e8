// Quantising a row, the screen's condition, and evaluating pair by pair the candidates that the screen left.

// z = unit (x - centre) is written as s q + r with q in [-qmax, qmax], in the arithmetic of T with unit roundoff u. The
// difference is off by u |z| (the unit is a power of two, and what denormals lose, even flushed to zero, is below
// 2^-46), and r as computed by 2u (|z| + |s q|) more, where |s q| <= 2 |z|: by less than 8u |z| together. Squares are
// summed in lanes, kRun features at a time, kRun / kStep + 8 additions; as the root halves their rounding, twice of it
// is allowed for, and 2^-38 for denormals in up to 65,536 features. The sums of digits are exact. Where z is too large
// to square, the residual is not finite, and the caller does not screen the row.
template <class T>
QuantisedRow quantise(const T* x, const T* centre, int features, T unit, int qmax, int8_t* q) {
  typedef decltype(load_wide(x)) Vector;
  constexpr int kStep = 64 / sizeof(T), kRun = 8192;  // kRun / 16 squares of digits stay below 2^24
  constexpr double u = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;
  const int whole = features / kStep * kStep;
  Vector largest_lanes = {};
  for (int k = 0; k < whole; k += kStep)
    largest_lanes = larger_magnitude(largest_lanes, (load_wide(x + k) - load_wide(centre + k)) * unit);
  T lanes[kStep], largest = 0;
  store_lanes(lanes, largest_lanes);
  for (T lane : lanes) largest = lane > largest ? lane : largest;
  for (int k = whole; k < features; ++k) {
    const T z = (x[k] - centre[k]) * unit, magnitude = z < 0 ? -z : z;
    largest = magnitude > largest ? magnitude : largest;
  }

  const double floor = 0x1p-40;  // keeps 1 / s and a / s far from overflow
  const double wanted = largest / qmax;
  const T scale = float(wanted > floor ? wanted : floor), inverse = 1 / scale, limit = qmax;
  double squares = 0, sum = 0, residual = 0, norm = 0;
  for (int begin = 0; begin < whole; begin += kRun) {
    const int end = begin + kRun < whole ? begin + kRun : whole;
    Vector run_squares = {}, run_sum = {}, run_residual = {}, run_norm = {};
    for (int k = begin; k < end; k += kStep) {
      const Vector z = (load_wide(x + k) - load_wide(centre + k)) * unit;
      const Vector digit = clamp(nearest(z * inverse), limit), rest = z - digit * scale;
      run_squares = run_squares + digit * digit;
      run_sum = run_sum + digit;
      run_residual = run_residual + rest * rest;
      run_norm = run_norm + z * z;
      store_digits(q + k, digit);
    }
    squares += total(run_squares);
    sum += total(run_sum);
    residual += total(run_residual);
    norm += total(run_norm);
  }
  for (int k = whole; k < features; ++k) {
    const T z = (x[k] - centre[k]) * unit, digit = clamp(nearest(z * inverse), limit), rest = z - digit * scale;
    squares += double(digit * digit);
    sum += double(digit);
    residual += double(rest * rest);
    norm += double(z * z);
    q[k] = int8_t(digit);
  }
  norm = __builtin_sqrt(norm) * (1 + (kRun / kStep + 16) * u);
  residual = __builtin_sqrt(residual) * (1 + (kRun / kStep + 16) * u) + 8 * u * norm + 0x1p-38;
  return {scale, residual, int64_t(squares), int32_t(sum), double(largest), norm};
}

// The screen's condition (screen.h) for a row and as many columns as there are lanes: the bits of those that certainly
// are inactive, which NaN is not.
inline uint64_t inactive_bits(Ints dots, const RowBound& row, const float* inverse, const float* weighted) {
  const Floats right = __builtin_convertvector(dots, Floats) * row.v;
  return at_least(load<Floats>(inverse) * row.a + load<Floats>(weighted), right);
}

// The bits of those that certainly are active.
inline uint64_t active_bits(Ints dots, const RowBound& row, const float* inverse, const float* active_weighted) {
  const Floats right = __builtin_convertvector(dots, Floats) * row.v;
  return lane_bits(load<Floats>(inverse) * row.b + load<Floats>(active_weighted) < right);
}

inline int64_t count_ones(const uint64_t* words, int64_t count) {
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += __builtin_popcountll(words[i]);
  return sum;
}

// The squared distance in double, differences first: nothing is lost near a duplicate.
template <class T>
inline double squared_distance(const T* x, const T* y, int features) {
  D8 sum8 = {}, more8 = {};
  int k = 0;
  for (; k + 16 <= features; k += 16) {
    const D8 low = load_double(x + k) - load_double(y + k), high = load_double(x + k + 8) - load_double(y + k + 8);
    sum8 = sum8 + low * low;
    more8 = more8 + high * high;
  }
  if (k + 8 <= features) {
    const D8 difference = load_double(x + k) - load_double(y + k);
    sum8 = sum8 + difference * difference;
    k += 8;
  }
  double sum = total(sum8 + more8);
  for (; k < features; ++k) {
    const double difference = double(x[k]) - double(y[k]);
    sum += difference * difference;
  }
  return sum;
}

// Products in double, in the lanes of squared_distance.
template <class T>
inline Products products(const T* x, const T* y, int features) {
  D8 across = {}, own = {};
  int k = 0;
  for (; k + 8 <= features; k += 8) {
    const D8 other = load_double(y + k);
    across = across + load_double(x + k) * other;
    own = own + other * other;
  }
  Products sums = {total(across), total(own)};
  for (; k < features; ++k) {
    sums.across += double(x[k]) * double(y[k]);
    sums.own += double(y[k]) * double(y[k]);
  }
  return sums;
}
template <class T>
inline double dot(const T* x, const T* y, int features) {
  return products(x, y, features).across;
}

// True only if the float32 distance already proves d^2 >= margin. A difference, its square and at most D / 32 + 40
// additions are each off by a factor within 1 +- 2^-24, or by a denormal; twice that is allowed for.
inline bool certainly_inactive(const float* x, const float* y, int features, double margin) {
  F16 sum0 = {}, sum1 = {};
  int k = 0;
  for (; k + 32 <= features; k += 32) {
    const F16 d0 = load_wide(x + k) - load_wide(y + k), d1 = load_wide(x + k + 16) - load_wide(y + k + 16);
    sum0 = sum0 + d0 * d0;
    sum1 = sum1 + d1 * d1;
  }
  float sum = total(sum0 + sum1);
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

// plus += the sum of x - y over the rows y; minus[j] -= x - y_j. Each may be null.
template <class T>
inline void add_differences(const Candidates<T>& c, const int* chosen, int count) {
  constexpr int kHeld = 4;  // times 8 features of the first sum at a time
  int k = 0;
  for (; k + 8 <= c.features; k += 8 * kHeld) {
    const int held = (c.features - k) / 8 < kHeld ? (c.features - k) / 8 : kHeld;
    D8 sum[kHeld] = {};
    for (int n = 0; n < count; ++n) {
      const T* const other = c.others[chosen[n]] + k;
      double* const minus = c.other_sums ? c.other_sums[chosen[n]] + k : nullptr;
      for (int h = 0; h < held; ++h) {
        const D8 difference = load_double(c.anchor + k + 8 * h) - load_double(other + 8 * h);
        sum[h] = sum[h] + difference;
        if (minus) store_double(minus + 8 * h, load_double(minus + 8 * h) - difference);
      }
    }
    if (c.anchor_sum)
      for (int h = 0; h < held; ++h)
        store_double(c.anchor_sum + k + 8 * h, load_double(c.anchor_sum + k + 8 * h) + sum[h]);
  }
  for (k = c.features & ~7; k < c.features; ++k)
    for (int n = 0; n < count; ++n) {
      const double difference = double(c.anchor[k]) - double(c.others[chosen[n]][k]);
      if (c.anchor_sum) c.anchor_sum[k] += difference;
      if (c.other_sums) c.other_sums[chosen[n]][k] -= difference;
    }
}

template <class T>
double evaluate(const Candidates<T>& c, int64_t* active) {
  double loss = 0;
  int chosen[kBlock], count = 0;
  for (int j = 0; j < c.count; ++j) {
    if (certainly_inactive(c.anchor, c.others[j], c.features, c.margin)) continue;
    const double d2 = squared_distance(c.anchor, c.others[j], c.features);
    if (!(d2 < c.margin)) continue;
    loss += c.margin - d2;
    chosen[count++] = j;
  }
  if (c.anchor_sum || c.other_sums) add_differences(c, chosen, count);
  *active += count;
  return loss;
}
