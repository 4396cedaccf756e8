// Cut blocks into balls and measure them: see prune.h.
#include "prune.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "threads.h"

namespace mmfast {
namespace {

constexpr int64_t kRowsPerBall = 8;   // on average in a block; comparing smaller balls costs more than it saves
constexpr double kLeastPruned = 0.2;  // of the pairs of two blocks' balls, for making and comparing balls to pay

std::atomic<bool> pruning{true};

// Returns the radius. The centroid need only be near the mean; the radius is measured from it as it is stored: a
// difference is off by 2^-53 of itself, and 1e-6 covers the sum over D of their squares. Squares that underflow are
// below 1e-154 sqrt(D), nothing beside the margins that are screened.
template <class T>
double measure(const Tier& tier, const Rows<T>& x, Ball ball, const T* zeros, double* centroid) {
  const RowKernels<T>& rows = kernels(tier, zeros);
  std::fill_n(centroid, x.features, 0.0);
  for (int64_t i = ball.begin; i < ball.end; ++i) rows.add_deviation(x.row(i), zeros, x.features, centroid);
  for (int k = 0; k < x.features; ++k) centroid[k] /= double(ball.end - ball.begin);
  double largest = 0;
  for (int64_t i = ball.begin; i < ball.end; ++i)
    largest = std::max(largest, rows.squared_deviation(x.row(i), zeros, centroid, x.features));
  return std::sqrt(largest) *
         (1 + 1e-6);  // at worst infinite or NaN, as rows are finite: then the ball is not screened
}

double share_pruned(const Tier& tier, const Balls& balls, int64_t one, int64_t other) {
  uint64_t near[kPanel];
  screen_panel(tier, balls.q, balls.first[one], balls.count(one), balls.q, other * kPanel, near);
  double pruned = 0;
  for (int b = 0; b < balls.count(one); ++b)
    for (int c = 0; c < balls.count(other); ++c) pruned += !(near[b] >> c & 1);
  return pruned / (double(balls.count(one)) * balls.count(other));
}

}  // namespace

void enable_pruning(bool enabled) { pruning = enabled; }

template <class T>
Balls make_balls(const Rows<T>& x, const std::vector<int64_t>& class_end, int64_t block_rows,
                 const Quantiser& quantiser, const Tier& tier, int threads) {
  Balls out;
  const int64_t blocks = (x.size() + block_rows - 1) / block_rows;
  out.first.reserve(blocks + 1);
  for (int64_t block = 0; block < blocks; ++block) {
    out.first.push_back(int64_t(out.balls.size()));
    const int64_t begin = block * block_rows, end = std::min(begin + block_rows, x.size());
    for (int64_t i = begin; i < end; i = out.balls.back().end) out.balls.push_back({i, std::min(class_end[i], end)});
    const int64_t count = int64_t(out.balls.size()) - out.first.back();
    if (count > kPanel || count * kRowsPerBall > end - begin || quantiser.depth() == 0 || !pruning)
      out.balls.resize(out.first.back());
  }
  out.first.push_back(int64_t(out.balls.size()));
  if (out.balls.empty()) return out;

  out.q = Quantised(quantiser.depth());
  out.q.make_rows(int64_t(out.balls.size()));
  out.q.make_panels(blocks);
  std::vector<double> centroids(size_t(threads) * x.features);
  const std::vector<T> zeros(x.features);
  const auto fill = [&](int64_t block) {
    double* const centroid = centroids.data() + size_t(thread_number()) * x.features;
    const int64_t first = out.first[block];
    for (int64_t b = 0; b < out.count(block); ++b) {
      const double radius = measure(tier, x, out.balls[first + b], zeros.data(), centroid);
      const Bounds bounds = quantiser.quantise(centroid, radius, out.q.rows.data() + (first + b) * out.q.depth);
      out.q.bounds[first + b] = bounds.anchor;
      out.q.starts[block * kPanel + b] = bounds.start;
      out.q.inverse[block * kPanel + b] = bounds.inverse;
      out.q.weighted[block * kPanel + b] = bounds.weighted;
    }
    int8_t* const digits = out.q.rows.data() + first * out.q.depth;
    pack_panel(digits, out.count(block), quantiser.depth(), out.q.panels.data() + block * kPanel * out.q.depth);
    quantiser.add_offset(digits, out.count(block));
  };

  // Two blocks show whether the others are worth it.
  int64_t one = 0, other = blocks - 1;
  while (!out.count(one)) ++one;
  while (!out.count(other)) --other;
  fill(one);
  if (one != other) {
    fill(other);
    if (share_pruned(tier, out, one, other) < kLeastPruned) {
      out.balls.clear();
      std::fill(out.first.begin(), out.first.end(), 0);
      return out;
    }
  }
  on_threads(threads, [&] {
#pragma omp for schedule(dynamic)
    for (int64_t block = 0; block < blocks; ++block)
      if (block != one && block != other) fill(block);
  });
  return out;
}

template Balls make_balls(const Rows<float>&, const std::vector<int64_t>&, int64_t, const Quantiser&, const Tier&, int);
template Balls make_balls(const Rows<double>&, const std::vector<int64_t>&, int64_t, const Quantiser&, const Tier&,
                          int);

}  // namespace mmfast
