#include "graph_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "fetch.h"
#include "threads.h"

namespace mmfast {
namespace {

constexpr int kTogether = 4;          // walks of a thread that wait for memory in turns; 2 to 8 are as fast
constexpr int64_t kQueriesTask = 32;  // handed to a thread at a time
constexpr float kDeviations = 4;      // by which a difference of two scores may be off
constexpr double kInfinite = std::numeric_limits<double>::infinity();

struct GraphSearch {
  const ExactSearch& search;
  const Links& links;
  const Tier& tier;
  int expansion;
  Precision precision;
};

// The rows that a walk has met, in order.
class Met {
 public:
  // The first rows are met already.
  void reset(int64_t rows, int first) {
    for (int i = 0; i < count_; ++i) words_[rows_[i] / 64] = 0;
    count_ = 0;
    if (int64_t(words_.size()) * 64 < rows) words_.resize((rows + 63) / 64);
    if (int(rows_.size()) < first) rows_.resize(first);
    for (; count_ < first; ++count_) {
      rows_[count_] = count_;
      words_[count_ / 64] |= uint64_t(1) << count_ % 64;
    }
  }

  // Appends those of a list that are new. Whether one is new nobody can foretell: no branch depends on it.
  void add(const int32_t* list, int slots) {
    if (int(rows_.size()) < count_ + slots) rows_.resize(2 * (count_ + slots));
    int32_t* const rows = rows_.data();
    int count = count_;
    for (int i = 0; i < slots && list[i] >= 0; ++i) {
      uint64_t& word = words_[list[i] / 64];
      const int shift = list[i] % 64;
      rows[count] = list[i];
      count += int(~word >> shift & 1);
      word |= uint64_t(1) << shift;
    }
    count_ = count;
  }

  int count() const { return count_; }
  const int32_t* from(int i) const { return rows_.data() + i; }

 private:
  std::vector<int32_t> rows_;
  std::vector<uint64_t> words_;  // a bit for each row
  int count_ = 0;
};

// The nearest rows met, in order. An entry is the score's bits, the row and whether the walk has been there, in one
// integer.
class Beam {
 public:
  static uint64_t entry(float distance, int32_t row) {
    return uint64_t(ordered(distance)) << 32 | uint64_t(uint32_t(row)) << 1;
  }

  static int32_t row_of(uint64_t entry) { return int32_t(uint32_t(entry) >> 1); }

  void reset(int capacity) {
    size_ = next_ = 0;
    capacity_ = capacity;
  }

  // Entries from here on find no room.
  uint64_t limit() const { return size_ < capacity_ ? ~uint64_t(0) : entries_[size_ - 1]; }

  // Adds up to kAtOnce entries below the limit and drops what finds no room. What is there is moved once.
  static constexpr int kAtOnce = 16;
  void insert(const uint64_t* fresh, int count) {
    if (!count) return;
    if (int(entries_.size()) < size_ + count) entries_.resize(size_ + count);
    uint64_t sorted[kAtOnce], *const begin = entries_.data();
    int places[kAtOnce];
    for (int i = 0; i < count; ++i) {
      // Which is smaller nobody can foretell: no branch depends on it.
      int rank = 0, at = 0;
      for (int j = 0; j < count; ++j) rank += fresh[j] < fresh[i];
      for (int left = size_; left > 0;) {
        const int half = (left + 1) / 2;
        at += half & -int(begin[at + half - 1] < fresh[i]);
        left -= half;
      }
      sorted[rank] = fresh[i];
      places[rank] = at;
    }
    for (int i = count - 1, end = size_; i >= 0; end = places[i--]) {
      std::memmove(begin + places[i] + i + 1, begin + places[i], (end - places[i]) * sizeof *begin);
      begin[places[i] + i] = sorted[i];
    }
    size_ = std::min(size_ + count, capacity_);
    next_ = std::min(next_, places[0]);
  }

  // The nearest row that has not been taken, or -1.
  int32_t take() {
    while (next_ < size_ && entries_[next_] & 1) ++next_;
    if (next_ == size_) return -1;
    entries_[next_] |= 1;
    return row(next_++);
  }

