// Turn rows and queries into digits whose distance from what they stand for is known.
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "frame.h"
#include "threads.h"

namespace mmfast {
namespace {

constexpr int64_t kFrameSample = 128;
constexpr float kInfinite = std::numeric_limits<float>::infinity();
constexpr double kLargestHalf = 1e30;      // beyond, a row's score in float32 would not be finite
constexpr double kFarthestQuery = 0x1p60;  // times the rows' own size: beyond, |z|^2 / 2 is lost beside q . z
constexpr double kRounded = 0x1p-23;       // of a row that was scaled to unit length, twice over

// The row, under cos scaled to unit length.
const float* framed_row(const Tier& tier, const Vectors& vectors, Metric metric, int64_t i, float* scratch) {
  const float* const row = vectors.row(i, scratch);
  if (metric != Metric::kCos) return row;
  const double norm = std::sqrt(tier.f32.dot(row, row, vectors.features)), inverse = norm > 0 ? 1 / norm : 0;
  for (int k = 0; k < vectors.features; ++k) scratch[k] = float(row[k] * inverse);
  return scratch;
}

}  // namespace

const float* Vectors::row(int64_t i, float* scratch) const {
  const int64_t begin = i * features;
  if (scalar == Scalar::kF32) return static_cast<const float*>(data) + begin;
  if (scalar == Scalar::kI8) {
    const int8_t* const from = static_cast<const int8_t*>(data) + begin;
    for (int k = 0; k < features; ++k) scratch[k] = from[k];
    return scratch;
  }
  const uint16_t* const from = static_cast<const uint16_t*>(data) + begin;
  const Tier& tier = current_tier();
  (scalar == Scalar::kBf16 ? tier.widen_bf16 : tier.widen_f16)(from, features, scratch);
  return scratch;
}

void Vectors::fetch(int64_t i) const {
  const int64_t size = int64_t(features) * (scalar == Scalar::kF32 ? 4 : scalar == Scalar::kI8 ? 1 : 2);
  const char* const begin = static_cast<const char*>(data) + i * size;
  for (int64_t at = 0; at < size; at += 64) __builtin_prefetch(begin + at);
}

int code_depth(int features) {
  const int lines = (features + 63) / 64 * 64;
  return lines - features <= features / 16 ? lines : (features + 7) / 8 * 8;
}

void choose_frame(const Vectors& vectors, Metric metric, float* centre, double* unit) {
  const DefaultArithmetic arithmetic;
  const Tier& tier = current_tier();
  const int features = vectors.features;
  const int64_t step = std::max<int64_t>(1, vectors.rows / kFrameSample);
  std::vector<float> sample, scratch(features);
  Rows<float> rows = {nullptr, {}, features};
  for (int64_t i = 0; i < vectors.rows; i += step) {
    const float* const row = framed_row(tier, vectors, metric, i, scratch.data());
    sample.insert(sample.end(), row, row + features);
    rows.order.push_back(int32_t(rows.order.size()));
  }
  rows.data = sample.data();
  const Frame frame = common_frame(rows, static_cast<const Rows<float>*>(nullptr), 1);
  std::copy(frame.centre_f32.begin(), frame.centre_f32.end(), centre);
  *unit = frame.unit;
}

void encode(const Vectors& vectors, Metric metric, const float* centre, double unit, int8_t* digits, float* scale,
            float* half, float* residual, float* norm, int threads) {
  const Tier& tier = current_tier();
  const int features = vectors.features, depth = code_depth(features);
  std::vector<float> scratch(size_t(threads) * features);
  on_threads(threads, [&] {
    float* const mine = scratch.data() + size_t(thread_number()) * features;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < vectors.rows; ++i) {
      int8_t* const out = digits + i * depth;
      const float* const row = framed_row(tier, vectors, metric, i, mine);
      const QuantisedRow q = tier.f32.quantise(row, centre, features, float(unit), 127, out);
      std::fill(out + features, out + depth, int8_t(0));
      scale[i] = float(q.scale);
      residual[i] = float((q.residual + (metric == Metric::kCos ? kRounded * unit : 0)) * (1 + kRounded));
      norm[i] = float(q.scale * std::sqrt(double(q.sum_squares)));
      half[i] = 0;
      if (metric == Metric::kL2sq) {
        double squares = 0;
        for (int k = 0; k < features; ++k) {
          const double z = (double(row[k]) - centre[k]) * unit;
          squares += z * z;
        }
        half[i] = float(squares / 2);
      }
      if (features > 0 && residual[i] < kLargestHalf && norm[i] < kLargestHalf && half[i] < kLargestHalf &&
          scale[i] < kLargestHalf)
        continue;
      std::fill(out, out + depth, int8_t(0));
      scale[i] = 1;
      half[i] = norm[i] = 0;
      residual[i] = kInfinite;
    }
  });
}

Query encode_query(const Tier& tier, const Codes& codes, Metric metric, const float* query, int qmax, int8_t* digits) {
  const int features = codes.features;
  const bool framed = metric == Metric::kL2sq;
  std::vector<float> zero(framed ? 0 : features);
  const float* const centre = framed ? codes.centre : zero.data();
  double largest = 0;
  for (int k = 0; k < features; ++k) largest = std::max(largest, std::abs(double(query[k]) - centre[k]));
  const double unit = largest > 0 ? std::ldexp(1.0, std::clamp(-std::ilogb(largest), -120, 80)) : 1.0;
  const QuantisedRow q = tier.f32.quantise(query, centre, features, float(unit), qmax, digits);
  std::fill(digits + features, digits + query_depth(codes.depth), int8_t(0));
  const double length = q.norm + 0x1p-38;  // not zero
  const double factor = framed ? codes.unit / unit : 1 / length;
  Query out = {q.scale * factor, length * factor, q.residual * factor, q.sum, true};
  out.decided = out.norm < kFarthestQuery && out.residual < kFarthestQuery && out.scale > 1e-30;
  if (!out.decided) out = {1, 1, std::numeric_limits<double>::infinity(), q.sum, false};
  return out;
}

Bound bound_score(const Codes& codes, const Query& q, int64_t row, int32_t product) {
  constexpr double kWider = 64 * 0x1p-24;
  const double h = codes.half[row], norm = codes.norm[row], e = codes.residual[row];
  const double middle = q.scale * codes.scale[row] * product - h;
  const double reach = norm * (q.residual + kWider * q.norm) + e * q.norm * (1 + kWider) + kWider * h;
  if (reach < std::numeric_limits<double>::infinity()) return {middle - reach, middle + reach};
  return {-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
}

double rank_row(const Tier& tier, Metric metric, const float* query, double query_norm, const float* row,
                int features) {
  if (metric == Metric::kL2sq) return tier.f32.squared_distance(query, row, features);
  const Products products = tier.f32.products(query, row, features);
  return -products.across / (metric == Metric::kIp ? 1 : std::sqrt(products.own) * query_norm);
}

double to_distance(Metric metric, double rank) {
  if (metric == Metric::kL2sq) return rank;
  return metric == Metric::kIp ? 1 + rank : std::clamp(1 + rank, 0.0, 2.0);
}

double to_rank(Metric metric, double distance) { return metric == Metric::kL2sq ? distance : distance - 1; }

}  // namespace mmfast
