// Rows in class order, and the positive pairs of each class in closed form.
//
// For a class with n rows and mean mu:  sum_ij |x_i - x_j|^2 = 2n sum_i |x_i - mu|^2, gradient 4n (x_i - mu).
// Across two sides with n and m rows and means mu, nu:
//     sum_ij |x_i - y_j|^2 = m sum_i |x_i - mu|^2 + n sum_j |y_j - nu|^2 + n m |mu - nu|^2,
// gradients 2m (x_i - nu) and 2n (y_j - mu). O(D) per row for all positives together. Means are taken of differences
// from one row of the class, so that a huge common offset costs no digits and equal rows give exactly zero; in a
// gradient that row is one of those averaged, so that only what really enters the gradient can cost it digits.
#pragma once

#include <cstdint>
#include <vector>

#include "frame.h"
#include "gradient_sums.h"

namespace mmfast {

struct ClassRange {
  int64_t x_begin, x_end;  // rows of the first side, in class order
  int64_t y_begin, y_end;  // rows of the second side
};

// The rows that take part, sorted by label and then by position.
std::vector<int32_t> class_order(const int64_t* labels, int64_t count, int64_t ignore_index);

// The classes present on either side; in the self form (not cross) the second range equals the first.
std::vector<ClassRange> match_classes(const int64_t* x_labels, const std::vector<int32_t>& x_order, bool cross,
                                      const int64_t* y_labels, const std::vector<int32_t>& y_order);

// Where the gradient of one side goes, and what the negatives have left for it.
template <class T>
struct Gradient {
  T* rows;                   // (., D) in the order of the input; null: not wanted
  const GradientSums& sums;  // of active negative differences
};

// y null: self form. Returns the sum over the positives. The gradient of row i becomes
// positive_weight * (gradient of that sum) - negative_weight * sums[i].
template <class T>
double positive_sum_and_gradient(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                                 double positive_weight, double negative_weight, Gradient<T> x_gradient,
                                 Gradient<T> y_gradient, int threads);

// Ordered pairs of a class whose rows differ in at least one feature. Throws std::bad_alloc.
template <class T>
int64_t count_nonzero_positives(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                                int threads);

}  // namespace mmfast
