// Hands out the tiles of a tournament (tournament.h), each as soon as the earlier ones of its two blocks are done.
//
// A thread does not wait for the end of a round, only for the blocks that it needs; and as every block sees its tiles
// in the order of the tournament, no number of threads changes a sum. It can only wait for tiles handed out earlier, so
// one of those that wait can always go on.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "tournament.h"

namespace mmfast {

template <class Tournament>
class Schedule {
 public:
  // The blocks of the second set are counted from `first_y` on: 0 where both are the same set.
  Schedule(const Tournament& tournament, int64_t blocks, int64_t first_y)
      : tournament_(tournament), first_y_(first_y), given_(blocks, 0), done_(blocks) {}

  // False: there are no more.
  bool next(Tile& tile) {
    int64_t x_turn, y_turn;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      do {
        if (round_ < tournament_.rounds() && i_ == tournament_.tiles(round_)) ++round_, i_ = 0;
        if (round_ == tournament_.rounds()) return false;
      } while (i_ == tournament_.tiles(round_) || !tournament_.tile(round_, i_++, tile));
      x_turn = given_[x(tile)]++;
      y_turn = x(tile) == y(tile) ? x_turn : given_[y(tile)]++;
    }
    wait(x(tile), x_turn);
    wait(y(tile), y_turn);
    return true;
  }

  void finish(const Tile& tile) {
    done_[x(tile)].fetch_add(1, std::memory_order_release);
    if (x(tile) != y(tile)) done_[y(tile)].fetch_add(1, std::memory_order_release);
  }

 private:
  int64_t x(const Tile& tile) const { return tile.x_block; }
  int64_t y(const Tile& tile) const { return first_y_ + tile.y_block; }
  void wait(int64_t block, int64_t turn) const {
    while (done_[block].load(std::memory_order_acquire) != turn) std::this_thread::yield();
  }

  const Tournament& tournament_;
  const int64_t first_y_;
  std::mutex mutex_;
  int64_t round_ = 0, i_ = 0;               // the next tile
  std::vector<int64_t> given_;              // tiles of each block handed out
  std::vector<std::atomic<int64_t>> done_;  // and finished
};

}  // namespace mmfast