  int size() const { return size_; }
  int32_t row(int i) const { return row_of(entries_[i]); }
  float distance(int i) const {
    const uint32_t order = uint32_t(entries_[i] >> 32), bits = order >> 31 ? order ^ 0x80000000u : ~order;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

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
    digits_.resize(2 * query_part(c.digits.width));
    scratch_.resize(c.features);
    encoded_ = encode_query(g.tier, c, g.search.metric, row(), 127, digits_.data());
    list_.reset(g.search.k, to_rank(g.search.metric, g.search.radius), -kInfinite);
    beam_.reset(g.expansion);
    met_.reset(g.links.nodes, g.links.entries);
    measured_ = 0;
    ending_ = kWalking;
  }

  int64_t query() const { return query_; }

  // False at the end.
  bool step() {
    if (ending_ == kBounding) return bound();
    if (ending_ == kRanking) return false;
    const Links& links = g_->links;
    if (measured_ < met_.count()) {
      collect();
      return true;
    }
    const int32_t at = beam_.take();
    if (at < 0) return prepare_bounds();
    met_.add(links.neighbours + int64_t(at) * links.slots, links.slots);
    if (at < links.upper_nodes) met_.add(links.upper + int64_t(at) * links.upper_slots, links.upper_slots);
    for (int i = measured_; i < met_.count(); ++i) prepare(*met_.from(i));
    return true;
  }

  const std::vector<Neighbour>& results() { return list_.finish(ranker()); }

 private:
  enum Ending { kWalking, kBounding, kRanking };

  const float* row() const { return g_->search.queries + query_ * g_->search.codes.features; }
  Ranker ranker() { return {g_->search, g_->tier, row(), encoded_.length, scratch_.data()}; }
  bool squared() const { return g_->search.metric == Metric::kL2sq; }

  void prepare(int32_t row) const {
    const Codes& c = g_->search.codes;
    if (g_->precision == Precision::kRows) return g_->search.vectors.fetch(row);
    fetch(c.digits.coarse + int64_t(row) * c.digits.width, c.digits.width);
    if (g_->precision == Precision::kEight) fetch(c.digits.fine + int64_t(row) * c.digits.width, c.digits.width);
    fetch(c.scale + row);
    if (squared()) fetch(c.half + row);
  }

  // What the rows that are new are away from the query, but for a factor and a constant.
  void measure(const int32_t* fresh, int count) {
    const Codes& c = g_->search.codes;
    distances_.resize(count);
    if (g_->precision == Precision::kRows) {
      const Ranker rank_of = ranker();
      ranks_.resize(count);
      for (int i = 0; i < count; ++i) ranks_[i] = rank_of(fresh[i]).rank;
      // Close ones are to be close to 0, where a float is most precise.
      if (fresh == met_.from(0))
        nearest_ = g_->search.metric == Metric::kIp ? *std::min_element(ranks_.begin(), ranks_.end()) : squared() - 1;
      for (int i = 0; i < count; ++i) distances_[i] = float(ranks_[i] - nearest_);
      return;
    }
    products_.resize(count);
    const Planes digits = {c.digits.coarse, g_->precision == Precision::kFour ? nullptr : c.digits.fine,
                           c.digits.width};
    g_->tier.dots({digits, fresh, count, digits_.data(), encoded_.sum, products_.data()});
    const float factor = float(encoded_.scale);
    const bool with_half = squared();
    for (int i = 0; i < count; ++i) {
      const float score = factor * c.scale[fresh[i]] * float(products_[i]);
      distances_[i] = with_half ? c.half[fresh[i]] - score : -score;
    }
  }

  // Puts the rows that are new into the beam.
  void collect() {
    const int32_t* const fresh = met_.from(measured_);
    const int count = met_.count() - measured_;
    measured_ = met_.count();
    measure(fresh, count);
    for (int begin = 0; begin < count; begin += Beam::kAtOnce) {
      const int end = std::min(begin + Beam::kAtOnce, count);
      const uint64_t limit = beam_.limit();
      uint64_t entries[Beam::kAtOnce];
      int near = 0;
      for (int i = begin; i < end; ++i) {
        entries[near] = Beam::entry(distances_[i], fresh[i]);
        near += entries[near] < limit;
      }
      for (int i = 0; i < near; ++i) {
        const int32_t row = Beam::row_of(entries[i]);
        fetch(g_->links.neighbours + int64_t(row) * g_->links.slots, g_->links.slots * int(sizeof(int32_t)));
      }
      beam_.insert(entries, near);
    }
  }

