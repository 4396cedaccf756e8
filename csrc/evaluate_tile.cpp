// The pairs that the screen left of a tile: units with many active pairs by masks (tiers/sums.h), the rest one by one.
#include <algorithm>
#include <new>

#include "tile.h"

namespace mmfast {
namespace {

// Of kPanel x kPanel pairs, the share of active ones from which the masked product is less work than pair by pair, from
// 64 to 1024 features. Candidates are held to the same share: were it another, how a unit is summed would depend on how
// well a tier screens, and so would the last bits of the result. The same holds for the share of the tile that such
// units must have between them, below which there is too little to do at a time.
constexpr double kDense = 0.05;
constexpr double kLeastShare = kDense / 8;
// The sums of a tile give its loss to 1e-11 or better within these, else it is computed pair by pair.
constexpr double kLargestSpread = 64, kSmallestLoss = 1e-3;  // times the margin; times the margin per active pair

// A panel of the tile's anchors against a panel of its others.
struct Unit {
  int anchor_panel, other_panel;
  int rows;
  double pairs;
  int first;  // of its mask words

  bool in(const uint8_t* units) const { return units[other_panel] >> anchor_panel & 1; }
  void put_into(uint8_t* units) const { units[other_panel] |= uint8_t(1 << anchor_panel); }
  void take_from(uint8_t* units) const { units[other_panel] &= uint8_t(~(1 << anchor_panel)); }
};

// Evaluates the units of a tile that hold many active pairs, and takes them out of the masks.
class DenseEvaluation {
 public:
  DenseEvaluation(const Negatives<float>& negatives, const Tile& tile, Scratch<float>& scratch)
      : n_(negatives),
        scratch_(scratch),
        begin_(n_.anchors.begin(tile.x_block)),
        other_begin_(n_.others.begin(tile.y_block)),
        count_(int(n_.anchors.end(tile.x_block) - begin_)),
        other_count_(int(n_.others.end(tile.y_block) - other_begin_)) {}

  double evaluate(int64_t* active) {
    if (n_.anchors.q.depth == 0) return 0;  // nothing was screened, and nothing is decided in numbers
    const int64_t candidates = choose();
    scratch_.all_compared = false;
    if (double(candidates) < least()) return 0;
    if (!scratch_.dense) scratch_.dense.reset(new (std::nothrow) DenseScratch);
    if (!scratch_.dense) return 0;  // without memory, pair by pair
    doubt();
    list_rows();
    if (any_doubtful_)
      n_.tier.compare({dense().anchors, dense().others, count_, other_count_, features(),
                       n_.anchors.q.steps.data() + begin_, n_.others.q.steps.data() + other_begin_,
                       n_.frame.centre_f32.data(), float(n_.frame.unit), n_.margin * n_.frame.unit * n_.frame.unit,
                       doubtful_, dense().inactive, dense().certain, dense().comparison});
    const int64_t found = take();
    scratch_.all_compared = doubtful_everywhere() && double(found) >= kDense * count_ * other_count_;
    if (!found) return 0;
    *active += found;
    const DenseResult result =
        n_.tier.accumulate({dense().anchors, dense().others, n_.anchors.sums.wanted() ? dense().anchor_sums : nullptr,
                            n_.others.sums.wanted() ? dense().other_sums : nullptr, dense().active, count_,
                            other_count_, features(), n_.margin, dense().sums});
    const double loss = n_.margin * double(found) - result.squares;
    const bool accurate =
        result.spread <= kLargestSpread * n_.margin && loss >= kSmallestLoss * n_.margin * double(found);
    return accurate ? loss : pair_by_pair();
  }

 private:
  DenseScratch& dense() const { return *scratch_.dense; }
  int features() const { return n_.anchors.rows.features; }

  template <class F>
  void for_units(F&& f) const {
    for (int p = 0; p * kPanel < other_count_; ++p)
      for (int a = 0; a * kPanel < count_; ++a) {
        const int rows = std::min(kPanel, count_ - a * kPanel), columns = std::min(kPanel, other_count_ - p * kPanel);
        f(Unit{a, p, rows, double(rows) * columns, p * kBlock + a * kPanel});
      }
  }

