// Screen blocks of rows against groups of queries, and keep a shortlist for each query.
#include "exact_search.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "screen.h"
#include "threads.h"

namespace mmfast {
namespace {

constexpr int kBlockRows = 192;  // a multiple of the rows of every kernel; with its digits in the second-level cache
constexpr int kCopy = 5;         // what copying a row costs, in products with a query
constexpr int64_t kGroupPanels = 16;     // of queries, screened against a block while it is in the cache
constexpr double kSerialWork = 1 << 20;  // products: fewer are done before a second thread is awake
constexpr double kUnit = 0x1p-24, kInfinite = std::numeric_limits<double>::infinity();

// Some rows in memory order: a part of all, or copies of those allowed.
struct Block {
  Codes codes;
  const int32_t* ids;   // null: first, first + 1, ...
  const bool* allowed;  // null: all
  int64_t first;
  int count;
  int64_t row(int i) const { return ids ? ids[i] : first + i; }
};

// Copies rows together, in room of its own, where few of them are allowed.
class BlockReader {
 public:
  BlockReader(const ExactSearch& search, int64_t begin, int64_t end, int queries)
      : search_(search), copied_(search.codes), next_(begin), end_(end), queries_(queries) {
    if (!search.allowed) return;
    for (auto& plane : planes_) plane.resize(size_t(kBlockRows) * search.codes.digits.width + kQueryAlign);
    for (auto& term : terms_) term.resize(kBlockRows);
    ids_.resize(kBlockRows);
    copied_.digits.coarse = planes_[0].data();
    copied_.digits.fine = planes_[1].data();
    copied_.scale = terms_[0].data();
    copied_.half = terms_[1].data();
    copied_.norm = terms_[2].data();
    copied_.residual = terms_[3].data();
    copied_.coarse_residual = terms_[4].data();
  }

  bool read(Block& block) {
    const bool* const allowed = search_.allowed;
    if (allowed) skip();
    const int span = int(std::min<int64_t>(kBlockRows, end_ - next_));
    if (!allowed || std::count(allowed + next_, allowed + next_ + span, true) * (queries_ + kCopy) >= span * queries_) {
      block = {search_.codes.from(next_), nullptr, allowed ? allowed + next_ : nullptr, next_, span};
      next_ += span;
      return span > 0;
    }
    int count = 0;
    for (; next_ < end_ && count < kBlockRows; ++next_, skip()) copy(next_, count++);
    block = {copied_, ids_.data(), nullptr, 0, count};
    return count > 0;
  }

 private:
  // To the next row that is allowed.
  void skip() {
    for (uint64_t eight; next_ + 8 <= end_; next_ += 8) {
      std::memcpy(&eight, search_.allowed + next_, 8);
      if (eight) break;
    }
    while (next_ < end_ && !search_.allowed[next_]) ++next_;
  }

  void copy(int64_t row, int to) {
    const Codes c = search_.codes.from(row);
    const int width = c.digits.width;
    std::copy_n(c.digits.coarse, width, planes_[0].data() + int64_t(to) * width);
    std::copy_n(c.digits.fine, width, planes_[1].data() + int64_t(to) * width);
    const float terms[] = {*c.scale, *c.half, *c.norm, *c.residual, *c.coarse_residual};
    for (int t = 0; t < 5; ++t) terms_[t][to] = terms[t];
    ids_[to] = int32_t(row);
  }

