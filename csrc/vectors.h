// Rows to be searched: as they were given, and their 8-bit image.
//
// Searching ranks a row x for a query q by a score, larger is nearer, in a frame that suits the rows, z = unit (x - c):
//     cos, ip:  S = q . z,              since q . c is the same for all rows (cos: x has been scaled to unit length)
//     l2sq:     S = q . z - |z|^2 / 2,  since |q - z|^2 = |q|^2 - 2 S (q in the frame as well)
// The image of a row is z = s u + r with u of 8-bit integers and |r| <= e, as in screen.h. Its upper 4 bits by
// themselves are an image as well, z = s u4 + r4 with |r4| <= e4, in half of the memory: few rows need to be looked at
// twice. Both are the same for every tier, so that a file may hold them.
#pragma once

#include <cstdint>
#include <vector>

#include "tier.h"

namespace mmfast {

enum class Metric { kCos, kIp, kL2sq };
enum class Scalar { kF32, kF16, kBf16, kI8 };

// Rows as they were given: finite, and of a length whose square is a float.
struct Vectors {
  const void* data;  // (rows, features) contiguous
  Scalar scalar;
  int64_t rows;
  int features;

  // The row as floats: in place, or written to scratch, (features,).
  const float* row(int64_t i, float* scratch) const;
  void fetch(int64_t i) const;  // into the cache
};

// The 8-bit image of rows; where e is infinite the digits say nothing.
struct Codes {
  Planes digits;                 // of (rows,)
  const float* scale;            // (rows,) s; these five are readable up to the next multiple of 64 and 64 more
  const float* half;             // |z|^2 / 2, or zeros where the metric has none
  const float* norm;             // |s u| + e
  const float* residual;         // e
  const float* coarse_residual;  // e4
  const float* centre;           // (features,) c
  double unit;                   // a power of two
  int64_t rows;
  int features;
  int depth() const { return 2 * digits.width; }
  Codes from(int64_t row) const;  // the rows from there on
};

// Where to write an image.
struct NewCodes {
  uint8_t *coarse, *fine;
  float *scale, *half, *norm, *residual, *coarse_residual;
};

// Bytes that a row takes in each plane of digits: whole cache lines where that costs little.
int code_width(int features);

// The frame from a sample of the rows.
void choose_frame(const Vectors& vectors, Metric metric, float* centre, double* unit);

// The image in the frame of a centre and a unit.
void encode(const Vectors& vectors, Metric metric, const float* centre, double unit, const NewCodes& out, int threads);

// A query in the frame of the rows. Under cos and ip it is scaled to unit length.
struct Query {
  double scale, norm, residual;  // s, |q| and e, of the digits
  double rounding;               // of two ranks in float64, as scores: beyond it they are certainly not equal
  int32_t sum;                   // of the digits
  double length;                 // as it was given; not computed under l2sq
  bool decided;                  // false: the digits say nothing
};

// Writes the digits, (2, query_part(width)), with magnitudes up to qmax.
Query encode_query(const Tier& tier, const Codes& codes, Metric metric, const float* query, int qmax, int8_t* digits);

// What rows are ranked by, in float64: -cos, -q . x or |q - x|^2. Under cos and ip the distance is 1 more, which would
// round away the difference of two small products.
double rank_row(const Tier& tier, Metric metric, const float* query, double query_norm, const float* row, int features);

// The distance that belongs to a rank, and the other way round.
double to_distance(Metric metric, double rank);
double to_rank(Metric metric, double distance);

}  // namespace mmfast
