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
  float v;        // 2 s
  float a;        // n - t - slack
  int32_t start;  // -offset * sum(q): undoes the unsigned operand's offset
};

struct QuantisedRow {
  double scale;         // s
  double residual;      // >= the norm of z - s q
  int64_t sum_squares;  // sum of q^2
  int32_t sum;          // sum of q
};

// One anchor row and the candidates that the screen left for it. Sums are double: a million differences of one sign
// would cost a float32 sum half its digits.
template <class T>
struct Candidates {
  const T* anchor;           // (D,)
  const T* const* others;    // (count,) rows of D
  double* anchor_sum;        // (D,) += sum of (anchor - other) over the active candidates; may be null
  double* const* other_sums; // (count,) rows of D, -= the same differences; may be null
  int count;
  int features;              // D
  double margin;
};

// A tile of up to kBlock anchors against as many others, with one bit for each pair: bit c of masks[p * kBlock + r] is
// that of anchor r and other p * kPanel + c. A unit is a panel of its anchors against a panel of its others.
constexpr int kBlock = 512;
constexpr int kBlockPanels = kBlock / kPanel;
constexpr int kMaskWords = kBlockPanels * kBlock;
constexpr int kComparedFeatures = 128;  // at a time
constexpr int kSummedFeatures = 16;     // at a time

// A tile's units with many candidates, compared by products in float32.
struct Comparison {
  const float* const* anchors;   // (anchor_count,) rows of D
  const float* const* others;    // (other_count,) rows of D
  int anchor_count, other_count;
  int features;                  // D
  const double* centre;          // (D,)
  double unit, margin;           // as in the screen's proof
  const uint8_t* units;          // (kBlockPanels,) by panel of others: bit a is that of anchor panel a
  uint64_t* inactive;            // (kMaskWords,) certainly not closer than the margin; written for these units
  uint64_t* active;              // (kMaskWords,) certainly closer
  float* scratch;                // (kComparisonScratch,)
};
constexpr int kComparisonScratch = 2 * kBlock * kComparedFeatures + kBlock * kBlock;

// A tile of which some units hold many active pairs.
struct DenseTile {
  const float* const* anchors;   // (anchor_count,) rows of D
  const float* const* others;    // (other_count,) rows of D
  double* const* anchor_sums;    // (anchor_count,) rows of D, += sum of (anchor - other) over the active pairs
  double* const* other_sums;     // (other_count,) rows of D, += sum of (other - anchor); each may be null
  const uint64_t* active;        // (kMaskWords,) no bits but those of these units
  int anchor_count, other_count;
  int features;                  // D
  double* scratch;               // (kDenseScratch,)
};
constexpr int kDenseScratch = 4 * kBlock * kSummedFeatures;

struct DenseResult {
  double squares;  // sum of d^2 over the active pairs
  double spread;   // the largest squared distance of a summed row from the first anchor: the scale of its rounding
};

struct Tier {
  const char* name;
  bool (*available)();
  int qmax;    // digits lie in [-qmax, qmax]
  int offset;  // added to the packed (unsigned) operand; 0 where the hardware multiplies signed by signed

  // masks[r] bit c = 0 only if row r and column c are certainly not closer than the margin, or = 1 only if they
  // certainly are: by the bounds (screen.h).
  void (*screen)(const int8_t* rows,       // (row_count, depth), depth a multiple of 8
                 const RowBound* bounds,   // (row_count,)
                 int row_count,
                 const uint8_t* panel,     // (depth / 4, kPanel, 4): the digits plus offset
                 const float* inverse,     // (kPanel,) 1 / s
                 const float* weighted,    // (kPanel,) a / s
                 int depth,
                 uint64_t* masks);         // (row_count,)

  QuantisedRow (*quantise_f32)(const float* x, const double* centre, int features, double unit, int qmax, int8_t* q);
  QuantisedRow (*quantise_f64)(const double* x, const double* centre, int features, double unit, int qmax, int8_t* q);

  // The sum of max(0, margin - d^2) over the candidates; active is increased by the number with d^2 < margin.
  double (*evaluate_f32)(const Candidates<float>&, int64_t* active);
  double (*evaluate_f64)(const Candidates<double>&, int64_t* active);

  // For units with many candidates: what float32 can decide; d^2 < margin in float64; the sums from the exact mask.
  void (*compare)(const Comparison&);
  bool (*is_active)(const float* x, const float* y, int features, double margin);
  DenseResult (*accumulate)(const DenseTile&);
};

extern const Tier* const kTiers[];  // fastest first, ended by null
const Tier& current_tier();
std::vector<std::string> available_tiers();
void select_tier(const std::string& name);  // throws std::invalid_argument

}  // namespace mmfast
