#include "graph_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.h"

namespace mmfast {
namespace {

constexpr int kTogether = 4;          // walks of a thread that wait for memory in turns; 2 to 8 are as fast
constexpr int64_t kQueriesTask = 32;  // handed to a thread at a time
constexpr double kInfinite = std::numeric_limits<double>::infinity();

void fetch(const void* from, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

struct GraphSearch {
  const ExactSearch& search;
  const Links& links;
  const Tier& tier;
  int expansion;
};

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

// One query's walk, in steps: memory that a step asks for arrives while other walks take theirs.
class Walk {
 public:
  void begin(const GraphSearch& g, int64_t query) {
    g_ = &g;
    query_ = query;
    const Codes& c = g.search.codes;
    digits_.resize(query_depth(c.depth));
    scratch_.resize(c.features);
    encoded_ = encode_query(g.tier, c, g.search.metric, row(), 127, digits_.data());
    visited_.reset(g.links.nodes);
    beam_.reset(g.expansion);
    fresh_.clear();
    for (int i = 0; i < g.links.entries; ++i) {
      visited_.insert(i);
      fresh_.push_back(i);
    }
  }

  int64_t query() const { return query_; }

  // False at the end.
  bool step() {
    const Links& links = g_->links;
    if (!fresh_.empty()) {
      measure();
      fresh_.clear();
      const int32_t next = beam_.peek();
      if (next >= 0) fetch(links.neighbours + int64_t(next) * links.slots, links.slots * int(sizeof(int32_t)));
      return true;
    }
    const int32_t at = beam_.take();
    if (at < 0) return false;
    meet(links.neighbours + int64_t(at) * links.slots, links.slots);
    if (at < links.upper_nodes) meet(links.upper + int64_t(at) * links.upper_slots, links.upper_slots);
    return true;
  }

  std::vector<Neighbour> rank() {
    const ExactSearch& s = g_->search;
    const Codes& c = s.codes;
    const Ranker rank_of(s, g_->tier, query_, scratch_.data());
    for (int i = 0; i < beam_.size(); ++i) fresh_.push_back(beam_.row(i));
    products_.resize(fresh_.size());
    g_->tier.dots({c.digits, fresh_.data(), beam_.size(), c.depth, digits_.data(), encoded_.sum, products_.data()});
    Shortlist list(s.k, to_rank(s.metric, s.radius), -kInfinite);
    for (int i = 0; i < beam_.size(); ++i) {
      const int32_t node = fresh_[i];
      const Bound bound = bound_score(c, encoded_, node, products_[i]);
      for (int32_t r = node; r >= 0; r = g_->links.copies ? g_->links.copies[r] : -1)
        if (!s.allowed || s.allowed[r]) list.offer(r, bound.lower, bound.upper, rank_of);
    }
    return list.finish(rank_of);
  }

 private:
  const float* row() const { return g_->search.queries + query_ * g_->search.codes.features; }

  void meet(const int32_t* list, int slots) {
    for (int i = 0; i < slots && list[i] >= 0; ++i)
      if (visited_.insert(list[i])) {
        fresh_.push_back(list[i]);
        prepare(list[i]);
      }
  }

  void prepare(int32_t row) const {
    const Codes& c = g_->search.codes;
    fetch(c.digits + int64_t(row) * c.depth, c.depth);
    __builtin_prefetch(c.scale + row);
    if (g_->search.metric == Metric::kL2sq) __builtin_prefetch(c.half + row);
  }

  // Puts the fresh rows into the beam.
  void measure() {
    const Codes& c = g_->search.codes;
    const int count = int(fresh_.size());
    products_.resize(count);
    g_->tier.dots({c.digits, fresh_.data(), count, c.depth, digits_.data(), encoded_.sum, products_.data()});
    const float factor = float(encoded_.scale);
    for (int i = 0; i < count; ++i) {
      const int32_t row = fresh_[i];
      beam_.insert(c.half[row] - factor * c.scale[row] * float(products_[i]), row);
    }
  }

  const GraphSearch* g_;
  int64_t query_;
  Query encoded_;
  Visited visited_;
  Beam beam_;
  std::vector<int32_t> fresh_, products_;
  std::vector<int8_t> digits_;
  std::vector<float> scratch_;
};

}  // namespace

std::vector<std::vector<Neighbour>> graph_search(const ExactSearch& s, const Links& links, int expansion) {
  const DefaultArithmetic arithmetic;
  const GraphSearch g = {s, links, current_tier(), expansion};
  std::vector<std::vector<Neighbour>> results(s.query_count);
  const int64_t tasks = (s.query_count + kQueriesTask - 1) / kQueriesTask;
  const auto run = [&](int64_t task) {
    static thread_local Walk kept[kTogether];  // keep their memory between calls
    Walk* walks[kTogether];
    int64_t next = task * kQueriesTask;
    const int64_t end = std::min(next + kQueriesTask, s.query_count);
    int active = 0;
    for (Walk& walk : kept) {
      if (next == end) break;
      walk.begin(g, next++);
      walks[active++] = &walk;
    }
    for (int w = 0; active; w = w + 1 < active ? w + 1 : 0) {
      if (walks[w]->step()) continue;
      results[walks[w]->query()] = walks[w]->rank();
      if (next < end)
        walks[w]->begin(g, next++);
      else
        walks[w] = walks[--active];
    }
  };
  if (tasks == 1)
    run(0);
  else
    share_out(int(std::min<int64_t>(s.threads, tasks)), tasks, run);
  return results;
}

}  // namespace mmfast
