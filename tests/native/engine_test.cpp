// The engine without Python: every tier of this machine against plain loops in double, for the sanitizers and for
// processors that are only emulated ("quick"). Buffers have exactly the size that they need.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "exact_search.h"
#include "frame.h"
#include "graph_search.h"
#include "pair_hinge.h"
#include "screen.h"
#include "tier.h"
#include "usearch_file.h"
#include "vectors.h"

using namespace mmfast;

namespace {

int failures = 0, checks = 0;

void check(bool holds, const std::string& what) {
  ++checks;
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

struct Random {
  std::mt19937_64 engine;
  double normal() { return std::normal_distribution<double>()(engine); }
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine); }
};

enum class Data { kGaussian, kOffset, kOutlier, kTiny, kHuge, kDuplicates, kHalves };
const Data kData[] = {Data::kGaussian, Data::kOffset,     Data::kOutlier, Data::kTiny,
                      Data::kHuge,     Data::kDuplicates, Data::kHalves};

// Rows of norm about `scale`.
template <class T>
std::vector<T> make_rows(Random& random, Data data, int64_t rows, int features, double* scale) {
  *scale = data == Data::kTiny ? 1e-18 : data == Data::kHuge ? 1e16 : 1;
  std::vector<T> x(rows * features);
  for (T& value : x) value = T(*scale * random.normal() / std::sqrt(double(features)));
  for (int64_t i = 0; i < rows; ++i)
    for (int k = 0; k < features; ++k) {
      T& value = x[i * features + k];
      if (data == Data::kOffset) value += T(1000);
      if (data == Data::kOutlier && (k == 0 || i == rows / 2)) value *= T(1e4);
      if (data == Data::kDuplicates && i % 3) value = x[(i - i % 3) * features + k];
      // Two directions whose 16-bit digits are off by all sorts of fractions, the same one in every feature.
      if (data == Data::kHalves) value = T((i & 1 ? 1 : -1) * *scale / std::sqrt(double(features)));
    }
  return x;
}

template <class T>
double squared_distance(const T* x, const T* y, int features) {
  double sum = 0;
  for (int k = 0; k < features; ++k) sum += (double(x[k]) - double(y[k])) * (double(x[k]) - double(y[k]));
  return sum;
}

void check_quantised(const QuantisedRow& row, const float* x, const Frame& frame, int features, const int8_t* digits,
                     int qmax) {
  double residual = 0;
  int64_t squares = 0, sum = 0;
  bool in_range = true;
  for (int k = 0; k < features; ++k) {
    const double rest = (double(x[k]) - frame.centre[k]) * frame.unit - row.scale * digits[k];
    residual += rest * rest;
    squares += digits[k] * digits[k];
    sum += digits[k];
    in_range = in_range && std::abs(int(digits[k])) <= qmax;
  }
  check(in_range && squares == row.sum_squares && sum == row.sum, "digits and their sums");
  check(std::sqrt(residual) <= row.residual, "a residual is at most its bound");
}

void test_screen(const Tier& tier, Random& random, Data data, int64_t count, int features) {
  double scale;
  const std::vector<float> x = make_rows<float>(random, data, count, features, &scale);
  Rows<float> rows = {x.data(), {}, features};
  for (int64_t i = 0; i < count; ++i) rows.order.push_back(int32_t(i));
  const Frame frame = common_frame(rows, static_cast<const Rows<float>*>(nullptr), 1);
  std::vector<int8_t> digits(features);
  for (int64_t i = 0; i < count; ++i)
    check_quantised(
        tier.f32.quantise(rows.row(i), frame.centre_f32.data(), features, float(frame.unit), tier.qmax, digits.data()),
        rows.row(i), frame, features, digits.data(), tier.qmax);
  for (double quantile : {0.01, 0.3, 0.9, 1.5}) {
    const double margin = 2 * scale * scale * quantile;
    const Quantiser quantiser(frame, margin, tier);
    const Quantised q = quantise_rows(rows, quantiser, true, true, 1);
    std::vector<uint64_t> masks(count), active(count);
    bool right = true;
    for (int64_t column = 0; column < count; column += kPanel) {
      screen_panel(tier, q, 0, int(count), q, column, masks.data(), active.data());
      for (int64_t i = 0; i < count; ++i)
        for (int64_t j = column; j < std::min(count, column + kPanel); ++j) {
          const bool closer = squared_distance(rows.row(i), rows.row(j), features) < margin;
          if (!(masks[i] >> (j - column) & 1)) right = right && !closer;
          if (active[i] >> (j - column) & 1) right = right && closer;
        }
    }
    check(right, "the screen's decisions");
  }
}

