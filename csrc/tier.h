// The table of instruction-set tiers: what each one provides, and which one this process uses.
//
// A tier is one file in tiers/: its vector primitives, and the bodies written once in tiers/body.h compiled for it.
// All tiers return the same bits: the screen only decides which pairs are *looked at*, and what is looked at is
// computed with the same lanes and without fused multiply-add everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mmfast {

constexpr int kPanel = 64;  // columns of one packed panel = bits of one mask word

// What the screen knows of one row; the names are those of the proof in screen.h.
struct RowBound {
  float v;     // 2 s
  float a, b;  // for inactive and for active pairs
};

// Rows against one panel: masks[r] bit c = 0 only if row r and column c are certainly not closer than the margin;
// active[r] bit c = 1 only if they certainly are.
struct Screening {
  const uint8_t* rows;     // (row_count, depth), depth a multiple of 8: the digits plus offset
  const RowBound* bounds;  // (row_count,)
  int row_count;
  const int8_t* panel;           // (depth / 4, kPanel, 4)
  const int32_t* start;          // (kPanel,) -offset * sum(q): undoes the rows' offset
  const float* inverse;          // (kPanel,) 1 / s
  const float* weighted;         // (kPanel,) a / s
  const float* active_weighted;  // (kPanel,) b / s
  int depth;
  int columns;        // of the panel that are looked at, the first; the others' bits are 0
  uint64_t* masks;    // (row_count,)
  uint64_t* active;   // (row_count,); may be null
  int32_t* products;  // (row_count, kPanel), written where a mask's bit is 1; may be null
};

// Rows of 8-bit digits in two planes of (., width) bytes: of each digit plus 128, `coarse` has the upper 4 bits and
// `fine` the lower. Digit k is in the lower half of byte k, digit width + k in its upper half. Both are readable for 63
// bytes more.
struct Planes {
  const uint8_t *coarse, *fine;
  int width;  // a multiple of 8
};
// A query's digits meet a byte's halves in two parts, each of so many bytes, with zeros behind the first `width`.
constexpr int kQueryAlign = 64;
constexpr int query_part(int width) { return (width + kQueryAlign - 1) / kQueryAlign * kQueryAlign; }

// One query's digits against rows, by memory order or by number. Without a fine plane a row's digits are taken to be in
// the middle of what the coarse one leaves open, at -120, -104, ... 120.
struct Dots {
  Planes rows;
  const int32_t* ids;  // (count,); null: rows 0 to count - 1
  int count;
  const int8_t* query;  // (2, query_part(width))
  int32_t query_sum;    // of its digits
  int32_t* out;         // (count,)
};

// One query against rows in memory order: masks[i / 64] bit i % 64 = 0 only if, for the product u_i of digits,
// half_i half_weight + threshold - norm_i norm_weight - residual_i residual_weight >= scale_i u_i, or the same with the
// coarse digits, residual and weight (exact_search.h).
struct Scan {
  Planes rows;
  const float *scale, *half, *norm, *residual, *coarse_residual;  // (count,), readable up to the next multiple of 64
  int count;
  const int8_t* query;
  int32_t query_sum;
  float threshold, half_weight, norm_weight, residual_weight, coarse_weight;
  uint64_t* masks;    // (ceil(count / 64),)
  int32_t* products;  // (ceil(count / 64) * 64,), of all digits where a mask's bit is 1
};

struct QuantisedRow {
  double scale;         // s
  double residual;      // >= the norm of z - s q
  int64_t sum_squares;  // sum of q^2
  int32_t sum;          // sum of q
  double largest;       // of |z|, by feature
  double norm;          // of z
};

// The a and b of the proof for a row with |s q|^2 = n and residual norm e; what is infinite proves nothing. Static, so
// that no tier's code is shared with another's.
struct Limits {
  double inactive, active;
};
static constexpr Limits kNoLimits = {-__builtin_inf(), __builtin_inf()};
static inline Limits limits(double n, double e, double margin) {
  const double u = 0x1p-24, reach = 2 * __builtin_sqrt(margin) * e, t = margin / 2 + reach + 2 * e * e;
  const double a = n - t - 16 * u * (n + t) - 1e-30;
  const double b = n - margin / 2 + reach + 16 * u * (n + margin / 2 + reach) + 1e-30;
  if (!(__builtin_fabs(a) < 1e30)) return kNoLimits;  // written so that NaN is caught too
  return {a, __builtin_fabs(b) < 1e25 ? b : kNoLimits.active};
}

// One anchor row and the candidates that the screen left for it. Sums are double: a million differences of one sign
// would cost a float32 sum half its digits.
template <class T>
struct Candidates {
  const T* anchor;            // (D,)
  const T* const* others;     // (count,) rows of D
  double* anchor_sum;         // (D,) += sum of (anchor - other) over the active candidates; may be null
  double* const* other_sums;  // (count,) rows of D, -= the same differences; may be null
  int count;                  // at most kBlock
  int features;               // D
  double margin;
};

