// One tile of negatives, a block of anchors against a block of others: screened, then evaluated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "gradient_sums.h"
#include "prune.h"
#include "screen.h"
#include "tier.h"
#include "tournament.h"

namespace mmfast {

// Made when the first dense tile is met, and not initialised.
struct DenseScratch {
  const float *anchors[kBlock], *others[kBlock];
  double *anchor_sums[kBlock], *other_sums[kBlock];
  uint64_t inactive[kMaskWords], certain[kMaskWords], active[kMaskWords];
  int32_t comparison[kComparisonScratch];
  double sums[kDenseScratch];
};

constexpr double kNearlyFull = 0.9;  // from this share of candidates on, the screen may prove all of them active

// What a thread works with; the masks are those of tier.h.
template <class T>
struct Scratch {
  std::vector<uint64_t> masks = std::vector<uint64_t>(kMaskWords);
  std::vector<const T*> others = std::vector<const T*>(kBlock);
  std::vector<double*> other_sums = std::vector<double*>(kBlock);
  std::unique_ptr<DenseScratch> dense;
  std::vector<uint64_t> certain = std::vector<uint64_t>(kMaskWords);  // the screen's proofs of active pairs
  bool proved[kBlockPanels];                                          // which panels have them
  bool nearly_full = false;                                           // the panel screened last
  bool all_compared = false;  // the last tile was left to digits of 16 bits: the next one is not screened first
  bool screened;              // this one was
  uint64_t near[kPanel];      // by anchor ball: which of the others' balls need the screen
  int64_t wrong = 0;          // decisions, where they are checked
};

// One side of all tiles.
template <class T>
struct Side {
  const Rows<T>& rows;
  const Quantised& q;
  const Balls& balls;
  int64_t block_rows;
  GradientSums& sums;

  int64_t blocks() const { return (rows.size() + block_rows - 1) / block_rows; }
  int64_t begin(int64_t block) const { return block * block_rows; }
  int64_t end(int64_t block) const { return std::min(begin(block) + block_rows, rows.size()); }
};

// Anchors against others. In the self form both are the same rows.
template <class T>
struct Negatives {
  const Tier& tier;
  const Frame& frame;
  Side<T> anchors, others;
  std::vector<int64_t> same_begin, same_end;  // per anchor: its own class among the others
  double margin;
  bool self;
};

// Fills the masks with the pairs that can be active; false: there are none.
template <class T>
bool screen_tile(const Negatives<T>& negatives, const Tile& tile, Scratch<T>& scratch);

// Returns the loss of the pairs in the masks, adds the active ones to the sums and their number to `active`.
template <class T>
double evaluate_tile(const Negatives<T>& negatives, const Tile& tile, Scratch<T>& scratch, int64_t* active);

// Whether every decision of a bound is compared with float64 (negatives.h).
bool checking();

// Counts the decision if float64 decides otherwise.
template <class T>
void check_decision(const Negatives<T>& negatives, int64_t i, int64_t j, bool active, Scratch<T>& scratch);

}  // namespace mmfast
