// Which tiles may be worked on at the same time: a round-robin tournament of row blocks.
//
// In one round every block meets at most one other, so no two threads ever write the same row: no atomics, and every
// sum is formed in an order that the number of threads cannot change. Over all rounds every block meets every other
// once.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mmfast {

struct Tile {
  int64_t x_block, y_block;
};

// Blocks of one set against each other and themselves: the circle method. Round 0 holds the diagonal.
class SelfTournament {
 public:
  explicit SelfTournament(int64_t blocks) : blocks_(blocks), seats_(blocks + blocks % 2) {}
  int64_t rounds() const { return std::max<int64_t>(seats_, 1); }
  int64_t tiles(int64_t round) const { return round == 0 ? blocks_ : seats_ / 2; }
  // False: the block has no partner in this round.
  bool tile(int64_t round, int64_t i, Tile& out) const {
    if (round == 0) return out = {i, i}, true;
    const int64_t circle = seats_ - 1;
    const int64_t a = i == 0 ? circle : (round + i) % circle, b = (round + circle - i) % circle;
    out = {std::min(a, b), std::max(a, b)};
    return out.y_block < blocks_;
  }

 private:
  int64_t blocks_, seats_;
};

// Every block of one set against every block of another.
class CrossTournament {
 public:
  CrossTournament(int64_t x_blocks, int64_t y_blocks) : x_(x_blocks), y_(y_blocks) {}
  int64_t rounds() const { return x_ && y_ ? std::max(x_, y_) : 0; }
  int64_t tiles(int64_t) const { return std::min(x_, y_); }
  bool tile(int64_t round, int64_t i, Tile& out) const {
    out = x_ <= y_ ? Tile{i, (i + round) % y_} : Tile{(i + round) % x_, i};
    return true;
  }

 private:
  int64_t x_, y_;
};

}  // namespace mmfast