  double least() const { return kLeastShare * count_ * other_count_; }

  // Finds the units with many candidates and returns how many these are.
  int64_t choose() {
    int64_t candidates = 0;
    for_units([&](const Unit& unit) {
      const int64_t found = n_.tier.count_ones(masks(unit), unit.rows);
      if (double(found) < kDense * unit.pairs) return;
      unit.put_into(units_);
      if (double(found) >= kNearlyFull * unit.pairs) unit.put_into(nearly_full_);
      candidates += found;
    });
    return candidates;
  }

  // Finds those of them that products have to decide.
  void doubt() {
    for_units([&](const Unit& unit) {
      if (!unit.in(units_)) return;
      if (scratch_.screened && unit.in(nearly_full_) && all_active(unit)) return;
      unit.put_into(doubtful_);
      any_doubtful_ = true;
    });
  }

  bool doubtful_everywhere() const {
    bool everywhere = true;
    for_units([&](const Unit& unit) { everywhere = everywhere && unit.in(doubtful_); });
    return everywhere;
  }

  // True only if the screen proves all candidates of a unit active.
  bool all_active(const Unit& unit) const {
    uint64_t screened[kPanel], *active = scratch_.certain.data() + unit.first, doubtful = 0;
    if (!scratch_.proved[unit.other_panel])
      screen_panel(n_.tier, n_.anchors.q, begin_ + unit.anchor_panel * kPanel, unit.rows, n_.others.q,
                   other_begin_ + unit.other_panel * kPanel, screened, active);
    for (int r = 0; r < unit.rows; ++r) doubtful |= masks(unit)[r] & ~active[r];
    return doubtful == 0;
  }

  void list_rows() {
    for (int r = 0; r < count_; ++r) {
      dense().anchors[r] = n_.anchors.rows.row(begin_ + r);
      dense().anchor_sums[r] = n_.anchors.sums.row(begin_ + r);
    }
    for (int c = 0; c < other_count_; ++c) {
      dense().others[c] = n_.others.rows.row(other_begin_ + c);
      dense().other_sums[c] = n_.others.sums.row(other_begin_ + c);
    }
  }

  // Moves the active pairs of the units that have many from the masks to those of the dense sums, if they are many
  // together; returns how many. The others are left to evaluate_kept.
  int64_t take() {
    int64_t found = 0;
    for_units([&](const Unit& unit) {
      if (!unit.in(units_)) return;
      if (checking()) check(unit);
      if (unit.in(doubtful_)) decide(unit);
      const int64_t active = n_.tier.count_ones(masks(unit), unit.rows);
      if (double(active) >= kDense * unit.pairs)
        found += active;
      else
        unit.take_from(units_);
    });
    if (double(found) < least()) return 0;
    for_units([&](const Unit& unit) {
      std::fill_n(dense().active + unit.first, kPanel, 0);
      if (!unit.in(units_)) return;
      std::copy_n(masks(unit), unit.rows, dense().active + unit.first);
      std::fill_n(masks(unit), unit.rows, 0);
    });
    return found;
  }

  // Takes the inactive pairs of a compared unit out of the masks.
  void decide(const Unit& unit) {
    for (int r = 0; r < unit.rows; ++r) {
      uint64_t& mask = masks(unit)[r];
      mask &= ~dense().inactive[unit.first + r];
      for (uint64_t left = mask & ~dense().certain[unit.first + r]; left; left &= left - 1) {
        const int c = __builtin_ctzll(left);
        const float* const anchor = dense().anchors[unit.anchor_panel * kPanel + r];
        const float* const other = dense().others[unit.other_panel * kPanel + c];
        if (!n_.tier.is_active(anchor, other, features(), n_.margin)) mask &= ~(uint64_t(1) << c);
      }
    }
  }

