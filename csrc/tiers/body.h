// Quantising a row, and evaluating pair by pair the candidates that the screen left.
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
