// The negative pairs: prune by classes, screen in 8-bit integers, evaluate what is left in floating point.
#pragma once

#include <cstdint>
#include <vector>

#include "classes.h"
#include "frame.h"
#include "gradient_sums.h"

namespace mmfast {

struct NegativeResult {
  double sum = 0;      // of max(0, m - d^2) over the ordered pairs of different classes
  int64_t active = 0;  // ordered pairs with d^2 < m
};

// With MMFAST_CHECK_SCREEN=1 in the environment every decision that the bounds made for a pair is compared with
// float64, which takes as long as the double loop; a wrong one throws std::logic_error.
//
// y null: self form. Adds to x_sums and y_sums the differences x_i - y_j and y_j - x_i of the active pairs, each
// unordered pair of the self form once per row.
template <class T>
NegativeResult negative_sum(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                            const Frame& frame, double margin, GradientSums& x_sums, GradientSums& y_sums, int threads);

}  // namespace mmfast
