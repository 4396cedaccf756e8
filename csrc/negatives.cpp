// The schedule: tiles of two row blocks, so ordered that no two threads write one row (tournament.h).
#include "negatives.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "prune.h"
#include "screen.h"
#include "threads.h"
#include "tier.h"
#include "tournament.h"

namespace mmfast {
namespace {

// Blocks of a side: more keep more threads busy, fewer cost a dense tile less for each pair of rows.
constexpr int64_t kBlocksWanted = 16, kSmallBlocksWanted = 8, kSmallBlock = 2 * kPanel;
constexpr int64_t kSmallestBlock = 4;     // rows of a short side: keeps several threads busy on a few anchors
// Of kPanel x kPanel pairs, the share of active ones from which the masked product is less work than pair by pair, from
// 64 to 1024 features. Candidates are held to the same share: were it another, how a unit is summed would depend on how
// well a tier screens, and so would the last bits of the result.
constexpr double kDense = 0.07;
constexpr double kNearlyFull = 0.9;  // from this share of candidates on, the screen may prove all of them active
// The sums of a tile give its loss to 1e-11 or better within these, else it is computed pair by pair.
constexpr double kLargestSpread = 64, kSmallestLoss = 1e-3;  // times the margin; times the margin per active pair

int64_t block_rows(int64_t rows, bool anchors_only) {
  if (anchors_only && rows < kBlocksWanted * kPanel)
    return std::clamp<int64_t>((rows + kBlocksWanted - 1) / kBlocksWanted, kSmallestBlock, kPanel);
  const int64_t wanted = std::max((rows + kBlocksWanted - 1) / kBlocksWanted,
                                  std::min((rows + kSmallBlocksWanted - 1) / kSmallBlocksWanted, kSmallBlock));
  return std::clamp<int64_t>((wanted + kPanel - 1) / kPanel * kPanel, kPanel, kBlock);
}

double evaluate(const Tier& tier, const Candidates<float>& c, int64_t* active) { return tier.evaluate_f32(c, active); }
double evaluate(const Tier& tier, const Candidates<double>& c, int64_t* active) {
  return tier.evaluate_f64(c, active);
}

// The lowest `count` bits.
uint64_t below(int64_t count) { return count <= 0 ? 0 : count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1; }

// Not initialised: sparse batches never touch it, and a small batch is done sooner than it is zeroed.
struct DenseScratch {
  const float *anchors[kBlock], *others[kBlock];
  double *anchor_sums[kBlock], *other_sums[kBlock];
  uint64_t inactive[kMaskWords], certain[kMaskWords], active[kMaskWords];
  float comparison[kComparisonScratch];
  double sums[kDenseScratch];
};

template <class T>
struct Scratch {
  std::vector<uint64_t> masks = std::vector<uint64_t>(kMaskWords);
  std::vector<const T*> others = std::vector<const T*>(kBlock);
  std::vector<double*> other_sums = std::vector<double*>(kBlock);
  std::unique_ptr<DenseScratch> dense{sizeof(T) == 4 ? new DenseScratch : nullptr};
  int64_t wrong = 0;  // decisions, where they are checked
  uint64_t near[kPanel];  // by anchor ball: which of the others' balls need the screen
};

// One side of all tiles.
template <class T>
struct Side {
  const Rows<T>& rows;
  const Quantised& q;
  const Balls& balls;
  int64_t block_rows;
  double* sums;  // (rows.size(), D) in class order; null: no gradient wanted

  int64_t blocks() const { return (rows.size() + block_rows - 1) / block_rows; }
  int64_t begin(int64_t block) const { return block * block_rows; }
  int64_t end(int64_t block) const { return std::min(begin(block) + block_rows, rows.size()); }
  double* sum(int64_t row) const { return sums ? sums + row * rows.features : nullptr; }
};

bool checking() {
  static const bool on = [] {
    const char* const setting = std::getenv("MMFAST_CHECK_SCREEN");
    return setting && *setting && *setting != '0';
  }();
  return on;
}

// Anchors against others. In the self form both are the same rows.
template <class T>
struct Negatives {
  const Tier& tier;
  const Frame& frame;
  Side<T> anchors, others;
  std::vector<int64_t> same_begin, same_end;  // per anchor: its own class among the others
  double margin;
  bool self;

