// Class order and the closed form of the positives: see classes.h.
#include "classes.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mmfast {
namespace {

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// mean[k] = mean of (row - origin); returns the sum of |row - origin - mean|^2.
template <class T>
double centre(const Rows<T>& x, int64_t begin, int64_t end, const T* origin, double* mean) {
  const int features = x.features;
  std::fill(mean, mean + features, 0.0);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = x.row(i);
    for (int k = 0; k < features; ++k) mean[k] += double(row[k]) - double(origin[k]);
  }
  for (int k = 0; k < features; ++k) mean[k] /= double(end - begin);
  double sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = x.row(i);
    double row_sum = 0;
    for (int k = 0; k < features; ++k) {
      const double deviation = (double(row[k]) - double(origin[k])) - mean[k];
      row_sum += deviation * deviation;
    }
    sum += row_sum;
  }
  return sum;
}

// gradient[i] = positive * (x_i - origin - mean) - negative * gradient[i]
template <class T>
void combine(const Rows<T>& x, int64_t begin, int64_t end, const T* origin, const double* mean, double positive,
             double negative, T* gradient) {
  if (!gradient) return;
  for (int64_t i = begin; i < end; ++i) {
    const T* row = x.row(i);
    T* const out = gradient + int64_t(x.order[i]) * x.features;
    for (int k = 0; k < x.features; ++k) {
      const double deviation = positive == 0 ? 0.0 : (double(row[k]) - double(origin[k])) - mean[k];
      out[k] = T(positive * deviation - negative * double(out[k]));
    }
  }
}

// Rows are equal if their values are: -0 equals 0. Groups rows of [begin, end) by value.
template <class T>
std::vector<std::pair<uint64_t, int64_t>> hashed(const Rows<T>& x, int64_t begin, int64_t end) {
  std::vector<std::pair<uint64_t, int64_t>> out;
  out.reserve(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    const T* row = x.row(i);
    uint64_t hash = 1469598103934665603u;
    for (int k = 0; k < x.features; ++k) {
      const T value = row[k] + T(0);
      uint64_t bits = 0;
      std::memcpy(&bits, &value, sizeof value);
      hash = (hash ^ bits) * 1099511628211u;
      hash ^= hash >> 29;
    }
    out.emplace_back(hash, i);
  }
  std::sort(out.begin(), out.end());
  return out;
}

template <class T>
int64_t equal_pairs(const Rows<T>& x, int64_t x_begin, int64_t x_end, const Rows<T>& y, int64_t y_begin,
                    int64_t y_end) {
  const auto xs = hashed(x, x_begin, x_end), ys = hashed(y, y_begin, y_end);
  int64_t equal = 0;
  for (size_t i = 0, j = 0; i < xs.size() && j < ys.size();) {
    const uint64_t hash = std::max(xs[i].first, ys[j].first);
    while (i < xs.size() && xs[i].first < hash) ++i;
    while (j < ys.size() && ys[j].first < hash) ++j;
    if (i == xs.size() || j == ys.size() || xs[i].first != hash || ys[j].first != hash) continue;
    size_t i_end = i, j_end = j;
    while (i_end < xs.size() && xs[i_end].first == hash) ++i_end;
    while (j_end < ys.size() && ys[j_end].first == hash) ++j_end;
    // Nearly always one group of equal rows: count against representatives, so that many duplicates stay linear.
    std::vector<std::pair<const T*, int64_t>> groups;
    for (size_t k = i; k < i_end; ++k) {
      const T* row = x.row(xs[k].second);
      auto group = std::find_if(groups.begin(), groups.end(),
                                [&](const auto& g) { return std::equal(row, row + x.features, g.first); });
      if (group == groups.end())
        groups.emplace_back(row, 1);
      else
        ++group->second;
    }
    for (size_t k = j; k < j_end; ++k)
      for (const auto& group : groups)
        if (std::equal(group.first, group.first + x.features, y.row(ys[k].second))) equal += group.second;
    i = i_end;
    j = j_end;
  }
  return equal;
}

}  // namespace

std::vector<int32_t> class_order(const int64_t* labels, int64_t count, int64_t ignore_index) {
  std::vector<int32_t> order;
  order.reserve(count);
  for (int64_t i = 0; i < count; ++i)
    if (labels[i] != ignore_index) order.push_back(int32_t(i));
  std::sort(order.begin(), order.end(), [labels](int32_t i, int32_t j) {
    return labels[i] != labels[j] ? labels[i] < labels[j] : i < j;
  });
  return order;
}