// A tile of up to kBlock anchors against as many others, with one bit for each pair: bit c of masks[p * kBlock + r] is
// that of anchor r and other p * kPanel + c. A unit is a panel of its anchors against a panel of its others.
constexpr int kBlock = 512;
constexpr int kBlockPanels = kBlock / kPanel;
constexpr int kMaskWords = kBlockPanels * kBlock;
constexpr int kComparedFeatures = 128;  // at a time
constexpr int kSummedFeatures = 16;     // at a time

// A tile's units with many candidates, screened again with digits of 16 bits.
struct Comparison {
  const float* const* anchors;  // (anchor_count,) rows of D
  const float* const* others;   // (other_count,) rows of D
  int anchor_count, other_count;
  int features;               // D
  const float* anchor_steps;  // (anchor_count,) s of the proof; 0: the row is not to be decided
  const float* other_steps;   // (other_count,)
  const float* centre;        // (D,)
  float unit;
  double margin;         // in that unit
  const uint8_t* units;  // (kBlockPanels,) by panel of others: bit a is that of anchor panel a
  uint64_t* inactive;    // (kMaskWords,) certainly not closer than the margin; written for these units
  uint64_t* active;      // (kMaskWords,) certainly closer
  int32_t* scratch;      // (kComparisonScratch,)
};
constexpr int kComparisonScratch = kBlock * kComparedFeatures + kBlock * kBlock;

// A tile of which some units hold many active pairs.
struct DenseTile {
  const float* const* anchors;  // (anchor_count,) rows of D
  const float* const* others;   // (other_count,) rows of D
  double* const* anchor_sums;   // (anchor_count,) rows of D, += sum of (anchor - other) over the active pairs
  double* const* other_sums;    // (other_count,) rows of D, += sum of (other - anchor); each may be null
  const uint64_t* active;       // (kMaskWords,) no bits but those of these units
  int anchor_count, other_count;
  int features;  // D
  double margin;
  double* scratch;  // (kDenseScratch,)
};
constexpr int kLongestList = 64;  // of partners that are added one by one
constexpr int kDenseScratch = 6 * kBlock * kSummedFeatures + kBlock * kLongestList / 2;

struct DenseResult {
  double squares;  // sum of d^2 over the active pairs
  double spread;   // the largest squared distance of a summed row from the first anchor: the scale of its rounding
};

// A row of the gradient from what the positives and the negatives leave for it (classes.h).
template <class T>
struct GradientRow {
  const T *row, *origin;  // (D,); origin null: no positives
  const double* mean;     // (D,) of row - origin
  const double* sums;     // (D,) of active negative differences; null: none
  double positive, negative;
  int features;  // D
  T* gradient;   // (D,)
};

// Of two rows: x . y and y . y.
struct Products {
  double across, own;
};

// What a tier does with rows of float or of double.
template <class T>
struct RowKernels {
  QuantisedRow (*quantise)(const T* x, const T* centre, int features, T unit, int qmax, int8_t* q);

  // The sum of max(0, margin - d^2) over the candidates; active is increased by the number with d^2 < margin.
  double (*evaluate)(const Candidates<T>&, int64_t* active);

  // The positives: the mean's part and the loss's part of a row, and the gradient's row.
  void (*add_deviation)(const T* row, const T* origin, int features, double* mean);
  double (*squared_deviation)(const T* row, const T* origin, const double* mean, int features);
  void (*combine)(const GradientRow<T>&);

  // In double, differences and products first.
  double (*dot)(const T* x, const T* y, int features);
  Products (*products)(const T* x, const T* y, int features);
  double (*squared_distance)(const T* x, const T* y, int features);
};

struct Tier {
  const char* name;
  bool (*available)();
  int qmax;    // digits lie in [-qmax, qmax]
  int offset;  // added to the digits of rows, the unsigned operand; 0 where the hardware multiplies signed by signed

  void (*screen)(const Screening&);
  int64_t (*count_ones)(const uint64_t* words, int64_t count);

  // Search: rows have digits of 8 bits in every tier, since a file may hold them, and an offset of 128, unless it is 0;
  // those of a query that is packed lie in [-query_qmax, query_qmax].
  int query_qmax;
  int few_queries;  // measured: up to so many are faster one by one than packed
  int row_offset() const { return offset ? 128 : 0; }
  void (*unpack)(const Planes&, int count, uint8_t* out);  // rows (count, 2 width), and writes up to 63 bytes more
  void (*dots)(const Dots&);
  void (*scan)(const Scan&);
  void (*widen_bf16)(const uint16_t* from, int count, float* to);
  void (*widen_f16)(const uint16_t* from, int count, float* to);

  RowKernels<float> f32;
  RowKernels<double> f64;

  // For units with many candidates: what 16-bit digits can decide; d^2 < margin in float64; the sums from the exact
  // mask.
  void (*compare)(const Comparison&);
  bool (*is_active)(const float* x, const float* y, int features, double margin);
  DenseResult (*accumulate)(const DenseTile&);
};

inline const RowKernels<float>& kernels(const Tier& tier, const float*) { return tier.f32; }
inline const RowKernels<double>& kernels(const Tier& tier, const double*) { return tier.f64; }

extern const Tier* const kTiers[];  // fastest first, ended by null
const Tier& current_tier();
std::vector<std::string> available_tiers();
void select_tier(const std::string& name);  // throws std::invalid_argument

}  // namespace mmfast