  const ExactSearch& search_;
  Codes copied_;
  int64_t next_, end_;
  int64_t queries_;
  std::vector<uint8_t> planes_[2];
  std::vector<float> terms_[5];
  std::vector<int32_t> ids_;
};

// Some queries against some rows.
class Group {
 public:
  Group(const ExactSearch& search, const Tier& tier, int64_t begin, int64_t end, bool packed)
      : search_(search), tier_(tier), begin_(begin), count_(int(end - begin)), packed_(packed) {
    const Codes& codes = search.codes;
    depth_ = codes.depth();
    padded_ = 2 * query_part(codes.digits.width);
    digits_.resize(size_t(count_) * padded_);
    for (int j = 0; j < count_; ++j) {
      const float* const query = row(j);
      const int qmax = packed ? tier.query_qmax : 127;
      queries_.push_back(encode_query(tier, codes, search.metric, query, qmax, digits_.data() + size_t(j) * padded_));
      lists_.emplace_back(search.k, to_rank(search.metric, search.radius), least_score(j));
      inverse_.push_back(float(1 / queries_[j].scale));
      if (!queries_[j].decided) continue;
      largest_norm_ = std::max(largest_norm_, queries_[j].norm);
      largest_error_ = std::max(largest_error_, queries_[j].residual / queries_[j].norm);
    }
    if (packed) pack();
    hits_.resize(size_t(kPanel) * kBlockRows);
    products_.resize(size_t(packed ? kPanel : 1) * kBlockRows);
    precise_.resize(kBlockRows);
    bounded_.resize(kBlockRows);
    scratch_.resize(codes.features);
  }

  void run(int64_t begin, int64_t end) {
    BlockReader reader(search_, begin, end, count_);
    Block block;
    while (reader.read(block)) packed_ ? screen(block) : scan(block);
  }

  // What the rows of the next query that are waiting need is on its way while those of this one are ranked.
  const std::vector<Neighbour>& finish(int j) {
    if (j + 1 < count_) lists_[j + 1].fetch(ranker(j + 1));
    return lists_[j].finish(ranker(j));
  }

 private:
  const float* row(int j) const { return search_.queries + (begin_ + j) * search_.codes.features; }

  // What a row within the radius scores at least, but for rounding; with cos, 1 - r <= q . x / |q| and so on.
  double least_score(int j) const {
    if (search_.radius == kInfinite) return -kInfinite;
    const Codes& c = search_.codes;
    double shift = 0, least, size;
    if (search_.metric == Metric::kL2sq) {
      double squares = 0;
      for (int k = 0; k < c.features; ++k) {
        const double z = (double(row(j)[k]) - c.centre[k]) * c.unit;
        squares += z * z;
      }
      least = (squares - search_.radius * c.unit * c.unit) / 2;
      size = squares + std::abs(search_.radius) * c.unit * c.unit;
    } else {
      for (int k = 0; k < c.features; ++k) shift += double(row(j)[k]) * c.centre[k];
      const double length = queries_[j].length > 0 ? queries_[j].length : 1;
      const double wanted = search_.metric == Metric::kCos ? 1 - search_.radius : (1 - search_.radius) / length;
      least = (wanted - shift / length) * c.unit;
      size = (1 + std::abs(wanted) + std::abs(shift / length)) * c.unit;
      for (int k = 0; k < c.features; ++k) size += std::abs(double(c.centre[k])) * c.unit;
    }
    return least - size * 0x1p-30;
  }

  void pack() {
    const int panels = (count_ + kPanel - 1) / kPanel;
    panels_.resize(size_t(panels) * kPanel * depth_);
    inverse_.resize(panels * kPanel, 1.0f);
    thresholds_.assign(panels * kPanel, std::numeric_limits<float>::infinity());
    std::vector<int8_t> rows(size_t(kPanel) * depth_);
    for (int p = 0; p < panels; ++p) {
      const int count = std::min(kPanel, count_ - p * kPanel);
      for (int c = 0; c < count; ++c) {
        const int8_t* const query = digits_.data() + size_t(p * kPanel + c) * padded_;
        int8_t* const to = rows.data() + size_t(c) * depth_;
        std::copy_n(query, depth_ / 2, to);
        std::copy_n(query + padded_ / 2, depth_ / 2, to + depth_ / 2);
      }
      pack_panel(rows.data(), count, depth_, panels_.data() + size_t(p) * kPanel * depth_);
    }
    starts_.resize(panels * kPanel);
    for (int j = 0; j < count_; ++j) {
      thresholds_[j] = threshold(j);
      starts_[j] = -tier_.row_offset() * queries_[j].sum;
    }
    unpacked_.resize(size_t(kBlockRows) * depth_ + kQueryAlign);
    // Digits of one query again, as precise as can be, for the rows that pass.
    for (int j = 0; j < count_ && tier_.query_qmax < 127; ++j)
      queries_[j] =
          encode_query(tier_, search_.codes, search_.metric, row(j), 127, digits_.data() + size_t(j) * padded_);
  }

