// The schedule of the pairwise hinge loss: order by class, quantise, screen tile by tile, evaluate what is left.
#include "pair_hinge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "classes.h"
#include "screen.h"
#include "tournament.h"

namespace mmfast {
namespace {

constexpr int64_t kLargestBlock = 512;    // rows; masks of a tile stay within 32 KiB of cache
constexpr int64_t kBlocksWanted = 64;     // enough for the threads of a large machine, few enough for cheap rounds
constexpr int64_t kSmallestBlock = 4;     // rows of a short side: keeps several threads busy on a few anchors

int64_t block_rows(int64_t rows, bool anchors_only) {
  if (anchors_only && rows < kBlocksWanted * kPanel / 4)
    return std::clamp<int64_t>((rows + 15) / 16, kSmallestBlock, kPanel);
  const int64_t wanted = (rows + kBlocksWanted - 1) / kBlocksWanted;
  return std::clamp<int64_t>((wanted + kPanel - 1) / kPanel * kPanel, kPanel, kLargestBlock);
}

double evaluate(const Tier& tier, const Candidates<float>& c, int64_t* active) { return tier.evaluate_f32(c, active); }
double evaluate(const Tier& tier, const Candidates<double>& c, int64_t* active) {
  return tier.evaluate_f64(c, active);
}

template <class T>
struct Scratch {
  std::vector<uint64_t> masks = std::vector<uint64_t>(kLargestBlock * kLargestBlock / kPanel);
  std::vector<const T*> others = std::vector<const T*>(kLargestBlock);
  std::vector<double*> other_sums = std::vector<double*>(kLargestBlock);
};

// A row of D zeros for each row of a side, in class order; empty if nobody wants its gradient.
class Sums {
 public:
  Sums(bool wanted, int64_t rows, int features, int threads)
      : data_(wanted ? new double[size_t(rows) * features] : nullptr) {
    if (!wanted) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; ++i) std::fill_n(data_.get() + i * features, features, 0.0);
  }
  double* data() const { return data_.get(); }

 private:
  std::unique_ptr<double[]> data_;
};

// Anchors (side x of a tile) against others (side y). In the self form both are the same rows.
template <class T>
struct Negatives {
  const Tier& tier;
  const Rows<T>& x;
  const Rows<T>& y;
  const Quantised& xq;
  const Quantised& yq;
  std::vector<int64_t> same_begin, same_end;  // per anchor: its own class among the others
  double* x_sums;  // (x.size(), D) in class order; null: no gradient wanted
  double* y_sums;
  double margin;
  bool self;

  double tile(int64_t x_begin, int64_t x_end, int64_t y_begin, int64_t y_end, Scratch<T>& scratch,
              int64_t* active) const {
    // All of one class: no negatives.
    if (same_begin[x_begin] == same_begin[x_end - 1] && same_begin[x_begin] <= y_begin && y_end <= same_end[x_begin])
      return 0;
    const int count = int(x_end - x_begin), panels = int((y_end - y_begin + kPanel - 1) / kPanel);
    uint64_t any = 0;
    for (int p = 0; p < panels; ++p) {
      const int64_t column = y_begin + int64_t(p) * kPanel;
      uint64_t* const masks = scratch.masks.data() + size_t(p) * kLargestBlock;
      tier.screen(xq.rows.data() + x_begin * xq.depth, xq.bounds.data() + x_begin, count,
                  yq.panels.data() + column * yq.depth, yq.inverse.data() + column, yq.weighted.data() + column,
                  yq.depth, masks);
      const uint64_t valid = below(y_end - column);
      for (int r = 0; r < count; ++r) {
        const int64_t i = x_begin + r;
        // Leaves out the anchor's own class and, in the self form, the pairs seen from the other end.
        uint64_t kept = masks[r] & valid & ~(below(same_end[i] - column) & ~below(same_begin[i] - column));
        if (self) kept &= ~below(i + 1 - column);
        masks[r] = kept;
        any |= kept;
      }
    }
    if (!any) return 0;

    double loss = 0;
    for (int r = 0; r < count; ++r) {
      const int64_t i = x_begin + r;
      int found = 0;
      for (int p = 0; p < panels; ++p)
        for (uint64_t mask = scratch.masks[size_t(p) * kLargestBlock + r]; mask; mask &= mask - 1) {
          const int64_t j = y_begin + int64_t(p) * kPanel + __builtin_ctzll(mask);
          scratch.others[found] = y.row(j);
          if (y_sums) scratch.other_sums[found] = y_sums + j * y.features;
          ++found;
        }
      if (!found) continue;
      const Candidates<T> candidates = {x.row(i),
                                        scratch.others.data(),
                                        x_sums ? x_sums + i * x.features : nullptr,
                                        y_sums ? scratch.other_sums.data() : nullptr,
                                        found,
                                        x.features,
                                        margin};
      loss += evaluate(tier, candidates, active);
    }
    return loss;
  }

