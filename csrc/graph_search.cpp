#include "graph_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.h"

namespace mmfast {
namespace {

constexpr int kTogether = 4;         // rows measured at a time, while the next ones are fetched
constexpr int64_t kQueriesTask = 8;  // handed to a thread at a time
constexpr double kInfinite = std::numeric_limits<double>::infinity();

void fetch(const void* from, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// Which rows a walk has met: one bit each, cleared by what was set.
class Visited {
 public:
  void reset(int64_t rows) {
    for (int64_t word : touched_) words_[word] = 0;
    touched_.clear();
    if (int64_t(words_.size()) * 64 < rows) words_.resize((rows + 63) / 64);
  }
  bool insert(int64_t row) {
    uint64_t& word = words_[row / 64];
    const uint64_t bit = uint64_t(1) << row % 64;
    if (word & bit) return false;
    if (!word) touched_.push_back(row / 64);
    word |= bit;
    return true;
  }

 private:
  std::vector<uint64_t> words_;
  std::vector<int64_t> touched_;
};

// The nearest rows met, in order: the score's bits, the row and whether the walk has been there, in one integer.
class Beam {
 public:
  void reset(int capacity) {
    entries_.resize(capacity + 1);
    size_ = next_ = 0;
    capacity_ = capacity;
  }

  void insert(float distance, int32_t row) {
    const uint64_t entry = uint64_t(ordered(distance)) << 32 | uint64_t(uint32_t(row)) << 1;
    if (size_ == capacity_ && entry >= entries_[size_ - 1]) return;
    uint64_t* const begin = entries_.data();
    uint64_t* const at = std::lower_bound(begin, begin + size_, entry);
    std::memmove(at + 1, at, (begin + size_ - at) * sizeof *at);
    *at = entry;
    size_ = std::min(size_ + 1, capacity_);
    next_ = std::min(next_, int(at - begin));
  }

  // The nearest row that has not been taken, or -1.
  int32_t take() {
    while (next_ < size_ && entries_[next_] & 1) ++next_;
    if (next_ == size_) return -1;
    entries_[next_] |= 1;
    return row(next_++);
  }
  // The one after, as things are.
  int32_t peek() const {
    int i = next_;
    while (i < size_ && entries_[i] & 1) ++i;
    return i < size_ ? row(i) : -1;
  }

  int size() const { return size_; }
  int32_t row(int i) const { return int32_t(uint32_t(entries_[i]) >> 1); }

 private:
  static uint32_t ordered(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }

  std::vector<uint64_t> entries_;
  int size_ = 0, next_ = 0, capacity_ = 0;
};

class Walker {
 public:
  std::vector<Neighbour> search(const ExactSearch& s, const Links& links, const Tier& tier, const float* query,
                                int expansion) {
    const Codes& c = s.codes;
    digits_.resize((c.depth + kQueryAlign - 1) / kQueryAlign * kQueryAlign);
    scratch_.resize(c.features);
    const Query q = encode_query(tier, c, s.metric, query, 127, digits_.data());
    walk(s, links, tier, q, expansion);
    return rank(s, links, tier, query, q);
  }

 private:
  void walk(const ExactSearch& s, const Links& links, const Tier& tier, const Query& q, int expansion) {
    visited_.reset(links.nodes);
    beam_.reset(expansion);
    fresh_.clear();
    for (int i = 0; i < links.entries; ++i) {
      visited_.insert(i);
      fresh_.push_back(i);
    }
    measure(s.codes, tier, q);
    for (int32_t at; (at = beam_.take()) >= 0;) {
      const int32_t* const list = links.neighbours + int64_t(at) * links.slots;
      fresh_.clear();
      for (int i = 0; i < links.slots && list[i] >= 0; ++i)
        if (visited_.insert(list[i])) fresh_.push_back(list[i]);
      const int32_t next = beam_.peek();
      if (next >= 0) fetch(links.neighbours + int64_t(next) * links.slots, links.slots * int(sizeof *list));
      measure(s.codes, tier, q);
    }
  }

  // Puts the fresh rows into the beam.
  void measure(const Codes& c, const Tier& tier, const Query& q) {
    const int count = int(fresh_.size());
    const float factor = float(q.scale);
    for (int i = 0; i < std::min(count, kTogether); ++i) prepare(c, fresh_[i]);
    for (int begin = 0; begin < count; begin += kTogether) {
      const int together = std::min(kTogether, count - begin);
      for (int i = begin + kTogether; i < std::min(count, begin + 2 * kTogether); ++i) prepare(c, fresh_[i]);
      int32_t products[kTogether];
      tier.dots({c.digits, fresh_.data() + begin, together, c.depth, digits_.data(), q.sum, products});
      for (int i = 0; i < together; ++i) {
        const int32_t row = fresh_[begin + i];
        beam_.insert(c.half[row] - factor * c.scale[row] * float(products[i]), row);
      }
    }
  }

  static void prepare(const Codes& c, int32_t row) {
    fetch(c.digits + int64_t(row) * c.depth, c.depth);
    __builtin_prefetch(c.scale + row);
    __builtin_prefetch(c.half + row);
  }

  std::vector<Neighbour> rank(const ExactSearch& s, const Links& links, const Tier& tier, const float* query,
                              const Query& q) {
    const Codes& c = s.codes;
    const double query_norm = std::sqrt(tier.f32.dot(query, query, c.features));
    const auto rank_of = [&](int64_t row) -> Neighbour {
      const float* const x = s.vectors.row(row, scratch_.data());
      return {rank_row(tier, s.metric, query, query_norm, x, c.features), s.keys ? s.keys[row] : row};
    };
    Shortlist list(s.k, to_rank(s.metric, s.radius), -kInfinite);
    for (int i = 0; i < beam_.size(); ++i) {
      const int32_t node = beam_.row(i);
      int32_t product;
      tier.dots({c.digits, &node, 1, c.depth, digits_.data(), q.sum, &product});
      const Bound bound = bound_score(c, q, node, product);
      for (int32_t row = node; row >= 0; row = links.copies ? links.copies[row] : -1)
        if (!s.allowed || s.allowed[row]) list.offer(row, bound.lower, bound.upper, rank_of);
    }
    return list.finish(rank_of);
  }

  Visited visited_;
  Beam beam_;
  std::vector<int32_t> fresh_;
  std::vector<int8_t> digits_;
  std::vector<float> scratch_;
};

}  // namespace

std::vector<std::vector<Neighbour>> graph_search(const ExactSearch& s, const Links& links, int expansion) {
  const DefaultArithmetic arithmetic;
  const Tier& tier = current_tier();
  std::vector<std::vector<Neighbour>> results(s.query_count);
  const int64_t tasks = (s.query_count + kQueriesTask - 1) / kQueriesTask;
  const auto run = [&](int64_t task) {
    static thread_local Walker walker;  // keeps its memory between calls
    const int64_t end = std::min((task + 1) * kQueriesTask, s.query_count);
    for (int64_t j = task * kQueriesTask; j < end; ++j)
      results[j] = walker.search(s, links, tier, s.queries + j * s.codes.features, expansion);
  };
  if (tasks == 1)
    run(0);
  else
    share_out(int(std::min<int64_t>(s.threads, tasks)), tasks, run);
  return results;
}

}  // namespace mmfast
