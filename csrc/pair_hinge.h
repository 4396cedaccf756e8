// The pairwise hinge loss over all ordered pairs and its gradient, without the matrix of pairs:
//
//     L = w_p sum_{same class} d_ij^2  +  w_n sum_{other class} max(0, m - d_ij^2)
//
// Positives in closed form (classes.h). Negatives: screened in 8-bit integers (screen.h), what is left is evaluated in
// floating point from differences, and the active set is the one of float64 arithmetic. Memory is O(rows * features).
#pragma once

#include <cstdint>

namespace mmfast {

enum class Reduction { kSum, kMean, kMeanNonzero };

template <class T>
struct PairHinge {
  const T* x;               // (x_rows, features)
  const int64_t* x_labels;  // (x_rows,)
  int64_t x_rows;
  bool cross;               // false: the self form, all ordered pairs of x
  const T* y;               // (y_rows, features); unused in the self form
  const int64_t* y_labels;  // (y_rows,)
  int64_t y_rows;
  int features;
  double margin;
  int64_t ignore_index;
  Reduction reduction;
  T* x_gradient;  // (x_rows, features) or null
  T* y_gradient;  // (y_rows, features) or null
  int threads;
};

// Returns the loss. The gradients are written whole, rows that take no part as zeros. The result does not depend on the
// number of threads. Throws only std::bad_alloc and, where MMFAST_CHECK_SCREEN is set (negatives.h), std::logic_error.
template <class T>
double pair_hinge(const PairHinge<T>& problem);

}  // namespace mmfast