  double tile(const Tile& tile, Scratch<T>& scratch, int64_t* active) const {
    const int64_t begin = anchors.begin(tile.x_block), count = anchors.end(tile.x_block) - begin;
    const bool any = screen(tile, scratch);
    if (checking()) check_screened(tile, any, scratch);
    if (!any) return 0;
    double loss = evaluate_dense(tile, scratch, active);
    for (int64_t r = 0; r < count; ++r) loss += evaluate_kept(tile, r, scratch, active);
    return loss;
  }

 private:
  // Counts the wrong ones among decisions that a pair is active, or that it is not.
  void check(int64_t i, int64_t j, bool decided, Scratch<T>& scratch) const {
    double d2 = 0;
    for (int k = 0; k < anchors.rows.features; ++k) {
      const double difference = double(anchors.rows.row(i)[k]) - double(others.rows.row(j)[k]);
      d2 += difference * difference;
    }
    scratch.wrong += decided != (d2 < margin);
  }

  void check_screened(const Tile& tile, bool any, Scratch<T>& scratch) const {
    const int64_t begin = anchors.begin(tile.x_block), y_begin = others.begin(tile.y_block);
    for (int64_t i = begin; i < anchors.end(tile.x_block); ++i)
      for (int64_t j = y_begin; j < others.end(tile.y_block); ++j) {
        if ((self && j <= i) || (j >= same_begin[i] && j < same_end[i])) continue;
        const int64_t c = j - y_begin;
        if (!any || !(scratch.masks[c / kPanel * kBlock + (i - begin)] >> c % kPanel & 1)) check(i, j, false, scratch);
      }
  }

  // Fills the masks, a column of `kBlock` for each panel of others; false: nothing is left.
  bool screen(const Tile& tile, Scratch<T>& scratch) const {
    const int64_t begin = anchors.begin(tile.x_block), end = anchors.end(tile.x_block);
    const int64_t y_begin = others.begin(tile.y_block), y_end = others.end(tile.y_block);
    // All of one class: no negatives.
    if (same_begin[begin] == same_begin[end - 1] && same_begin[begin] <= y_begin && y_end <= same_end[begin])
      return false;
    const bool pruned = anchors.balls.count(tile.x_block) && others.balls.count(tile.y_block);
    if (pruned && !compare_balls(tile, scratch)) return false;

    uint64_t any = 0;
    for (int64_t p = 0, column = y_begin; column < y_end; ++p, column += kPanel) {
      uint64_t* const masks = scratch.masks.data() + p * kBlock;
      if (pruned)
        screen_near(tile, column, std::min(column + kPanel, y_end), scratch, masks);
      else
        screen_rows(begin, end, column, masks);
      const uint64_t valid = below(y_end - column);
      for (int64_t i = begin; i < end; ++i) {
        // Leaves out the anchor's own class and, in the self form, the pairs seen from the other end.
        uint64_t kept = masks[i - begin] & valid & ~(below(same_end[i] - column) & ~below(same_begin[i] - column));
        if (self) kept &= ~below(i + 1 - column);
        masks[i - begin] = kept;
        any |= kept;
      }
    }
    return any != 0;
  }

  void screen_rows(int64_t begin, int64_t end, int64_t column, uint64_t* masks) const {
    const Quantised &a = anchors.q, &o = others.q;
    tier.screen(a.rows.data() + begin * a.depth, a.bounds.data() + begin, int(end - begin),
                o.panels.data() + column * o.depth, o.inverse.data() + column, o.weighted.data() + column, o.depth,
                masks);
  }

