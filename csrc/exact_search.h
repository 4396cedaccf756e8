// Exact nearest neighbours, at the speed of 8-bit products.
//
// With the images of vectors.h, a row z = s u + r and a query q = s' u' + r', of which |r| <= e and |r'| <= e', obey
//     |q . z - s s' (u . u')| <= |s u| e' + e |q|,
// where u . u' is an exact int32. So a row's score lies within B = |s u| e' + e |q| of M = s s' (u . u') - h, h the
// metric's |z|^2 / 2 or 0, and it certainly scores below a threshold t if M + B < t, that is, if
//     h / s' + t / s' - (|s u| e' + e |q|) / s' >= s (u . u').                                             (1)
// Many queries are packed into panels and screened by the kernel of the loss (tiers/screen.h); few go one by one
// through the rows (tiers/dots.h), at first through their coarse digits: with these, B is |s u4| e' + e4 |q|, of which
// |s u4| <= |z| + e4 <= |s u| + e + e4. Rows that pass are bounded by M - B and M + B from above and below, and those
// that can be among the k nearest are ranked in float64 by the rows as they were given (shortlist.h). Hence the answer
// is that of a search in float64 through all rows.
//
// Rounding. (1) is evaluated in float32, u = 2^-24: constants that are off by a factor within 1 +- 4u, at most four
// operations on a side, all of terms that are no larger than h, |t|, |s u| (e' + |q|) and e |q|, or of coarse digits
// (|s u| + e + e4) (e' + |q|): 32u times each of these is taken off the left side. B is widened by 64u of the same,
// which covers the constants' own rounding. Rows whose ranks in float64 could be equal, or in another order than their
// scores, must both be ranked: a lower bound is less by what two ranks may be off, where B does not cover that
// (Query::rounding).
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "shortlist.h"
#include "vectors.h"

namespace mmfast {

struct ExactSearch {
  Vectors vectors;  // as they were given
  Codes codes;      // their image
  Metric metric;
  const int64_t* keys;   // (rows,); null: their numbers
  const bool* allowed;   // (rows,); null: all
  const float* queries;  // (query_count, features) finite, under cos not zero
  int64_t query_count;
  int64_t k;      // at least 1
  double radius;  // infinite: any distance
  int threads;
  // For walks, which ask for few: which keys may be found; null: all. No key beyond the last one may.
  const bool* allowed_keys = nullptr;
  int64_t allowed_keys_count = 0;

  bool allows(int64_t row) const {
    if (allowed && !allowed[row]) return false;
    if (!allowed_keys) return true;
    const int64_t key = keys ? keys[row] : row;
    return key < allowed_keys_count && allowed_keys[key];
  }
};

// Between which the score of a row lies, by the product of its digits with the query's.
inline Bounded bound_score(const Codes& codes, const Query& q, int64_t row, int32_t product) {
  constexpr double kWider = 64 * 0x1p-24, kInfinite = std::numeric_limits<double>::infinity();
  const double h = codes.half[row], norm = codes.norm[row], e = codes.residual[row];
  const double middle = q.scale * codes.scale[row] * product - h;
  const double reach = norm * (q.residual + kWider * q.norm) + e * q.norm * (1 + kWider) + kWider * h;
  if (!(reach < kInfinite)) return {row, -kInfinite, kInfinite};
  return {row, middle - reach - q.rounding, middle + reach};
}

// What ranks the rows for one query.
struct Ranker {
  Neighbour operator()(int64_t row) const;
  void fetch(int64_t row) const { search.vectors.fetch(row); }

  const ExactSearch& search;
  const Tier& tier;
  const float* query;
  double norm;     // its length
  float* scratch;  // (features,)
};

// The k nearest rows of each query within the radius, in order.
std::vector<std::vector<Neighbour>> exact_search(const ExactSearch& search);

}  // namespace mmfast
