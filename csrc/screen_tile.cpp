// Which pairs of a tile can be active: balls first (prune.h), then rows (screen.h).
#include <cstdlib>

#include "tile.h"

namespace mmfast {
namespace {

// The lowest `count` bits.
uint64_t below(int64_t count) { return count <= 0 ? 0 : count >= 64 ? ~uint64_t(0) : (uint64_t(1) << count) - 1; }

// Fills scratch.near; false: no two balls of different classes are near each other.
template <class T>
bool compare_balls(const Negatives<T>& n, const Tile& tile, Scratch<T>& scratch) {
  const Balls &a = n.anchors.balls, &o = n.others.balls;
  const int64_t first = a.first[tile.x_block], first_other = o.first[tile.y_block], column = tile.y_block * kPanel;
  screen_panel(n.tier, a.q, first, a.count(tile.x_block), o.q, column, scratch.near);
  uint64_t any = 0;
  for (int b = 0; b < a.count(tile.x_block); ++b) {
    const int64_t row = a.balls[first + b].begin;
    scratch.near[b] &= below(o.count(tile.y_block));
    for (int c = 0; c < o.count(tile.y_block); ++c) {
      const Ball& ball = o.balls[first_other + c];
      if (ball.begin >= n.same_begin[row] && ball.end <= n.same_end[row]) scratch.near[b] &= ~(uint64_t(1) << c);
    }
    any |= scratch.near[b];
  }
  return any != 0;
}

// Screens the anchors that lie near a ball of the panel's; the others have no candidates in it.
template <class T>
void screen_near(const Negatives<T>& n, const Tile& tile, int64_t column, int64_t column_end, const Scratch<T>& scratch,
                 uint64_t* masks) {
  const Side<T>&anchors = n.anchors, &others = n.others;
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
      screen_panel(n.tier, anchors.q, from, int(to - from), others.q, column, masks + (from - begin));
    else
      std::fill(masks + (from - begin), masks + (to - begin), 0);
  }
}

template <class T>
bool fill_masks(const Negatives<T>& n, const Tile& tile, Scratch<T>& scratch) {
  const Side<T>&anchors = n.anchors, &others = n.others;
  const int64_t begin = anchors.begin(tile.x_block), end = anchors.end(tile.x_block);
  const int64_t y_begin = others.begin(tile.y_block), y_end = others.end(tile.y_block);
  // All of one class: no negatives.
  if (n.same_begin[begin] == n.same_begin[end - 1] && n.same_begin[begin] <= y_begin && y_end <= n.same_end[begin])
    return false;
  const bool pruned = anchors.balls.count(tile.x_block) && others.balls.count(tile.y_block);
  if (pruned && !compare_balls(n, tile, scratch)) return false;

  scratch.screened = pruned || !scratch.all_compared;
  uint64_t any = 0;
  for (int64_t p = 0, column = y_begin; column < y_end; ++p, column += kPanel) {
    uint64_t* const masks = scratch.masks.data() + p * kBlock;
    // In the self form anchors behind the panel have their pairs in it seen from the other end.
    const int64_t last = n.self ? std::min(end, column + kPanel) : end;
    // Where most pairs of the panel before were kept, those of this one that are certainly active are worth knowing.
    scratch.proved[p] = scratch.nearly_full && !pruned && scratch.screened;
    if (!scratch.screened)
      std::fill(masks, masks + (last - begin), ~uint64_t(0));
    else if (pruned)
      screen_near(n, tile, column, std::min(column + kPanel, y_end), scratch, masks);
    else
      screen_panel(n.tier, anchors.q, begin, int(last - begin), others.q, column, masks,
                   scratch.proved[p] ? scratch.certain.data() + p * kBlock : nullptr);
    std::fill(masks + (last - begin), masks + (end - begin), 0);
    const uint64_t valid = below(y_end - column);
    for (int64_t i = begin; i < last; ++i) {
      // Leaves out the anchor's own class and, in the self form, the pairs seen from the other end.
      uint64_t kept = masks[i - begin] & valid & ~(below(n.same_end[i] - column) & ~below(n.same_begin[i] - column));
      if (n.self) kept &= ~below(i + 1 - column);
      masks[i - begin] = kept;
      any |= kept;
    }
    if (!scratch.screened) continue;
    const int64_t count = n.tier.count_ones(masks, last - begin);
    scratch.nearly_full = double(count) >= kNearlyFull * double(last - begin) * kPanel;
  }
  return any != 0;
}

template <class T>
void check_screened(const Negatives<T>& n, const Tile& tile, bool any, Scratch<T>& scratch) {
  const Side<T>&anchors = n.anchors, &others = n.others;
  const int64_t begin = anchors.begin(tile.x_block), y_begin = others.begin(tile.y_block);
  for (int64_t i = begin; i < anchors.end(tile.x_block); ++i)
    for (int64_t j = y_begin; j < others.end(tile.y_block); ++j) {
      if ((n.self && j <= i) || (j >= n.same_begin[i] && j < n.same_end[i])) continue;
      const int64_t c = j - y_begin;
      const bool kept = any && (scratch.masks[c / kPanel * kBlock + (i - begin)] >> c % kPanel & 1);
      if (!kept) check_decision(n, i, j, false, scratch);
    }
}

}  // namespace

bool checking() {
  static const bool on = [] {
    const char* const setting = std::getenv("MMFAST_CHECK_SCREEN");
    return setting && *setting && *setting != '0';
  }();
  return on;
}

template <class T>
void check_decision(const Negatives<T>& n, int64_t i, int64_t j, bool active, Scratch<T>& scratch) {
  const T *const x = n.anchors.rows.row(i), *const y = n.others.rows.row(j);
  double d2 = 0;
  for (int k = 0; k < n.anchors.rows.features; ++k) {
    const double difference = double(x[k]) - double(y[k]);
    d2 += difference * difference;
  }
  scratch.wrong += active != (d2 < n.margin);
}

template <class T>
bool screen_tile(const Negatives<T>& n, const Tile& tile, Scratch<T>& scratch) {
  const bool any = fill_masks(n, tile, scratch);
  if (checking()) check_screened(n, tile, any, scratch);
  return any;
}

template bool screen_tile(const Negatives<float>&, const Tile&, Scratch<float>&);
template bool screen_tile(const Negatives<double>&, const Tile&, Scratch<double>&);
template void check_decision(const Negatives<float>&, int64_t, int64_t, bool, Scratch<float>&);

}  // namespace mmfast