  // The lowest `count` bits.
  static uint64_t below(int64_t count) {
    return count <= 0 ? 0 : count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
  }
};

struct NegativeResult {
  double sum = 0;
  int64_t active = 0;
};

template <class T, class Tournament>
NegativeResult run(const Negatives<T>& negatives, const Tournament& tournament, int64_t x_block, int64_t y_block,
                   int threads) {
  const int64_t x_rows = negatives.x.size(), y_rows = negatives.y.size();
  const int64_t x_blocks = (x_rows + x_block - 1) / x_block, y_blocks = (y_rows + y_block - 1) / y_block;
  const int64_t width = std::max<int64_t>(1, std::max(x_blocks, y_blocks));
  // One cell per tile of a round and a running total per cell: the order of the sum is fixed by the tournament.
  std::vector<NegativeResult> cells(width);
  threads = int(std::clamp<int64_t>(std::min(x_blocks, y_blocks), 1, threads));
  std::vector<Scratch<T>> scratch(threads);
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    Scratch<T>& mine = scratch[omp_get_thread_num()];
#else
    Scratch<T>& mine = scratch[0];
#endif
    for (int64_t round = 0; round < tournament.rounds(); ++round) {
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < tournament.tiles(round); ++i) {
        Tile tile;
        if (!tournament.tile(round, i, tile)) continue;
        const int64_t xb = tile.x_block * x_block, yb = tile.y_block * y_block;
        cells[i].sum += negatives.tile(xb, std::min(xb + x_block, x_rows), yb, std::min(yb + y_block, y_rows), mine,
                                       &cells[i].active);
      }
    }
  }
  NegativeResult result;
  for (const NegativeResult& cell : cells) {
    result.sum += cell.sum;
    result.active += cell.active;
  }
  return result;
}

template <class T>
Negatives<T> prepare(const Tier& tier, const Rows<T>& x, const Rows<T>& y, const Quantised& xq, const Quantised& yq,
                     double* x_sums, double* y_sums, double margin, bool self) {
  return {tier, x, y, xq, yq, std::vector<int64_t>(x.size()), std::vector<int64_t>(x.size()), x_sums, y_sums, margin,
          self};
}

template <class T>
NegativeResult self_negatives(const Rows<T>& x, const std::vector<ClassRange>& classes, const Frame& frame,
                              double margin, double* sums, int threads) {
  const Tier& tier = current_tier();
  const Quantised q = quantise_rows(x, frame, margin, tier, true, true, threads);
  Negatives<T> negatives = prepare(tier, x, x, q, q, sums, sums, margin, true);
  for (const ClassRange& c : classes)
    for (int64_t i = c.x_begin; i < c.x_end; ++i) {
      negatives.same_begin[i] = c.x_begin;
      negatives.same_end[i] = c.x_end;
    }
  const int64_t block = block_rows(x.size(), false);
  NegativeResult result = run(negatives, SelfTournament((x.size() + block - 1) / block), block, block, threads);
  result.sum *= 2;
  result.active *= 2;
  return result;
}