  // t / s' of (1), less its rounding.
  float threshold(int j) const {
    const double t = lists_[j].threshold();
    if (!queries_[j].decided) return -std::numeric_limits<float>::infinity();
    return float((t - 32 * kUnit * std::abs(t)) * inverse_[j]);
  }

  void screen(const Block& block) {
    const Codes& codes = block.codes;
    tier_.unpack(codes.digits, block.count, unpacked_.data());
    RowBound bounds[kBlockRows];
    for (int i = 0; i < block.count; ++i) {
      const double n = codes.norm[i], e = codes.residual[i], h = codes.half[i];
      const double slack = largest_norm_ * (n * largest_error_ + e);
      const double rounding = 32 * kUnit * (h + slack + largest_norm_ * n);
      bounds[i] = {codes.scale[i], float(h - slack - rounding), 0};
    }
    uint64_t masks[kBlockRows];
    for (int begin = 0; begin < count_; begin += kPanel) {
      const int count = std::min(kPanel, count_ - begin);
      tier_.screen({unpacked_.data(), bounds, block.count, panels_.data() + size_t(begin) * depth_,
                    starts_.data() + begin, inverse_.data() + begin, thresholds_.data() + begin, nullptr, depth_, count,
                    masks, nullptr, products_.data()});
      int hit_counts[kPanel] = {};
      uint64_t hit = 0;
      for (int i = 0; i < block.count; ++i) {
        if (!masks[i] || (block.allowed && !block.allowed[i])) continue;
        hit |= masks[i];
        for (uint64_t word = masks[i]; word; word &= word - 1) {
          const int c = __builtin_ctzll(word);
          hits_[c * kBlockRows + hit_counts[c]++] = i;
        }
      }
      for (; hit; hit &= hit - 1) {
        const int c = __builtin_ctzll(hit);
        offer(block, begin + c, hits_.data() + c * kBlockRows, hit_counts[c], products_.data() + c, kPanel);
        thresholds_[begin + c] = threshold(begin + c);
      }
    }
  }

  void scan(const Block& block) {
    uint64_t masks[kBlockRows / kPanel];
    for (int j = 0; j < count_; ++j) {
      const Query& q = queries_[j];
      const double inverse = inverse_[j];
      const auto weight = [&](double bound) { return float(bound * inverse * (1 + 32 * kUnit)); };
      const Codes& c = block.codes;
      tier_.scan({c.digits, c.scale, c.half, c.norm, c.residual, c.coarse_residual, block.count,
                  digits_.data() + size_t(j) * padded_, q.sum, threshold(j), float(inverse * (1 - 32 * kUnit)),
                  weight(q.residual + 32 * kUnit * q.norm), weight(q.norm), weight(q.norm + q.residual), masks,
                  products_.data()});
      int count = 0;
      for (int w = 0; w * kPanel < block.count; ++w)
        for (uint64_t word = masks[w]; word; word &= word - 1) {
          const int i = w * kPanel + __builtin_ctzll(word);
          if (!block.allowed || block.allowed[i]) hits_[count++] = i;
        }
      if (count) offer(block, j, hits_.data(), count, products_.data(), 1);
    }
  }

