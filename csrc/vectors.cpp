// Turn rows and queries into digits whose distance from what they stand for is known.
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "fetch.h"
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

// What a digit is taken for by its upper 4 bits.
int middle_of_coarse(int8_t digit) { return ((digit + 128) & 0xf0) - 120; }

// Digits (2 width,) as a row of each plane.
void pack_planes(const int8_t* digits, int width, uint8_t* coarse, uint8_t* fine) {
  for (int k = 0; k < width; ++k) {
    const int near = digits[k] + 128, far = digits[width + k] + 128;
    coarse[k] = uint8_t(near >> 4 | (far & 0xf0));
    fine[k] = uint8_t((near & 0x0f) | (far & 0x0f) << 4);
  }
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
  mmfast::fetch(static_cast<const char*>(data) + i * size, size);
}

Codes Codes::from(int64_t row) const {
  Codes rest = *this;
  for (const uint8_t** plane : {&rest.digits.coarse, &rest.digits.fine}) *plane += row * digits.width;
  for (const float** term : {&rest.scale, &rest.half, &rest.norm, &rest.residual, &rest.coarse_residual}) *term += row;
  rest.rows -= row;
  return rest;
}

int code_width(int features) {
  const int half = (features + 1) / 2, lines = (half + 63) / 64 * 64;
  return lines - half <= half / 16 ? lines : (half + 7) / 8 * 8;
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

void encode(const Vectors& vectors, Metric metric, const float* centre, double unit, const NewCodes& out, int threads) {
  const Tier& tier = current_tier();
  const int features = vectors.features, width = code_width(features);
  std::vector<float> rows(size_t(threads) * features);
  std::vector<int8_t> digits(size_t(threads) * 2 * width);
  on_threads(threads, [&] {
    float* const scratch = rows.data() + size_t(thread_number()) * features;
    int8_t* const u = digits.data() + size_t(thread_number()) * 2 * width;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < vectors.rows; ++i) {
      const float* const row = framed_row(tier, vectors, metric, i, scratch);
      const QuantisedRow q = tier.f32.quantise(row, centre, features, float(unit), 127, u);
      std::fill(u + features, u + 2 * width, int8_t(0));
      double squares = 0, coarse_squares = 0;  // of z, of r4
      for (int k = 0; k < features; ++k) {
        const double z = (double(row[k]) - centre[k]) * unit, rest = z - q.scale * middle_of_coarse(u[k]);
        squares += z * z;
        coarse_squares += rest * rest;
      }
      // Padding stands for 0, of which u4 is 8; it meets zeros of the query alone.
      const double rounded = metric == Metric::kCos ? kRounded * unit : 0, norm = std::sqrt(squares);
      out.scale[i] = float(q.scale);
      out.half[i] = metric == Metric::kL2sq ? float(squares / 2) : 0;
      out.residual[i] = float((q.residual + rounded) * (1 + kRounded));
      out.norm[i] = float((q.scale * std::sqrt(double(q.sum_squares)) + q.residual + rounded) * (1 + kRounded));
      out.coarse_residual[i] = float((std::sqrt(coarse_squares) + rounded + norm * kRounded) * (1 + kRounded));
      // Written so that NaN is caught too.
      if (!(features > 0 && out.residual[i] < kLargestHalf && out.norm[i] < kLargestHalf &&
            out.half[i] < kLargestHalf && out.scale[i] < kLargestHalf && out.coarse_residual[i] < kLargestHalf)) {
        std::fill(u, u + 2 * width, int8_t(0));
        out.scale[i] = 1;
        out.half[i] = out.norm[i] = 0;
        out.residual[i] = out.coarse_residual[i] = kInfinite;
      }
      pack_planes(u, width, out.coarse + i * width, out.fine + i * width);
    }
  });
}

Query encode_query(const Tier& tier, const Codes& codes, Metric metric, const float* query, int qmax, int8_t* digits) {
  const int features = codes.features;
  const bool framed = metric == Metric::kL2sq;
  static thread_local std::vector<float> zeros;
  if (int(zeros.size()) < features) zeros.resize(features);
  const float* const centre = framed ? codes.centre : zeros.data();
  const double size = std::sqrt(tier.f32.squared_distance(query, centre, features));
  const double unit = size > 0 ? std::ldexp(1.0, std::clamp(-std::ilogb(size), -120, 126)) : 1.0;  // is a float
  const QuantisedRow q = tier.f32.quantise(query, centre, features, float(unit), qmax, digits);
  const int width = codes.digits.width, part = query_part(width), upper = std::max(features - width, 0);
  std::memmove(digits + part, digits + width, upper);
  std::fill(digits + std::min(features, width), digits + part, int8_t(0));
  std::fill(digits + part + upper, digits + 2 * part, int8_t(0));
  // By its length, not by a bound of it: a radius asks for scores of a certain size.
  const double length = framed ? 0 : size, least = 0x1p-38;
  const double factor = framed ? codes.unit / unit : 1 / (length > 0 ? length * unit : least);
  Query out = {q.scale * factor, (q.norm + least) * factor, q.residual * factor, 0, q.sum, length, true};
  // Squares of D differences and their sum are off by D + 8 units of |q - z|^2 <= 2 |q|^2 + 2 |z|^2, of which a bound's
  // share of |z|^2 / 2 covers the latter; a score is half of a distance.
  if (framed) out.rounding = (features + 8) * 0x1p-52 * out.norm * out.norm;
  // Of q . x with x = c + z / unit a bound's share of |z| covers the latter part; under cos the residual covers both.
  if (metric == Metric::kIp)
    out.rounding =
        (features + 8) * 0x1p-52 * codes.unit * std::sqrt(tier.f32.dot(codes.centre, codes.centre, features));
  out.decided = out.norm < kFarthestQuery && out.residual < kFarthestQuery && out.scale > 1e-30;
  if (!out.decided) out = {1, 1, std::numeric_limits<double>::infinity(), 0, q.sum, length, false};
  return out;
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

double to_rank(Metric metric, double distance) {
  if (metric == Metric::kL2sq) return distance;
  if (metric == Metric::kCos && distance >= 2) return std::numeric_limits<double>::infinity();  // -cos is rounded too
  return distance - 1;
}

}  // namespace mmfast