// The shorter side takes the anchors' role: its blocks can be small, so that a few rows still feed several threads.
template <class T>
NegativeResult cross_negatives(const Rows<T>& x, const Rows<T>& y, const std::vector<ClassRange>& classes,
                               const Frame& frame, double margin, double* x_sums, double* y_sums, int threads) {
  const bool swap = x.size() > y.size();
  const Rows<T>&anchors = swap ? y : x, &others = swap ? x : y;
  const Tier& tier = current_tier();
  const Quantised aq = quantise_rows(anchors, frame, margin, tier, true, false, threads);
  const Quantised oq = quantise_rows(others, frame, margin, tier, false, true, threads);
  Negatives<T> negatives = prepare(tier, anchors, others, aq, oq, swap ? y_sums : x_sums,
                                   swap ? x_sums : y_sums, margin, false);
  for (const ClassRange& c : classes)
    for (int64_t i = swap ? c.y_begin : c.x_begin; i < (swap ? c.y_end : c.x_end); ++i) {
      negatives.same_begin[i] = swap ? c.x_begin : c.y_begin;
      negatives.same_end[i] = swap ? c.x_end : c.y_end;
    }
  const int64_t a_block = block_rows(anchors.size(), true), o_block = block_rows(others.size(), false);
  const CrossTournament tournament((anchors.size() + a_block - 1) / a_block, (others.size() + o_block - 1) / o_block);
  return run(negatives, tournament, a_block, o_block, threads);
}

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
  const bool cross = p.cross;
  const Rows<T> x = {p.x, class_order(p.x_labels, p.x_rows, p.ignore_index), p.features};
  const Rows<T> y = {p.y, cross ? class_order(p.y_labels, p.y_rows, p.ignore_index) : std::vector<int32_t>(),
                     p.features};
  const Frame frame = common_frame(x, cross ? &y : nullptr, p.threads);
  const T filling = frame.finite ? T(0) : std::numeric_limits<T>::quiet_NaN();
  if (!frame.finite || x.size() < p.x_rows) fill_gradient(p.x_gradient, p.x_rows, x, filling);
  if (!frame.finite || y.size() < p.y_rows) fill_gradient(p.y_gradient, p.y_rows, y, filling);
  if (!frame.finite) return filling;
  const std::vector<ClassRange> classes = match_classes(p.x_labels, x.order, cross, p.y_labels, y.order);

  const bool any_negatives = p.margin > 0 && x.size() > 0 && (!cross || y.size() > 0);
  const Sums x_sums(p.x_gradient && any_negatives, x.size(), p.features, p.threads);
  const Sums y_sums(p.y_gradient && any_negatives, y.size(), p.features, p.threads);
  NegativeResult negatives;
  if (any_negatives)
    negatives = cross ? cross_negatives(x, y, classes, frame, p.margin, x_sums.data(), y_sums.data(), p.threads)
                      : self_negatives(x, classes, frame, p.margin, x_sums.data(), p.threads);

  double positive_weight = 1, negative_weight = 1;
  if (p.reduction == Reduction::kMean) {
    const double pairs = double(x.size()) * double(cross ? y.size() : x.size());
    positive_weight = negative_weight = 1 / std::max(1.0, pairs);
  } else if (p.reduction == Reduction::kMeanNonzero) {
    const int64_t positives = count_nonzero_positives(x, cross ? &y : nullptr, classes, p.threads);
    positive_weight = 1 / std::max(1.0, double(positives));
    negative_weight = 1 / std::max(1.0, double(negatives.active));
  }
  // d/dx_i of the ordered pairs (i, j) and (j, i) of the self form is -4 (x_i - x_j), of the cross form -2.
  const double positives = positive_sum_and_gradient(
      x, cross ? &y : nullptr, classes, positive_weight, (cross ? 2 : 4) * negative_weight,
      Gradient<T>{p.x_gradient, x_sums.data()}, Gradient<T>{p.y_gradient, y_sums.data()}, p.threads);
  return positive_weight * positives + negative_weight * negatives.sum;
}

template double pair_hinge(const PairHinge<float>&);
template double pair_hinge(const PairHinge<double>&);

}  // namespace mmfast