  // Bounds the scores of rows of the block that passed, row i by the product at i * stride.
  void offer(const Block& block, int j, const int32_t* hits, int count, const int32_t* products, int stride) {
    const Query& q = queries_[j];
    const bool precise = !packed_ || tier_.query_qmax == 127;
    if (!precise)
      tier_.dots({block.codes.digits, hits, count, digits_.data() + size_t(j) * padded_, q.sum, precise_.data()});
    for (int n = 0; n < count; ++n)
      bounded_[n] =
          bound_score(search_.codes, q, block.row(hits[n]), precise ? products[hits[n] * stride] : precise_[n]);
    lists_[j].offer(bounded_.data(), count, ranker(j));
  }

  Ranker ranker(int j) { return {search_, tier_, row(j), queries_[j].length, scratch_.data()}; }

  const ExactSearch& search_;
  const Tier& tier_;
  int64_t begin_;
  int count_, depth_, padded_;
  bool packed_;
  double largest_norm_ = 0, largest_error_ = 0;
  std::vector<Query> queries_;
  std::vector<Shortlist> lists_;
  std::vector<int8_t> digits_;  // (count, 2, padded / 2)
  std::vector<uint8_t> unpacked_;
  std::vector<int8_t> panels_;
  std::vector<int32_t> starts_;    // by column of the panels
  std::vector<float> inverse_;     // 1 / s', by query, or by column of the panels
  std::vector<float> thresholds_;  // by column of the panels
  std::vector<int32_t> hits_, products_, precise_;
  std::vector<Bounded> bounded_;
  std::vector<float> scratch_;
};

}  // namespace

Neighbour Ranker::operator()(int64_t row) const {
  const float* const x = search.vectors.row(row, scratch);
  return {rank_row(tier, search.metric, query, norm, x, search.codes.features), search.keys ? search.keys[row] : row};
}

std::vector<std::vector<Neighbour>> exact_search(const ExactSearch& s) {
  const DefaultArithmetic arithmetic;
  const Tier& tier = current_tier();
  std::vector<std::vector<Neighbour>> results(s.query_count);
  if (!s.query_count || !s.codes.rows) return results;
  const bool packed = s.query_count > tier.few_queries;
  const double work = double(s.query_count) * double(s.codes.rows) * s.codes.depth();
  const int threads = work < kSerialWork ? 1 : s.threads;
  // Many queries are shared out among the threads; for few, each thread has a part of the rows.
  const int64_t panels = (s.query_count + kPanel - 1) / kPanel;
  const bool by_rows = panels < 4 * threads;
  const int64_t per_group = kPanel * (by_rows ? kGroupPanels : std::clamp<int64_t>(panels / threads, 1, kGroupPanels));
  const int64_t groups = (s.query_count + per_group - 1) / per_group;
  const int64_t per_part = by_rows ? (s.codes.rows / threads + kPanel) / kPanel * kPanel : s.codes.rows;
  const int64_t parts = (s.codes.rows + per_part - 1) / per_part;

  std::vector<std::vector<std::vector<Neighbour>>> found(parts);
  for (auto& part : found) part.resize(s.query_count);
  share_out(threads, groups * parts, [&](int64_t task) {
    const int64_t first = task / parts * per_group, last = std::min(first + per_group, s.query_count);
    const int64_t part = task % parts;
    Group group(s, tier, first, last, packed);
    group.run(part * per_part, std::min((part + 1) * per_part, s.codes.rows));
    for (int64_t j = first; j < last; ++j) found[part][j] = group.finish(int(j - first));
  });
  for (int64_t j = 0; j < s.query_count; ++j) {
    std::vector<Neighbour>& all = results[j];
    all = std::move(found[0][j]);
    for (int64_t part = 1; part < parts; ++part) all.insert(all.end(), found[part][j].begin(), found[part][j].end());
    if (parts > 1) std::sort(all.begin(), all.end());
    if (int64_t(all.size()) > s.k) all.resize(s.k);
  }
  return results;
}

}  // namespace mmfast