  // Leaves the rows of the beam that may be among the k nearest. Digits leave open at most half a step of a feature,
  // and all of them half a step where they are near 0, so that of a score q . z they leave a deviation of at most |q|
  // step / 2 for a row's digits, and |z| step / 2 for a query's.
  void keep_near() {
    const ExactSearch& s = g_->search;
    const Codes& c = s.codes;
    const bool told = encoded_.decided && g_->links.decided && g_->precision != Precision::kRows;
    const bool whole = !told || s.allowed || s.allowed_keys;
    const int certain = whole ? beam_.size() : int(std::min<int64_t>(s.k, beam_.size()));
    rows_.clear();
    for (int i = 0; i < certain; ++i) rows_.push_back(beam_.row(i));
    if (certain == beam_.size()) return;
    const int32_t last = rows_.back();
    const float half_step = kDeviations / std::sqrt(2.0f) / 2;  // of a difference of two scores, by both scales
    const float of_rows = half_step * (g_->precision == Precision::kFour ? 16 : 1) * float(encoded_.norm);
    const float limit =
        beam_.distance(certain - 1) + of_rows * c.scale[last] + 2 * half_step * float(encoded_.scale) * c.norm[last];
    for (int i = certain; i < beam_.size(); ++i) {
      const int32_t row = beam_.row(i);
      if (beam_.distance(i) <= limit + of_rows * c.scale[row]) rows_.push_back(row);
    }
  }

  // Fetches what bounds the scores of these rows.
  bool prepare_bounds() {
    const Codes& c = g_->search.codes;
    ending_ = kBounding;
    keep_near();
    for (const int32_t row : rows_) {
      fetch(c.digits.fine + int64_t(row) * c.digits.width, c.digits.width);
      fetch(c.norm + row);
      fetch(c.residual + row);
      if (g_->links.copies) fetch(g_->links.copies + row);
      if (g_->search.allowed_keys && g_->search.keys) fetch(g_->search.keys + row);
    }
    return true;
  }

  // Leaves rows that may be among the nearest, and fetches them.
  bool bound() {
    const ExactSearch& s = g_->search;
    ending_ = kRanking;
    products_.resize(rows_.size());
    g_->tier.dots({s.codes.digits, rows_.data(), int(rows_.size()), digits_.data(), encoded_.sum, products_.data()});
    bounded_.clear();
    for (size_t i = 0; i < rows_.size(); ++i) {
      Bounded bounded = bound_score(s.codes, encoded_, rows_[i], products_[i]);
      for (int32_t r = rows_[i]; r >= 0; r = g_->links.copies ? g_->links.copies[r] : -1) {
        bounded.row = r;
        if (s.allows(r)) bounded_.push_back(bounded);
      }
    }
    const Ranker rank_of = ranker();
    list_.offer(bounded_.data(), int64_t(bounded_.size()), rank_of);
    list_.fetch(rank_of);
    return true;
  }

  const GraphSearch* g_;
  int64_t query_;
  Query encoded_;
  Met met_;
  int measured_;  // so many of those met
  Beam beam_;
  Ending ending_;
  Shortlist list_;
  std::vector<Bounded> bounded_;
  std::vector<int32_t> rows_, products_;
  std::vector<int8_t> digits_;
  std::vector<float> distances_, scratch_;
  std::vector<double> ranks_;
  double nearest_;  // a rank that few fall below
};

}  // namespace

std::vector<std::vector<Neighbour>> graph_search(const ExactSearch& s, const Links& links, int expansion,
                                                 Precision precision) {
  const DefaultArithmetic arithmetic;
  const GraphSearch g = {s, links, current_tier(), expansion, precision};
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
      results[walks[w]->query()] = walks[w]->results();
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
