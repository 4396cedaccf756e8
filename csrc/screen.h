// The screen: which pairs can be closer than the margin at all, decided by 8-bit integer products, without loss.
//
// Distances do not change under translation or, together with the margin, under scaling. Let z_i = unit (x_i - c)
// for any centre c and any power of two `unit`, and m the margin times unit^2. A row is written as
//     z_i = s_i q_i + r_i,   q_i integers of 8 bits,   |r_i| <= e_i,
// with e_i computed from the row itself. By the triangle inequality the distance d_ij of z_i and z_j obeys
//     d_ij >= D_ij - (e_i + e_j),   D_ij^2 = n_i + n_j - 2 s_i s_j (q_i . q_j),   n_i = s_i^2 |q_i|^2,
// where q_i . q_j is an exact int32. So the pair is certainly inactive (d_ij^2 >= m) if
//     D_ij^2 >= (sqrt(m) + e_i + e_j)^2.                                                                   (1)
// Since (e_i + e_j)^2 <= 2 e_i^2 + 2 e_j^2, (1) follows from a condition that separates into a row's and a
// column's share: with t_i = m/2 + 2 sqrt(m) e_i + 2 e_i^2 and a_i = n_i - t_i,
//     a_i + a_j >= 2 s_i s_j (q_i . q_j),   that is,   a_i (1/s_j) + (a_j/s_j) >= v_i (q_i . q_j),  v_i = 2 s_i.   (2)
//
// Rounding. (2) is evaluated in float32 with u = 2^-24. Its constants are rounded once each, the left side takes at
// most two operations more and the right side two: conversion of the integer and the product. Multiplied by s_j
// the error is at most 4u (|a_i| + |a_j|) + 4u |v_i s_j q_i . q_j|, and by Cauchy-Schwarz and the inequality of
// means |2 s_i s_j q_i . q_j| <= n_i + n_j, while |a_i| <= n_i + t_i. Hence 16u (n_i + t_i), taken off each a_i, covers
// it with 6u to spare; 1e-30 more covers underflow, as s_j < 2^40. What is left of the slack puts d at sqrt(m) (1 + 5u)
// or more, so that float64 arithmetic on the inputs, off by D 2^-53, calls the pair inactive as well; where squares
// underflow it would not, so margins below kLeastScreenedMargin are not screened. Where a side of (2) overflows to
// infinity, 16u n alone exceeds whatever the other side can hold. NaN makes (2) false: the pair is then looked at.
// The screen can therefore only ever keep too much.
//
// Digits of 16 bits (tiers/compare.h) take the same test, with a bound of e that holds for all rows.
//
// The same kernel proves pairs active. d_ij <= D_ij + e_i + e_j, so d_ij^2 < m if D_ij^2 <= (sqrt(m) - e_i - e_j)^2 and
// e_i + e_j <= sqrt(m). Both follow from D_ij^2 <= m - 2 sqrt(m) (e_i + e_j), as D_ij^2 is not negative. With
// t_i = m/2 - 2 sqrt(m) e_i and b_i = n_i - t_i the condition is (2) turned round, b_i + b_j < 2 s_i s_j (q_i . q_j),
// and its rounding is covered by 16u (n_i + m/2 + 2 sqrt(m) e_i) and 1e-30, now added to each b_i. A row of which |b_i|
// is not below 1e25 has an infinite b_i instead, which proves nothing; all else stays finite, so that there is no NaN.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "frame.h"
#include "tier.h"

namespace mmfast {

// Integer sums stay below 2^31 up to this many features; beyond it every pair is looked at.
constexpr int kMaxScreenedFeatures = 65536;
constexpr double kLeastScreenedMargin = 1e-290;

// Leaves new elements as they are: whoever fills them does so in parallel.
template <class T>
struct Uninitialised : std::allocator<T> {
  using std::allocator<T>::allocator;
  template <class U>
  struct rebind {
    using other = Uninitialised<U>;
  };
  template <class U>
  void construct(U* element) {
    ::new (static_cast<void*>(element)) U;
  }
};

// The 8-bit image of one side: row-major for the anchors, packed in panels of 64 for the others.
struct Quantised {
  explicit Quantised(int depth) : depth(depth) {}
  void make_rows(int64_t size) {
    rows.resize(size * depth);
    bounds.resize(size);
    steps.resize(size);
  }
  void make_panels(int64_t count) {
    steps.resize(count * kPanel);
    starts.assign(count * kPanel, 0);
    panels.resize(count * kPanel * depth);
    inverse.assign(count * kPanel, 1.0f);
    weighted.assign(count * kPanel, 0.0f);
    active_weighted.assign(count * kPanel, 0.0f);
  }

  int depth;  // features, rounded up to a multiple of 8; 0: every pair is looked at
  std::vector<int8_t, Uninitialised<int8_t>> rows;    // (size, depth), with the tier's offset unsigned
  std::vector<RowBound> bounds;                       // (size,)
  std::vector<int8_t, Uninitialised<int8_t>> panels;  // (ceil(size / 64), depth / 4, 64, 4)
  std::vector<int32_t> starts;                        // (ceil(size / 64) * 64,) -offset * sum of digits
  std::vector<float> inverse;                         // (ceil(size / 64) * 64,) 1 / s
  std::vector<float> weighted;                        // (ceil(size / 64) * 64,) a / s
  std::vector<float> active_weighted;                 // as weighted, b / s
  std::vector<float> steps;                           // s of digits of 16 bits; 0: the row is not to be decided
};

// What the comparison needs of one row, as an anchor and as another.
struct Bounds {
  RowBound anchor;
  int32_t start;
  float inverse, weighted, active_weighted;
  float step;  // of digits of 16 bits
};

// Packs the digits of up to kPanel rows, (count, depth), into a panel, and zeros wherever there is no row.
void pack_panel(const int8_t* digits, int64_t count, int depth, int8_t* panel);

// Turns rows into digits and bounds.
class Quantiser {
 public:
  Quantiser(const Frame& frame, double margin, const Tier& tier);

  int depth() const { return depth_; }

  // Writes the digits of a row, (depth,). With a radius the row stands for a ball, in the unit of the input: by the
  // triangle inequality the proof above holds for all rows in it once the radius is added to e.
  Bounds quantise(const float* row, double radius, int8_t* digits) const;
  Bounds quantise(const double* row, double radius, int8_t* digits) const;

  // Makes rows of digits of panels' digits.
  void add_offset(int8_t* digits, int64_t count) const;

 private:
  Bounds bounds(QuantisedRow row, double radius, int8_t* digits) const;

  const Frame& frame_;
  const Tier& tier_;
  bool screened_;
  int features_, depth_;
  double margin_;  // in the frame's unit
};

// Screens the anchors from `row` on with the panel of others that begins at `column`.
void screen_panel(const Tier& tier, const Quantised& anchors, int64_t row, int count, const Quantised& others,
                  int64_t column, uint64_t* masks, uint64_t* active = nullptr);

template <class T>
Quantised quantise_rows(const Rows<T>& x, const Quantiser& quantiser, bool as_anchors, bool as_others, int threads);

}  // namespace mmfast