std::vector<ClassRange> match_classes(const int64_t* x_labels, const std::vector<int32_t>& x_order,
                                      const int64_t* y_labels, const std::vector<int32_t>& y_order) {
  std::vector<ClassRange> classes;
  const int64_t n = int64_t(x_order.size()), m = int64_t(y_order.size());
  for (int64_t i = 0, j = 0; i < n || (y_labels && j < m);) {
    const bool from_x = i < n && (!y_labels || j == m || x_labels[x_order[i]] <= y_labels[y_order[j]]);
    const int64_t label = from_x ? x_labels[x_order[i]] : y_labels[y_order[j]];
    ClassRange range{i, i, j, j};
    while (range.x_end < n && x_labels[x_order[range.x_end]] == label) ++range.x_end;
    while (y_labels && range.y_end < m && y_labels[y_order[range.y_end]] == label) ++range.y_end;
    i = range.x_end;
    j = range.y_end;
    if (!y_labels) range.y_begin = range.x_begin, range.y_end = range.x_end;
    classes.push_back(range);
  }
  return classes;
}

template <class T>
double positive_sum_and_gradient(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                                 double positive_weight, double negative_weight, T* x_gradient, T* y_gradient,
                                 int threads) {
  const int features = x.features;
  std::vector<double> sums(classes.size(), 0.0), means(size_t(threads) * 2 * features);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
  for (int64_t c = 0; c < int64_t(classes.size()); ++c) {
    const ClassRange& range = classes[c];
    double* const mean = means.data() + size_t(thread_number()) * 2 * features;
    const int64_t n = range.x_end - range.x_begin, m = range.y_end - range.y_begin;
    const T* const origin = n ? x.row(range.x_begin) : nullptr;
    if (!y) {
      if (n > 1) sums[c] = 2.0 * double(n) * centre(x, range.x_begin, range.x_end, origin, mean);
      const double weight = n > 1 ? 4.0 * double(n) * positive_weight : 0.0;
      combine(x, range.x_begin, range.x_end, origin, mean, weight, negative_weight, x_gradient);
      continue;
    }
    double* const other_mean = mean + features;
    const bool both = n > 0 && m > 0;
    if (both) {
      double sum = double(m) * centre(x, range.x_begin, range.x_end, origin, mean);
      sum += double(n) * centre(*y, range.y_begin, range.y_end, origin, other_mean);
      double between = 0;
      for (int k = 0; k < features; ++k) between += (mean[k] - other_mean[k]) * (mean[k] - other_mean[k]);
      sums[c] = sum + double(n) * double(m) * between;
    }
    const double x_weight = both ? 2.0 * double(m) * positive_weight : 0.0;
    const double y_weight = both ? 2.0 * double(n) * positive_weight : 0.0;
    combine(x, range.x_begin, range.x_end, origin, other_mean, x_weight, negative_weight, x_gradient);
    combine(*y, range.y_begin, range.y_end, origin, mean, y_weight, negative_weight, y_gradient);
  }
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

template <class T>
int64_t count_nonzero_positives(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                                int threads) {
  int64_t nonzero = 0;
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads) reduction(+ : nonzero)
  for (int64_t c = 0; c < int64_t(classes.size()); ++c) {
    const ClassRange& r = classes[c];
    const int64_t pairs = (r.x_end - r.x_begin) * (r.y_end - r.y_begin);
    if (pairs) nonzero += pairs - equal_pairs(x, r.x_begin, r.x_end, y ? *y : x, r.y_begin, r.y_end);
  }
  return nonzero;
}

template double positive_sum_and_gradient(const Rows<float>&, const Rows<float>*, const std::vector<ClassRange>&,
                                          double, double, float*, float*, int);
template double positive_sum_and_gradient(const Rows<double>&, const Rows<double>*, const std::vector<ClassRange>&,
                                          double, double, double*, double*, int);
template int64_t count_nonzero_positives(const Rows<float>&, const Rows<float>*, const std::vector<ClassRange>&, int);
template int64_t count_nonzero_positives(const Rows<double>&, const Rows<double>*, const std::vector<ClassRange>&,
                                         int);

}  // namespace mmfast