template <class T>
struct Result {
  double loss;
  std::vector<T> x_gradient, y_gradient;
  bool operator==(const Result& o) const {
    return loss == o.loss && x_gradient == o.x_gradient && y_gradient == o.y_gradient;
  }
};

template <class T>
struct Problem {
  std::vector<T> x, y;
  std::vector<int64_t> x_labels, y_labels;
  int features;
  double margin;
  bool cross;

  Result<T> engine(int threads) const {
    Result<T> result = {0, std::vector<T>(x.size()), std::vector<T>(y.size())};
    PairHinge<T> p = {};
    p.x = x.data(), p.x_labels = x_labels.data(), p.x_rows = int64_t(x_labels.size());
    p.x_gradient = result.x_gradient.data();
    p.cross = cross;
    if (cross) {
      p.y = y.data(), p.y_labels = y_labels.data(), p.y_rows = int64_t(y_labels.size());
      p.y_gradient = result.y_gradient.data();
    }
    p.features = features;
    p.margin = margin;
    p.ignore_index = -100;
    p.reduction = Reduction::kSum;
    p.threads = threads;
    result.loss = pair_hinge(p);
    return result;
  }

  // The double loop; `terms` is the sum of all magnitudes that a gradient is made of.
  Result<double> loops(double* terms) const {
    Result<double> result = {0, std::vector<double>(x.size()), std::vector<double>(y.size())};
    const std::vector<T>& other = cross ? y : x;
    const std::vector<int64_t>& other_labels = cross ? y_labels : x_labels;
    std::vector<double>& other_gradient = cross ? result.y_gradient : result.x_gradient;
    for (size_t i = 0; i < x_labels.size(); ++i)
      for (size_t j = 0; j < other_labels.size(); ++j) {
        if (x_labels[i] == -100 || other_labels[j] == -100) continue;
        const double d2 = squared_distance(x.data() + i * features, other.data() + j * features, features);
        const bool same = x_labels[i] == other_labels[j];
        if (!same && d2 >= margin) continue;
        result.loss += same ? d2 : margin - d2;
        for (int k = 0; k < features; ++k) {
          const double part = 2 * (double(x[i * features + k]) - double(other[j * features + k]));
          result.x_gradient[i * features + k] += same ? part : -part;
          other_gradient[j * features + k] -= same ? part : -part;
          *terms = std::max(*terms, std::abs(part));
        }
      }
    *terms *= double(x_labels.size() + other_labels.size());
    return result;
  }
};

template <class T>
bool close(const std::vector<T>& ours, const std::vector<double>& exact, double terms) {
  const double unit = sizeof(T) == 4 ? 0x1p-23 : 1e-13;
  for (size_t i = 0; i < ours.size(); ++i)
    if (!(std::abs(double(ours[i]) - exact[i]) <= unit * std::max(std::abs(exact[i]), terms) + 1e-300)) return false;
  return true;
}