  // Checks what the screen or the products decided; what they left open is_active decides, in float64 as the check.
  void check(const Unit& unit) {
    for (int r = 0; r < unit.rows; ++r)
      for (uint64_t left = masks(unit)[r]; left; left &= left - 1) {
        const uint64_t bit = left & -left;
        const bool compared = unit.in(doubtful_), inactive = compared && (dense().inactive[unit.first + r] & bit);
        if (compared && !inactive && !(dense().certain[unit.first + r] & bit)) continue;
        check_decision(n_, begin_ + unit.anchor_panel * kPanel + r,
                       other_begin_ + unit.other_panel * kPanel + __builtin_ctzll(left), !inactive, scratch_);
      }
  }

  // The loss of the dense sums' pairs.
  double pair_by_pair() {
    double loss = 0;
    int64_t counted = 0;
    for (int r = 0; r < count_; ++r) {
      int chosen = 0;
      for (int p = 0; p * kPanel < other_count_; ++p)
        for (uint64_t left = dense().active[p * kBlock + r]; left; left &= left - 1)
          scratch_.others[chosen++] = dense().others[p * kPanel + __builtin_ctzll(left)];
      const Candidates<float> pairs = {dense().anchors[r], scratch_.others.data(), nullptr, nullptr, chosen, features(),
                                       n_.margin};
      loss += n_.tier.f32.evaluate(pairs, &counted);
    }
    return loss;
  }

  uint64_t* masks(const Unit& unit) const { return scratch_.masks.data() + unit.first; }

  const Negatives<float>& n_;
  Scratch<float>& scratch_;
  const int64_t begin_, other_begin_;
  const int count_, other_count_;
  uint8_t units_[kBlockPanels] = {}, nearly_full_[kBlockPanels] = {},
          doubtful_[kBlockPanels] = {};  // as Comparison's (tier.h)
  bool any_doubtful_ = false;
};

double evaluate_dense(const Negatives<float>& n, const Tile& tile, Scratch<float>& scratch, int64_t* active) {
  return DenseEvaluation(n, tile, scratch).evaluate(active);
}
double evaluate_dense(const Negatives<double>&, const Tile&, Scratch<double>&, int64_t*) { return 0; }

// What the masks still hold of an anchor's row, pair by pair.
template <class T>
double evaluate_kept(const Negatives<T>& n, const Tile& tile, int64_t r, Scratch<T>& scratch, int64_t* active) {
  const Side<T>&anchors = n.anchors, &others = n.others;
  const int64_t y_begin = others.begin(tile.y_block), y_end = others.end(tile.y_block);
  int found = 0;
  for (int64_t p = 0, column = y_begin; column < y_end; ++p, column += kPanel)
    for (uint64_t mask = scratch.masks[p * kBlock + r]; mask; mask &= mask - 1) {
      const int64_t j = column + __builtin_ctzll(mask);
      scratch.others[found] = others.rows.row(j);
      scratch.other_sums[found] = others.sums.row(j);
      ++found;
    }
  if (!found) return 0;
  const int64_t i = anchors.begin(tile.x_block) + r;
  const Candidates<T> candidates = {anchors.rows.row(i),
                                    scratch.others.data(),
                                    anchors.sums.row(i),
                                    others.sums.wanted() ? scratch.other_sums.data() : nullptr,
                                    found,
                                    anchors.rows.features,
                                    n.margin};
  return kernels(n.tier, candidates.anchor).evaluate(candidates, active);
}
}  // namespace

template <class T>
double evaluate_tile(const Negatives<T>& n, const Tile& tile, Scratch<T>& scratch, int64_t* active) {
  double loss = evaluate_dense(n, tile, scratch, active);
  const int64_t rows = n.anchors.end(tile.x_block) - n.anchors.begin(tile.x_block);
  for (int64_t r = 0; r < rows; ++r) loss += evaluate_kept(n, tile, r, scratch, active);
  return loss;
}

template double evaluate_tile(const Negatives<float>&, const Tile&, Scratch<float>&, int64_t*);
template double evaluate_tile(const Negatives<double>&, const Tile&, Scratch<double>&, int64_t*);

}  // namespace mmfast