  // Screens the anchors that lie near a ball of the panel's; the others have no candidates in it.
  void screen_near(const Tile& tile, int64_t column, int64_t column_end, const Scratch<T>& scratch,
                   uint64_t* masks) const {
    const int64_t begin = anchors.begin(tile.x_block), first = anchors.balls.first[tile.x_block];
    const int64_t first_other = others.balls.first[tile.y_block];
    uint64_t here = 0;
    for (int b = 0; b < others.balls.count(tile.y_block); ++b) {
      const Ball& ball = others.balls.balls[first_other + b];
      if (ball.begin < column_end && ball.end > column) here |= uint64_t(1) << b;
    }
    for (int b = 0, next; b < anchors.balls.count(tile.x_block); b = next) {
      const bool needed = scratch.near[b] & here;
      for (next = b + 1; next < anchors.balls.count(tile.x_block) && bool(scratch.near[next] & here) == needed;) ++next;
      const int64_t from = anchors.balls.balls[first + b].begin, to = anchors.balls.balls[first + next - 1].end;
      if (needed)
        screen_rows(from, to, column, masks + (from - begin));
      else
        std::fill(masks + (from - begin), masks + (to - begin), 0);
    }
  }

  // Fills scratch.near; false: no two balls of different classes are near each other.
  bool compare_balls(const Tile& tile, Scratch<T>& scratch) const {
    const Balls &a = anchors.balls, &o = others.balls;
    const int64_t first = a.first[tile.x_block], first_other = o.first[tile.y_block], column = tile.y_block * kPanel;
    tier.screen(a.q.rows.data() + first * a.q.depth, a.q.bounds.data() + first, a.count(tile.x_block),
                o.q.panels.data() + column * o.q.depth, o.q.inverse.data() + column, o.q.weighted.data() + column,
                o.q.depth, scratch.near);
    uint64_t any = 0;
    for (int b = 0; b < a.count(tile.x_block); ++b) {
      const int64_t row = a.balls[first + b].begin;
      scratch.near[b] &= below(o.count(tile.y_block));
      for (int c = 0; c < o.count(tile.y_block); ++c) {
        const Ball& ball = o.balls[first_other + c];
        if (ball.begin >= same_begin[row] && ball.end <= same_end[row]) scratch.near[b] &= ~(uint64_t(1) << c);
      }
      any |= scratch.near[b];
    }
    return any != 0;
  }

