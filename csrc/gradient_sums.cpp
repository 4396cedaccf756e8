// One buffer is kept for the next call, since the pages of a new one cost as much as a pass over the batch.
#include "gradient_sums.h"

#include <atomic>

namespace mmfast {
namespace {

constexpr size_t kLargestSpare = size_t(1) << 25;  // 256 MB

}  // namespace

GradientSums::Buffer* GradientSums::exchange_spare(Buffer* buffer) {
  static std::atomic<Buffer*> spare{nullptr};
  return spare.exchange(buffer);
}

GradientSums::GradientSums(bool wanted, int64_t rows, int features) : features_(features) {
  if (!wanted) return;
  const size_t size = size_t(rows) * features;
  if (size <= kLargestSpare) buffer_.reset(exchange_spare(nullptr));
  if (!buffer_ || buffer_->size < size) buffer_.reset(new Buffer(size));
  used_.assign(rows, false);
}

GradientSums::~GradientSums() {
  if (buffer_ && buffer_->size <= kLargestSpare) buffer_.reset(exchange_spare(buffer_.release()));
}

}  // namespace mmfast