template <class T>
void test_pair_hinge(Random& random, Data data, int64_t rows, int64_t other_rows, int features, double quantile) {
  Problem<T> problem;
  double scale;
  problem.features = features;
  problem.cross = other_rows > 0;
  problem.x = make_rows<T>(random, data, rows, features, &scale);
  problem.y = make_rows<T>(random, data, other_rows, features, &scale);
  for (int64_t i = 0; i < rows; ++i) problem.x_labels.push_back(random.below(20) ? random.below(9) : -100);
  for (int64_t i = 0; i < other_rows; ++i) problem.y_labels.push_back(random.below(20) ? random.below(9) : -100);
  problem.margin = 2 * scale * scale * quantile;
  if (data == Data::kHalves && rows > 1)
    problem.margin = squared_distance(problem.x.data(), problem.x.data() + features, features);
  double terms = 0;
  const Result<double> exact = problem.loops(&terms);
  std::vector<Result<T>> results;
  for (const std::string& tier : available_tiers()) {
    select_tier(tier);
    results.push_back(problem.engine(1));
    results.push_back(problem.engine(3));
    const std::string what = tier + ", " + std::to_string(rows) + " and " + std::to_string(other_rows) + " rows of " +
                             std::to_string(features) + ", data " + std::to_string(int(data));
    const Result<T>& ours = results.back();
    check(std::abs(ours.loss - exact.loss) <= 1e-6 * std::abs(exact.loss) + 1e-12 * scale * scale, "the loss: " + what);
    check(close(ours.x_gradient, exact.x_gradient, terms), "the gradient: " + what);
    check(close(ours.y_gradient, exact.y_gradient, terms), "the second gradient: " + what);
    check(ours == results.front() && results[results.size() - 2] == ours, "the same bits: " + what);
  }
}

// Both engines of search against all distances in double; the graph is complete, so that walks can find everything.
void test_search(Random& random, Data data, int64_t rows, int features, int64_t queries, int64_t k, Metric metric) {
  double scale;
  const std::vector<float> x = make_rows<float>(random, data, rows, features, &scale);
  const std::vector<float> q = make_rows<float>(random, data, queries, features, &scale);
  std::vector<float> centre(features);
  double unit = 1;
  const Vectors vectors = {x.data(), Scalar::kF32, rows, features};
  choose_frame(vectors, metric, centre.data(), &unit);
  const int width = code_width(features);
  const int64_t padded = (rows + 63) / 64 * 64 + 64;
  std::vector<uint8_t> coarse(rows * width + 64), fine(rows * width + 64);
  std::vector<float> terms(5 * padded);
  float* const t = terms.data();
  encode(vectors, metric, centre.data(), unit,
         {coarse.data(), fine.data(), t, t + padded, t + 2 * padded, t + 3 * padded, t + 4 * padded}, 2);
  const Codes codes = {{coarse.data(), fine.data(), width},
                       t,
                       t + padded,
                       t + 2 * padded,
                       t + 3 * padded,
                       t + 4 * padded,
                       centre.data(),
                       unit,
                       rows,
                       features};
  std::vector<int32_t> neighbours(rows * rows, -1), copies(rows, -1);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < rows - 1; ++j) neighbours[i * rows + j] = int32_t(j < i ? j : j + 1);
  const std::unique_ptr<bool[]> allowed(new bool[rows]);
  for (int64_t i = 0; i < rows; ++i) allowed[i] = i % 3 != 1;

  for (const std::string& tier : available_tiers()) {
    select_tier(tier);
    for (const bool* mask : {static_cast<const bool*>(nullptr), static_cast<const bool*>(allowed.get())}) {
      const ExactSearch search = {
          vectors, codes, metric, nullptr, mask, q.data(), queries, k, std::numeric_limits<double>::infinity(), 2};
      const auto exact = exact_search(search);
      const Links links = {neighbours.data(), copies.data(), nullptr, rows, 0, int(rows), 0, 1, true};
      const auto walk = [&](Precision precision) { return graph_search(search, links, int(rows), precision); };
      const auto by_four = walk(Precision::kFour), by_eight = walk(Precision::kEight), by_rows = walk(Precision::kRows);
      for (int64_t j = 0; j < queries; ++j) {
        std::vector<Neighbour> truth;
        for (int64_t i = 0; i < rows; ++i) {
          if (mask && !mask[i]) continue;
          const double norm = std::sqrt(current_tier().f32.dot(&q[j * features], &q[j * features], features));
          truth.push_back({rank_row(current_tier(), metric, &q[j * features], norm, &x[i * features], features), i});
        }
        std::sort(truth.begin(), truth.end());
        if (int64_t(truth.size()) > k) truth.resize(k);
        const auto same = [&](const std::vector<Neighbour>& found) {
          return std::equal(found.begin(), found.end(), truth.begin(), truth.end(),
                            [](const Neighbour& a, const Neighbour& b) { return a.key == b.key; });
        };
        check(same(exact[j]), "exact search: " + tier + ", " + std::to_string(features) + " features, data " +
                                  std::to_string(int(data)) + ", metric " + std::to_string(int(metric)));
        for (const auto* walked : {&by_four, &by_eight, &by_rows})
          check(same((*walked)[j]), "graph search: " + tier + ", " + std::to_string(features) + " features, data " +
                                        std::to_string(int(data)) + ", metric " + std::to_string(int(metric)) +
                                        (walked == &by_four    ? ", four"
                                         : walked == &by_eight ? ", eight"
                                                               : ", rows"));
      }
    }
  }
}

