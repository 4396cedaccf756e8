// Class order and the closed form of the positives: see classes.h.
#include "classes.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
#include <numeric>

#include "threads.h"
#include "tier.h"

namespace mmfast {
namespace {

// mean[k] = mean of (row - origin); returns the sum of |row - origin - mean|^2.
template <class T>
double centre(const Tier& tier, const Rows<T>& x, int64_t begin, int64_t end, const T* origin, double* mean) {
  const int features = x.features;
  const RowKernels<T>& rows = kernels(tier, origin);
  std::fill(mean, mean + features, 0.0);
  for (int64_t i = begin; i < end; ++i) rows.add_deviation(x.row(i), origin, features, mean);
  for (int k = 0; k < features; ++k) mean[k] /= double(end - begin);
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += rows.squared_deviation(x.row(i), origin, mean, features);
  return sum;
}

// gradient[i] = positive * (x_i - origin - mean) - negative * sums[i]
template <class T>
void combine(const Tier& tier, const Rows<T>& x, int64_t begin, int64_t end, const T* origin, const double* mean,
             double positive, double negative, Gradient<T> gradient) {
  if (!gradient.rows) return;
  if (positive == 0) origin = nullptr;
  for (int64_t i = begin; i < end; ++i) {
    kernels(tier, origin)
        .combine({x.row(i), origin, mean, gradient.sums.sums(i), positive, negative, x.features,
                  gradient.rows + int64_t(x.order[i]) * x.features});
  }
}

// Rows in lexicographic order: equal ones (-0 equals 0) become neighbours, and most comparisons end at once.
template <class T>
std::vector<const T*> sorted_rows(const Rows<T>& x, int64_t begin, int64_t end) {
  std::vector<const T*> rows;
  rows.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i) rows.push_back(x.row(i));
  const int features = x.features;
  std::sort(rows.begin(), rows.end(), [features](const T* a, const T* b) {
    return std::lexicographical_compare(a, a + features, b, b + features);
  });
  return rows;
}

template <class T>
int64_t equal_pairs(const Rows<T>& x, int64_t x_begin, int64_t x_end, const Rows<T>& y, int64_t y_begin,
                    int64_t y_end) {
  const std::vector<const T*> xs = sorted_rows(x, x_begin, x_end), ys = sorted_rows(y, y_begin, y_end);
  const int features = x.features;
  const auto run_of = [features](const std::vector<const T*>& rows, size_t begin) {
    size_t end = begin + 1;
    while (end < rows.size() && std::equal(rows[end], rows[end] + features, rows[begin])) ++end;
    return end;
  };
  int64_t equal = 0;
  for (size_t i = 0, j = 0; i < xs.size() && j < ys.size();) {
    if (std::lexicographical_compare(xs[i], xs[i] + features, ys[j], ys[j] + features)) {
      ++i;
    } else if (std::lexicographical_compare(ys[j], ys[j] + features, xs[i], xs[i] + features)) {
      ++j;
    } else {
      const size_t i_end = run_of(xs, i), j_end = run_of(ys, j);
      equal += int64_t(i_end - i) * int64_t(j_end - j);
      i = i_end;
      j = j_end;
    }
  }
  return equal;
}

}  // namespace

std::vector<int32_t> class_order(const int64_t* labels, int64_t count, int64_t ignore_index) {
  std::vector<int32_t> order;
  order.reserve(count);
  int64_t lowest = std::numeric_limits<int64_t>::max(), highest = std::numeric_limits<int64_t>::min();
  for (int64_t i = 0; i < count; ++i) {
    if (labels[i] == ignore_index) continue;
    order.push_back(int32_t(i));
    lowest = std::min(lowest, labels[i]);
    highest = std::max(highest, labels[i]);
  }
  if (order.empty()) return order;
  const uint64_t range = uint64_t(highest) - uint64_t(lowest);
  if (range > 4 * order.size()) {
    std::sort(order.begin(), order.end(),
              [labels](int32_t i, int32_t j) { return labels[i] != labels[j] ? labels[i] < labels[j] : i < j; });
    return order;
  }
  // Few values: each row's place is counted.
  std::vector<int32_t> place(range + 2, 0), sorted(order.size());
  for (int32_t i : order) ++place[labels[i] - lowest + 1];
  for (uint64_t v = 1; v <= range; ++v) place[v] += place[v - 1];
  for (int32_t i : order) sorted[place[labels[i] - lowest]++] = i;
  return sorted;
}

