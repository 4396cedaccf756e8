// The rows of one class about their mean (classes.h).

// mean += row - origin
template <class T>
void add_deviation(const T* row, const T* origin, int features, double* mean) {
  int k = 0;
  for (; k + 8 <= features; k += 8)
    store_double(mean + k, load_double(mean + k) + (load_double(row + k) - load_double(origin + k)));
  for (; k < features; ++k) mean[k] += double(row[k]) - double(origin[k]);
}

// |row - origin - mean|^2
template <class T>
double squared_deviation(const T* row, const T* origin, const double* mean, int features) {
  D8 sum8 = {};
  int k = 0;
  for (; k + 8 <= features; k += 8) {
    const D8 deviation = (load_double(row + k) - load_double(origin + k)) - load_double(mean + k);
    sum8 = sum8 + deviation * deviation;
  }
  double sum = total(sum8);
  for (; k < features; ++k) {
    const double deviation = (double(row[k]) - double(origin[k])) - mean[k];
    sum += deviation * deviation;
  }
  return sum;
}

// gradient = positive (row - origin - mean) - negative sums, the first term left out where `origin` is null, the second
// where `sums` is.
template <class T>
void combine(const GradientRow<T>& g) {
  int k = 0;
  for (; k + 8 <= g.features; k += 8) {
    D8 sum = {};
    if (g.origin) sum = ((load_double(g.row + k) - load_double(g.origin + k)) - load_double(g.mean + k)) * g.positive;
    if (g.sums) sum = sum - load_double(g.sums + k) * g.negative;
    store_double(g.gradient + k, sum);
  }
  for (; k < g.features; ++k) {
    double sum = g.origin ? ((double(g.row[k]) - double(g.origin[k])) - g.mean[k]) * g.positive : 0;
    if (g.sums) sum -= g.sums[k] * g.negative;
    g.gradient[k] = T(sum);
  }
}

template <class T>
constexpr RowKernels<T> row_kernels() {
  return {quantise<T>, evaluate<T>, add_deviation<T>, squared_deviation<T>,
          combine<T>,  dot<T>,      products<T>,      squared_distance<T>};
}
