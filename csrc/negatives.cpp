// Both forms as tiles of two row blocks, handed out so that no two threads write one row (schedule.h).
#include "negatives.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "prune.h"
#include "schedule.h"
#include "screen.h"
#include "threads.h"
#include "tier.h"
#include "tile.h"

namespace mmfast {
namespace {

// Blocks of a side: more keep more threads busy, fewer cost a dense tile less for each pair of rows.
constexpr int64_t kBlocksWanted = 16, kSmallBlocksWanted = 8, kSmallBlock = 2 * kPanel;
constexpr int64_t kSmallestBlock = 4;  // rows of a short side: keeps several threads busy on a few anchors

int64_t block_rows(int64_t rows, bool anchors_only) {
  if (anchors_only && rows < kBlocksWanted * kPanel)
    return std::clamp<int64_t>((rows + kBlocksWanted - 1) / kBlocksWanted, kSmallestBlock, kPanel);
  const int64_t wanted = std::max((rows + kBlocksWanted - 1) / kBlocksWanted,
                                  std::min((rows + kSmallBlocksWanted - 1) / kSmallBlocksWanted, kSmallBlock));
  return std::clamp<int64_t>((wanted + kPanel - 1) / kPanel * kPanel, kPanel, kBlock);
}

template <class T, class Tournament>
NegativeResult run(const Negatives<T>& negatives, const Tournament& tournament, int threads) {
  const int64_t x_blocks = negatives.anchors.blocks(), y_blocks = negatives.others.blocks();
  // A running total for each block of anchors: the order of the sum is fixed by the schedule.
  std::vector<NegativeResult> cells(x_blocks);
  Schedule<Tournament> schedule(tournament, negatives.self ? x_blocks : x_blocks + y_blocks,
                                negatives.self ? 0 : x_blocks);
  threads = int(std::clamp<int64_t>(std::min(x_blocks, y_blocks), 1, threads));
  std::vector<Scratch<T>> scratch(threads);
  on_threads(threads, [&] {
    Scratch<T>& mine = scratch[thread_number()];
    for (Tile tile; schedule.next(tile); schedule.finish(tile)) {
      NegativeResult& cell = cells[tile.x_block];
      if (screen_tile(negatives, tile, mine)) cell.sum += evaluate_tile(negatives, tile, mine, &cell.active);
    }
  });
  int64_t wrong = 0;
  for (const Scratch<T>& mine : scratch) wrong += mine.wrong;
  if (wrong) throw std::logic_error("the screen misjudged " + std::to_string(wrong) + " pairs: please report this");
  NegativeResult result;
  for (const NegativeResult& cell : cells) {
    result.sum += cell.sum;
    result.active += cell.active;
  }
  return result;
}

template <class T>
NegativeResult self_negatives(const Rows<T>& x, const std::vector<ClassRange>& classes, const Frame& frame,
                              double margin, GradientSums& sums, int threads) {
  const Tier& tier = current_tier();
  const Quantiser quantiser(frame, margin, tier);
  const Quantised q = quantise_rows(x, quantiser, true, true, threads);
  std::vector<int64_t> class_begin(x.size()), class_end(x.size());
  for (const ClassRange& c : classes) {
    std::fill(class_begin.begin() + c.x_begin, class_begin.begin() + c.x_end, c.x_begin);
    std::fill(class_end.begin() + c.x_begin, class_end.begin() + c.x_end, c.x_end);
  }
  const int64_t block = block_rows(x.size(), false);
  const Balls balls = make_balls(x, class_end, block, quantiser, tier, threads);
  const Side<T> side = {x, q, balls, block, sums};
  NegativeResult result = run(Negatives<T>{tier, frame, side, side, class_begin, class_end, margin, true},
                              SelfTournament(side.blocks()), threads);
  result.sum *= 2;
  result.active *= 2;
  return result;
}

// The shorter side takes the anchors' role: its blocks can be small, so that a few rows still feed several threads.
template <class T>
NegativeResult cross_negatives(const Rows<T>& x, const Rows<T>& y, const std::vector<ClassRange>& classes,
                               const Frame& frame, double margin, GradientSums& x_sums, GradientSums& y_sums,
                               int threads) {
  const bool swap = x.size() > y.size();
  const Rows<T>&anchors = swap ? y : x, &others = swap ? x : y;
  const Tier& tier = current_tier();
  const Quantiser quantiser(frame, margin, tier);
  const Quantised aq = quantise_rows(anchors, quantiser, true, false, threads);
  const Quantised oq = quantise_rows(others, quantiser, false, true, threads);
  std::vector<int64_t> same_begin(anchors.size()), same_end(anchors.size());
  std::vector<int64_t> a_class_end(anchors.size()), o_class_end(others.size());
  for (const ClassRange& c : classes) {
    const int64_t a_begin = swap ? c.y_begin : c.x_begin, a_end = swap ? c.y_end : c.x_end;
    const int64_t o_begin = swap ? c.x_begin : c.y_begin, o_end = swap ? c.x_end : c.y_end;
    std::fill(same_begin.begin() + a_begin, same_begin.begin() + a_end, o_begin);
    std::fill(same_end.begin() + a_begin, same_end.begin() + a_end, o_end);
    std::fill(a_class_end.begin() + a_begin, a_class_end.begin() + a_end, a_end);
    std::fill(o_class_end.begin() + o_begin, o_class_end.begin() + o_end, o_end);
  }
  const int64_t a_block = block_rows(anchors.size(), true), o_block = block_rows(others.size(), false);
  const Balls a_balls = make_balls(anchors, a_class_end, a_block, quantiser, tier, threads);
  const Balls o_balls = make_balls(others, o_class_end, o_block, quantiser, tier, threads);
  const Side<T> a_side = {anchors, aq, a_balls, a_block, swap ? y_sums : x_sums};
  const Side<T> o_side = {others, oq, o_balls, o_block, swap ? x_sums : y_sums};
  return run(Negatives<T>{tier, frame, a_side, o_side, same_begin, same_end, margin, false},
             CrossTournament(a_side.blocks(), o_side.blocks()), threads);
}

}  // namespace

template <class T>
NegativeResult negative_sum(const Rows<T>& x, const Rows<T>* y, const std::vector<ClassRange>& classes,
                            const Frame& frame, double margin, GradientSums& x_sums, GradientSums& y_sums,
                            int threads) {
  return y ? cross_negatives(x, *y, classes, frame, margin, x_sums, y_sums, threads)
           : self_negatives(x, classes, frame, margin, x_sums, threads);
}

template NegativeResult negative_sum(const Rows<float>&, const Rows<float>*, const std::vector<ClassRange>&,
                                     const Frame&, double, GradientSums&, GradientSums&, int);
template NegativeResult negative_sum(const Rows<double>&, const Rows<double>*, const std::vector<ClassRange>&,
                                     const Frame&, double, GradientSums&, GradientSums&, int);

}  // namespace mmfast