  // Evaluates the units of a tile that hold many active pairs, and takes them out of the masks.
  double evaluate_dense(const Tile& tile, Scratch<T>& scratch, int64_t* active) const {
    if constexpr (sizeof(T) == 8) {
      return 0;
    } else {
      const int64_t begin = anchors.begin(tile.x_block), y_begin = others.begin(tile.y_block);
      const int count = int(anchors.end(tile.x_block) - begin), width = int(others.end(tile.y_block) - y_begin);
      uint64_t* const masks = scratch.masks.data();
      // Calls f with each unit: its number among the others' panels and among the anchors', its masks, rows and pairs.
      const auto for_units = [&](auto&& f) {
        for (int p = 0; p * kPanel < width; ++p)
          for (int a = 0; a * kPanel < count; ++a) {
            const int rows = std::min(kPanel, count - a * kPanel), columns = std::min(kPanel, width - p * kPanel);
            f(p, a, masks + p * kBlock + a * kPanel, rows, double(rows) * columns);
          }
      };
      uint8_t units[kBlockPanels] = {}, doubtful_units[kBlockPanels] = {};
      bool any = false, any_doubtful = false;
      for_units([&](int p, int a, const uint64_t* unit, int rows, double pairs) {
        const double share = double(ones(unit, rows)) / pairs;
        if (share < kDense) return;
        units[p] |= uint8_t(1 << a);
        any = true;
        if (share >= kNearlyFull && all_active(begin + a * kPanel, rows, y_begin + p * kPanel, unit)) return;
        doubtful_units[p] |= uint8_t(1 << a);
        any_doubtful = true;
      });
      if (!any) return 0;

      DenseScratch& dense = *scratch.dense;
      for (int r = 0; r < count; ++r)
        dense.anchors[r] = anchors.rows.row(begin + r), dense.anchor_sums[r] = anchors.sum(begin + r);
      for (int c = 0; c < width; ++c)
        dense.others[c] = others.rows.row(y_begin + c), dense.other_sums[c] = others.sum(y_begin + c);
      const int features = anchors.rows.features;
      if (any_doubtful)
        tier.compare({dense.anchors, dense.others, count, width, features, frame.centre.data(), frame.unit, margin,
                      doubtful_units, dense.inactive, dense.certain, dense.comparison});
      int64_t found = 0;
      for_units([&](int p, int a, uint64_t* unit, int rows, double pairs) {
        const int first = p * kBlock + a * kPanel;
        std::fill_n(dense.active + first, kPanel, 0);
        if (!(units[p] >> a & 1)) return;
        const bool doubtful_unit = doubtful_units[p] >> a & 1;
        for (int r = 0; checking() && r < rows; ++r)
          for (uint64_t left = unit[r]; left; left &= left - 1) {
            const uint64_t bit = left & -left;
            const bool inactive = doubtful_unit && (dense.inactive[first + r] & bit);
            if (inactive || !doubtful_unit || (dense.certain[first + r] & bit))
              check(begin + a * kPanel + r, y_begin + p * kPanel + __builtin_ctzll(left), !inactive, scratch);
          }
        for (int r = 0; doubtful_unit && r < rows; ++r) {
          unit[r] &= ~dense.inactive[first + r];
          for (uint64_t doubtful = unit[r] & ~dense.certain[first + r]; doubtful; doubtful &= doubtful - 1) {
            const int c = __builtin_ctzll(doubtful);
            if (!tier.is_active(dense.anchors[a * kPanel + r], dense.others[p * kPanel + c], features, margin))
              unit[r] &= ~(uint64_t(1) << c);
          }
        }
        const int64_t here = ones(unit, rows);
        if (double(here) < kDense * pairs) return;  // left to evaluate_kept
        std::copy_n(unit, rows, dense.active + first);
        std::fill_n(unit, rows, 0);
        found += here;
      });
      if (!found) return 0;
      *active += found;
      const DenseResult result =
          tier.accumulate({dense.anchors, dense.others, anchors.sums ? dense.anchor_sums : nullptr,
                           others.sums ? dense.other_sums : nullptr, dense.active, count, width, features, dense.sums});
      const double loss = margin * double(found) - result.squares;
      const bool accurate = result.spread <= kLargestSpread * margin && loss >= kSmallestLoss * margin * double(found);
      return accurate ? loss : pair_by_pair(dense, count, width, scratch);
    }
  }

  // True only if the screen proves all candidates of a unit active.
  bool all_active(int64_t row, int rows, int64_t column, const uint64_t* candidates) const {
    const Quantised &a = anchors.q, &o = others.q;
    uint64_t active[kPanel];
    tier.screen(a.rows.data() + row * a.depth, a.active_bounds.data() + row, rows, o.panels.data() + column * o.depth,
                o.inverse.data() + column, o.active_weighted.data() + column, o.depth, active);
    uint64_t doubtful = 0;
    for (int r = 0; r < rows; ++r) doubtful |= candidates[r] & ~active[r];
    return doubtful == 0;
  }

  // The loss of the active pairs of a dense tile.
  double pair_by_pair(const DenseScratch& dense, int count, int width, Scratch<T>& scratch) const {
    double loss = 0;
    int64_t counted = 0;
    for (int r = 0; r < count; ++r) {
      int chosen = 0;
      for (int p = 0; p * kPanel < width; ++p)
        for (uint64_t left = dense.active[p * kBlock + r]; left; left &= left - 1)
          scratch.others[chosen++] = dense.others[p * kPanel + __builtin_ctzll(left)];
      loss += evaluate(tier, Candidates<T>{dense.anchors[r], scratch.others.data(), nullptr, nullptr, chosen,
                                           anchors.rows.features, margin}, &counted);
    }
    return loss;
  }

