// A row of D sums for each row of a side, in class order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace mmfast {

// Rows are zeroed when they are first asked for, by the thread that is about to add to them: where few pairs are active
// most of this memory is never touched. Two threads may not ask for one row at a time.
class GradientSums {
 public:
  GradientSums(bool wanted, int64_t rows, int features);
  ~GradientSums();
  GradientSums(const GradientSums&) = delete;

  bool wanted() const { return buffer_ != nullptr; }

  // The row to add to; null if nobody wants the gradient.
  double* row(int64_t i) {
    if (!wanted()) return nullptr;
    double* const sums = buffer_->data.get() + i * features_;
    if (!used_[i]) std::fill_n(sums, features_, 0.0);
    used_[i] = true;
    return sums;
  }

  // Null: nothing was added to it.
  const double* sums(int64_t i) const { return wanted() && used_[i] ? buffer_->data.get() + i * features_ : nullptr; }

 private:
  struct Buffer {
    explicit Buffer(size_t size) : size(size), data(new double[size]) {}
    const size_t size;
    const std::unique_ptr<double[]> data;
  };
  static Buffer* exchange_spare(Buffer* buffer);

  const int features_;
  std::unique_ptr<Buffer> buffer_;
  std::vector<uint8_t> used_;
};

}  // namespace mmfast