// Bytes that are no graph: an error, never a read beyond them.
void test_usearch_file(Random& random) {
  std::vector<uint8_t> bytes(8 + 64 + 40 + 2 + 14 + 4 * 4);
  bytes[0] = 1;  // one row of no bytes
  std::memcpy(bytes.data() + 8, "usearch", 7);
  bytes[15] = 2;
  bytes[72] = 1, bytes[80] = 2, bytes[88] = 4;
  check(read_usearch_graph(bytes.data(), bytes.size()).slots == 4, "a graph of one node");
  for (int i = 0; i < 3000; ++i) {
    std::vector<uint8_t> damaged(bytes.begin(), bytes.begin() + random.below(int64_t(bytes.size())));
    if (i % 2) damaged = bytes;
    for (int n = 0; n < 3 && !damaged.empty(); ++n)
      damaged[random.below(int64_t(damaged.size()))] = uint8_t(random.below(256));
    try {
      read_usearch_graph(damaged.data(), damaged.size());
    } catch (const std::invalid_argument&) {
    } catch (const std::bad_alloc&) {
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  const bool quick = count > 1 && std::string(arguments[1]) == "quick";
  setenv("MMFAST_CHECK_SCREEN", "1", 1);  // every decision of a bound is compared with float64
  Random random;
  for (const Tier* const* tier = kTiers; *tier; ++tier) {
    if (!(*tier)->available()) continue;
    std::printf("%s\n", (*tier)->name);
    for (Data data : kData)
      for (int features : {1, 7, 16, 33, 128, 300}) test_screen(**tier, random, data, 150, features);
  }
  for (Data data : kData)
    for (double quantile : {0.0, 0.3, 0.9, 1.05, 4.0}) {
      for (int features : {1, 2, 15, 64, 129, 300}) {
        if (quick && features % 2) continue;
        test_pair_hinge<float>(random, data, 133, 0, features, quantile);
        test_pair_hinge<float>(random, data, 70, 131, features, quantile);
      }
      test_pair_hinge<double>(random, data, 70, 0, 33, quantile);
      test_pair_hinge<double>(random, data, 5, 90, 17, quantile);
      test_pair_hinge<float>(random, data, 1, 0, 3, quantile);
      test_pair_hinge<float>(random, data, 1, 1, 3, quantile);
    }
  for (int features = 100; features < 400; features += quick ? 30 : 3)
    test_pair_hinge<float>(random, Data::kHalves, 128, 0, features, 1);
  for (Data data : kData)
    for (Metric metric : {Metric::kIp, Metric::kL2sq})
      for (int features : {1, 15, 64, 100, 300}) {
        test_search(random, data, 100, features, 3, 10, metric);
        if (!quick) test_search(random, data, 150, features, 20, 20, metric);
      }
  test_usearch_file(random);
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures != 0;
}