  static int64_t ones(const uint64_t* masks, int64_t count) {
    int64_t sum = 0;
    for (int64_t r = 0; r < count; ++r) sum += __builtin_popcountll(masks[r]);
    return sum;
  }

  double evaluate_kept(const Tile& tile, int64_t r, Scratch<T>& scratch, int64_t* active) const {
    const int64_t y_begin = others.begin(tile.y_block), y_end = others.end(tile.y_block);
    int found = 0;
    for (int64_t p = 0, column = y_begin; column < y_end; ++p, column += kPanel)
      for (uint64_t mask = scratch.masks[p * kBlock + r]; mask; mask &= mask - 1) {
        const int64_t j = column + __builtin_ctzll(mask);
        scratch.others[found] = others.rows.row(j);
        scratch.other_sums[found] = others.sum(j);
        ++found;
      }
    if (!found) return 0;
    const int64_t i = anchors.begin(tile.x_block) + r;
    const Candidates<T> candidates = {anchors.rows.row(i),
                                      scratch.others.data(),
                                      anchors.sum(i),
                                      others.sums ? scratch.other_sums.data() : nullptr,
                                      found,
                                      anchors.rows.features,
                                      margin};
    return evaluate(tier, candidates, active);
  }
};

template <class T, class Tournament>
NegativeResult run(const Negatives<T>& negatives, const Tournament& tournament, int threads) {
  const int64_t x_blocks = negatives.anchors.blocks(), y_blocks = negatives.others.blocks();
  // One cell per tile of a round and a running total per cell: the order of the sum is fixed by the tournament.
  std::vector<NegativeResult> cells(std::max(x_blocks, y_blocks));
  threads = int(std::clamp<int64_t>(std::min(x_blocks, y_blocks), 1, threads));
  std::vector<Scratch<T>> scratch(threads);
#pragma omp parallel num_threads(threads)
  {
    Scratch<T>& mine = scratch[thread_number()];
    for (int64_t round = 0; round < tournament.rounds(); ++round) {
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < tournament.tiles(round); ++i) {
        Tile tile;
        if (tournament.tile(round, i, tile)) cells[i].sum += negatives.tile(tile, mine, &cells[i].active);
      }
    }
  }
  for (const Scratch<T>& mine : scratch)
    if (mine.wrong) throw std::logic_error("the screen misjudged " + std::to_string(mine.wrong) + " pairs: please report this");
  NegativeResult result;
  for (const NegativeResult& cell : cells) {
    result.sum += cell.sum;
    result.active += cell.active;
  }
  return result;
}

template <class T>
NegativeResult self_negatives(const Rows<T>& x, const std::vector<ClassRange>& classes, const Frame& frame,
                              double margin, double* sums, int threads) {
  const Tier& tier = current_tier();
  const Quantiser quantiser(frame, margin, tier);
  const Quantised q = quantise_rows(x, quantiser, tier, true, true, threads);
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
                               const Frame& frame, double margin, double* x_sums, double* y_sums, int threads) {
  const bool swap = x.size() > y.size();
  const Rows<T>&anchors = swap ? y : x, &others = swap ? x : y;
  const Tier& tier = current_tier();
  const Quantiser quantiser(frame, margin, tier);
  const Quantised aq = quantise_rows(anchors, quantiser, tier, true, false, threads);
  const Quantised oq = quantise_rows(others, quantiser, tier, false, true, threads);
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
                            const Frame& frame, double margin, double* x_sums, double* y_sums, int threads) {
  return y ? cross_negatives(x, *y, classes, frame, margin, x_sums, y_sums, threads)
           : self_negatives(x, classes, frame, margin, x_sums, threads);
}

template NegativeResult negative_sum(const Rows<float>&, const Rows<float>*, const std::vector<ClassRange>&,
                                     const Frame&, double, double*, double*, int);
template NegativeResult negative_sum(const Rows<double>&, const Rows<double>*, const std::vector<ClassRange>&,
                                     const Frame&, double, double*, double*, int);

}  // namespace mmfast
