// The rows of one side in class order, and the frame that both sides are looked at in.
#pragma once

#include <cstdint>
#include <vector>

namespace mmfast {

// One side of the comparison, rows in the order given by `order`.
template <class T>
struct Rows {
  const T* data;               // (., D) contiguous
  std::vector<int32_t> order;  // which rows, in which order
  int features;                // D
  const T* row(int64_t i) const { return data + int64_t(order[i]) * features; }
  int64_t size() const { return int64_t(order.size()); }
};

// The common translation and scaling of both sides. Any frame is right; one that fits most rows screens best.
struct Frame {
  std::vector<double> centre;     // (D,), rounded to the type of the rows
  std::vector<float> centre_f32;  // the same, for rows of float
  double unit = 1;                // a power of two that brings typical rows to about 1
  bool finite = true;             // every value of every row is finite
};

template <class T>
Frame common_frame(const Rows<T>& x, const Rows<T>* y, int threads);

}  // namespace mmfast
