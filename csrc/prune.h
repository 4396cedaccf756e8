// Which parts of a tile need no screen: classes that lie far apart are told apart by one comparison.
//
// A block's rows in class order are cut into balls, one for each class: a centroid c and a radius rho no row is further
// away than. All pairs of two balls are certainly inactive if |c_I - c_J| >= sqrt(m) + rho_I + rho_J, which is the
// screen's own condition (screen.h) for two centroids with rho added to their residuals. So balls are compared by the
// same kernel, a block's balls being at most one panel. Where training has separated the classes, what is left of a
// step is hardly more than these comparisons.
#pragma once

#include <cstdint>
#include <vector>

#include "frame.h"
#include "screen.h"

namespace mmfast {

struct Ball {
  int64_t begin, end;  // rows, in class order
};

// The balls of one side, block by block.
struct Balls {
  std::vector<Ball> balls;
  std::vector<int64_t> first;  // (blocks + 1,): a block's first ball; no balls where pruning does not pay
  Quantised q{0};              // rows: one per ball; panels: one per block

  int count(int64_t block) const { return int(first[block + 1] - first[block]); }
};

// On by default; off, no balls are made and all pairs are screened. The result is the same.
void enable_pruning(bool enabled);

// class_end[i]: where the class of row i ends, in class order.
template <class T>
Balls make_balls(const Rows<T>& x, const std::vector<int64_t>& class_end, int64_t block_rows,
                 const Quantiser& quantiser, const Tier& tier, int threads);

}  // namespace mmfast
