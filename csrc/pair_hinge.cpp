// The pairwise hinge loss from its two parts: the positives in closed form, the negatives screened.
#include "pair_hinge.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "classes.h"
#include "frame.h"
#include "gradient_sums.h"
#include "negatives.h"
#include "threads.h"

namespace mmfast {
namespace {

constexpr double kSerialWork = 1 << 23;  // pairs times features: less is done before a second thread is awake

// Writes `value` to the rows that take part and zeros to the others.
template <class T>
void fill_gradient(T* gradient, int64_t rows, const Rows<T>& side, T value) {
  if (!gradient) return;
  std::fill_n(gradient, rows * side.features, T(0));
  if (value == T(0)) return;
  for (int32_t i : side.order) std::fill_n(gradient + int64_t(i) * side.features, side.features, value);
}

}  // namespace

template <class T>
double pair_hinge(const PairHinge<T>& p) {
  const DefaultArithmetic arithmetic;
  const bool cross = p.cross;
  const double work = double(p.x_rows) * double(cross ? p.y_rows : p.x_rows) * p.features;
  const int threads = work < kSerialWork ? 1 : p.threads;
  const Rows<T> x = {p.x, class_order(p.x_labels, p.x_rows, p.ignore_index), p.features};
  const Rows<T> y = {p.y, cross ? class_order(p.y_labels, p.y_rows, p.ignore_index) : std::vector<int32_t>(),
                     p.features};
  const Frame frame = common_frame(x, cross ? &y : nullptr, threads);
  const T filling = frame.finite ? T(0) : std::numeric_limits<T>::quiet_NaN();
  if (!frame.finite || x.size() < p.x_rows) fill_gradient(p.x_gradient, p.x_rows, x, filling);
  if (!frame.finite || y.size() < p.y_rows) fill_gradient(p.y_gradient, p.y_rows, y, filling);
  if (!frame.finite) return filling;
  const std::vector<ClassRange> classes = match_classes(p.x_labels, x.order, cross, p.y_labels, y.order);

  const bool any_negatives = p.margin > 0 && x.size() > 0 && (!cross || y.size() > 0);
  GradientSums x_sums(p.x_gradient && any_negatives, x.size(), p.features);
  GradientSums y_sums(p.y_gradient && any_negatives, y.size(), p.features);
  NegativeResult negatives;
  if (any_negatives)
    negatives = negative_sum(x, cross ? &y : nullptr, classes, frame, p.margin, x_sums, y_sums, threads);

  double positive_weight = 1, negative_weight = 1;
  if (p.reduction == Reduction::kMean) {
    const double pairs = double(x.size()) * double(cross ? y.size() : x.size());
    positive_weight = negative_weight = 1 / std::max(1.0, pairs);
  } else if (p.reduction == Reduction::kMeanNonzero) {
    const int64_t positives = count_nonzero_positives(x, cross ? &y : nullptr, classes, threads);
    positive_weight = 1 / std::max(1.0, double(positives));
    negative_weight = 1 / std::max(1.0, double(negatives.active));
  }
  // d/dx_i of the ordered pairs (i, j) and (j, i) of the self form is -4 (x_i - x_j), of the cross form -2.
  const double positives =
      positive_sum_and_gradient(x, cross ? &y : nullptr, classes, positive_weight, (cross ? 2 : 4) * negative_weight,
                                Gradient<T>{p.x_gradient, x_sums}, Gradient<T>{p.y_gradient, y_sums}, threads);
  return positive_weight * positives + negative_weight * negatives.sum;
}

template double pair_hinge(const PairHinge<float>&);
template double pair_hinge(const PairHinge<double>&);

}  // namespace mmfast