std::vector<ClassRange> match_classes(const int64_t* x_labels, const std::vector<int32_t>& x_order, bool cross,
                                      const int64_t* y_labels, const std::vector<int32_t>& y_order) {
  std::vector<ClassRange> classes;
  const int64_t n = int64_t(x_order.size()), m = cross ? int64_t(y_order.size()) : 0;
  for (int64_t i = 0, j = 0; i < n || j < m;) {
    const bool from_x = i < n && (j == m || x_labels[x_order[i]] <= y_labels[y_order[j]]);
    const int64_t label = from_x ? x_labels[x_order[i]] : y_labels[y_order[j]];
    ClassRange range{i, i, j, j};
    while (range.x_end < n && x_labels[x_order[range.x_end]] == label) ++range.x_end;
    while (range.y_end < m && y_labels[y_order[range.y_end]] == label) ++range.y_end;
    i = range.x_end;
    j = range.y_end;
    if (!cross) range.y_begin = range.x_begin, range.y_end = range.x_end;
    classes.push_back(range);
  }
  return classes;
}

template <class T>
double positive_sum_and_gradient(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                                 double positive_weight, double negative_weight, Gradient<T> x_gradient,
                                 Gradient<T> y_gradient, int threads) {
  const Tier& tier = current_tier();
  const int features = x.features;
  std::vector<double> sums(classes.size(), 0.0), means(size_t(threads) * 2 * features);
  on_threads(threads, [&] {
#pragma omp for schedule(dynamic, 4)
    for (int64_t c = 0; c < int64_t(classes.size()); ++c) {
      const ClassRange& range = classes[c];
      double* const mean = means.data() + size_t(thread_number()) * 2 * features;
      const int64_t n = range.x_end - range.x_begin, m = range.y_end - range.y_begin;
      const T* const origin = n ? x.row(range.x_begin) : nullptr;
      if (!y) {
        if (n > 1) sums[c] = 2.0 * double(n) * centre(tier, x, range.x_begin, range.x_end, origin, mean);
        const double weight = n > 1 ? 4.0 * double(n) * positive_weight : 0.0;
        combine(tier, x, range.x_begin, range.x_end, origin, mean, weight, negative_weight, x_gradient);
        continue;
      }
      double* const other_mean = mean + features;
      const T* const other_origin = m ? y->row(range.y_begin) : nullptr;
      const bool both = n > 0 && m > 0;
      if (both) {
        double sum = double(m) * centre(tier, x, range.x_begin, range.x_end, origin, mean);
        sum += double(n) * centre(tier, *y, range.y_begin, range.y_end, other_origin, other_mean);
        double between = 0;
        for (int k = 0; k < features; ++k) {
          const double difference = (double(origin[k]) - double(other_origin[k])) + (mean[k] - other_mean[k]);
          between += difference * difference;
        }
        sums[c] = sum + double(n) * double(m) * between;
      }
      const double x_weight = both ? 2.0 * double(m) * positive_weight : 0.0;
      const double y_weight = both ? 2.0 * double(n) * positive_weight : 0.0;
      combine(tier, x, range.x_begin, range.x_end, other_origin, other_mean, x_weight, negative_weight, x_gradient);
      combine(tier, *y, range.y_begin, range.y_end, origin, mean, y_weight, negative_weight, y_gradient);
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

template <class T>
int64_t count_nonzero_positives(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                                int threads) {
  std::atomic<int64_t> nonzero{0};
  std::exception_ptr failure;  // an exception must not leave a thread's part of the loop
  on_threads(threads, [&] {
#pragma omp for schedule(dynamic, 4)
    for (int64_t c = 0; c < int64_t(classes.size()); ++c) {
      const ClassRange& r = classes[c];
      const int64_t pairs = (r.x_end - r.x_begin) * (r.y_end - r.y_begin);
      try {
        if (pairs) nonzero += pairs - equal_pairs(x, r.x_begin, r.x_end, y ? *y : x, r.y_begin, r.y_end);
      } catch (...) {
#pragma omp critical(mmfast_failure)
        failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
  return nonzero;
}

template double positive_sum_and_gradient(const Rows<float>&, const Rows<float>*, const std::vector<ClassRange>&,
                                          double, double, Gradient<float>, Gradient<float>, int);
template double positive_sum_and_gradient(const Rows<double>&, const Rows<double>*, const std::vector<ClassRange>&,
                                          double, double, Gradient<double>, Gradient<double>, int);
template int64_t count_nonzero_positives(const Rows<float>&, const Rows<float>*, const std::vector<ClassRange>&, int);
template int64_t count_nonzero_positives(const Rows<double>&, const Rows<double>*, const std::vector<ClassRange>&, int);

}  // namespace mmfast
