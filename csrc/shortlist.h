// The rows that may be among the nearest of one query, and the nearest themselves.
//
// Each candidate comes with bounds of its score from the digits. The k-th largest lower bound so far is a threshold: a
// row that certainly scores below it is not among the k nearest. What is left is measured in float64 at the end, or
// whenever much of it has come together; nearest is who has the smaller rank (vectors.h), then the smaller key.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace mmfast {

struct Neighbour {
  double rank;
  int64_t key;
  bool operator<(const Neighbour& other) const { return rank < other.rank || (rank == other.rank && key < other.key); }
};

// A row whose score lies between two bounds.
struct Bounded {
  int64_t row;
  double lower, upper;
};

class Shortlist {
 public:
  static constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

  Shortlist() = default;
  Shortlist(int64_t k, double farthest, double threshold) { reset(k, farthest, threshold); }

  // For the k nearest, or all, of rank `farthest` or less; no row that scores below `threshold` is one.
  void reset(int64_t k, double farthest, double threshold) {
    k_ = k;
    farthest_ = farthest;
    threshold_ = threshold;
    best_.clear();
    waiting_.clear();
    found_.clear();
  }

  double threshold() const { return threshold_; }

  // Rows that have not been offered before. `measure(row)` is the rank and the key; `measure.fetch(row)` says that it
  // will be asked for.
  template <class Measure>
  void offer(const Bounded* rows, int64_t count, const Measure& measure) {
    const bool many = best_.empty() && count / kParts >= k_;
    if (many) start(rows, count);
    for (const Bounded* c = rows; c < rows + count; ++c) {
      if (c->upper < threshold_) continue;
      waiting_.emplace_back(c->row, c->upper);
      if (!many && k_ != kAll) raise(c->lower);
      if (int64_t(waiting_.size()) < limit()) continue;
      fetch(measure);
      if (int64_t(waiting_.size()) > limit() / 2) resolve(measure);
    }
  }

  // Says that what is waiting will be measured.
  template <class Measure>
  void fetch(const Measure& measure) {
    drop();
    for (const Waiting& w : waiting_) measure.fetch(w.row);
  }

  // Leaves nothing waiting, and sorts what was found.
  template <class Measure>
  const std::vector<Neighbour>& finish(const Measure& measure) {
    fetch(measure);
    resolve(measure);
    std::sort(found_.begin(), found_.end());
    return found_;
  }

 private:
  struct Waiting {
    Waiting(int64_t r, double u) : row(r), upper(u) {}
    int64_t row;
    double upper;
  };
  static constexpr int64_t kLeastWaiting = 64, kParts = 4;
  int64_t limit() const { return k_ == kAll ? kLeastWaiting : std::max(kLeastWaiting, 4 * k_); }

  // From many rows at once: the largest bound of each of a few times k parts of them, and the k largest of these. One
  // by one, a row would have to be taken in whenever it is among the k best of those before it.
  void start(const Bounded* rows, int64_t count) {
    static thread_local std::vector<double> largest;
    largest.assign(kParts * k_, -std::numeric_limits<double>::infinity());
    for (int64_t i = 0, part = 0; i < count; ++i, part = part + 1 < kParts * k_ ? part + 1 : 0)
      largest[part] = std::max(largest[part], rows[i].lower);
    std::nth_element(largest.begin(), largest.begin() + (k_ - 1), largest.end(), std::greater<double>());
    best_.assign(largest.begin(), largest.begin() + k_);
    std::make_heap(best_.begin(), best_.end(), std::greater<double>());
    threshold_ = std::max(threshold_, best_.front());
  }

  void raise(double lower) {
    if (lower <= threshold_) return;
    if (int64_t(best_.size()) < k_) {
      best_.push_back(lower);
      std::push_heap(best_.begin(), best_.end(), std::greater<double>());
    } else {
      replace_smallest(lower);
    }
    if (int64_t(best_.size()) == k_) threshold_ = std::max(threshold_, best_.front());
  }

  void replace_smallest(double bound) {
    const size_t size = best_.size();
    size_t hole = 0;
    for (size_t child = 1; child < size; child = 2 * hole + 1) {
      if (child + 1 < size) child += best_[child + 1] < best_[child];
      if (bound <= best_[child]) break;
      best_[hole] = best_[child];
      hole = child;
    }
    best_[hole] = bound;
  }

  void drop() {
    waiting_.erase(
        std::remove_if(waiting_.begin(), waiting_.end(), [&](const Waiting& w) { return w.upper < threshold_; }),
        waiting_.end());
  }

  template <class Measure>
  void resolve(const Measure& measure) {
    for (const Waiting& w : waiting_) {
      const Neighbour n = measure(w.row);
      if (n.rank <= farthest_) found_.push_back(n);
    }
    waiting_.clear();
    if (int64_t(found_.size()) <= k_) return;
    std::nth_element(found_.begin(), found_.begin() + k_, found_.end());
    found_.resize(k_);
  }

  int64_t k_ = 0;
  double farthest_ = 0, threshold_ = 0;
  std::vector<double> best_;      // a heap of the k largest lower bounds, the smallest in front
  std::vector<Waiting> waiting_;  // not measured yet
  std::vector<Neighbour> found_;
};

}  // namespace mmfast
