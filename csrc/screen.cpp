// Quantise rows into the form the screen's proof (screen.h) speaks of.
#include "screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.h"

namespace mmfast {

Quantiser::Quantiser(const Frame& frame, double margin, const Tier& tier)
    : frame_(frame),
      tier_(tier),
      screened_(frame.centre.size() <= size_t(kMaxScreenedFeatures) && margin >= kLeastScreenedMargin),
      features_(screened_ ? int(frame.centre.size()) : 0),
      depth_((features_ + 7) / 8 * 8),
      margin_(margin * frame.unit * frame.unit) {}

Bounds Quantiser::quantise(const float* row, double radius, int8_t* digits) const {
  return bounds(tier_.f32.quantise(row, frame_.centre_f32.data(), features_, float(frame_.unit), tier_.qmax, digits),
                radius, digits);
}

Bounds Quantiser::quantise(const double* row, double radius, int8_t* digits) const {
  return bounds(tier_.f64.quantise(row, frame_.centre.data(), features_, frame_.unit, tier_.qmax, digits), radius,
                digits);
}

Bounds Quantiser::bounds(QuantisedRow r, double radius, int8_t* digits) const {
  std::fill(digits + features_, digits + depth_, int8_t(0));
  Limits l = kNoLimits;
  if (screened_ && r.scale < 0x1p40)
    l = limits(r.scale * r.scale * double(r.sum_squares), r.residual + radius * frame_.unit, margin_);
  float step = 0;
  if (l.inactive > kNoLimits.inactive) {
    step = float(std::max({r.norm / (46300 - 0.53 * std::sqrt(double(features_))), r.largest / 32700, 0x1p-40}));
  } else {
    std::fill(digits, digits + depth_, int8_t(0));
    r.sum = 0;
    r.scale = 1;
  }
  return {{float(2 * r.scale), float(l.inactive), float(l.active)},
          -tier_.offset * r.sum,
          float(1 / r.scale),
          float(l.inactive / r.scale),
          float(l.active / r.scale),
          step};
}

void pack_panel(const int8_t* digits, int64_t count, int depth, int8_t* panel) {
  if (count < kPanel) std::fill_n(panel, int64_t(depth) * kPanel, int8_t(0));
  for (int k = 0; k < depth; k += 4)
    for (int64_t c = 0; c < count; ++c) std::memcpy(panel + (int64_t(k) * kPanel + c * 4), digits + c * depth + k, 4);
}

void Quantiser::add_offset(int8_t* digits, int64_t count) const {
  for (int64_t i = 0; i < count * depth_; ++i) digits[i] = int8_t(digits[i] + tier_.offset);
}

void screen_panel(const Tier& tier, const Quantised& anchors, int64_t row, int count, const Quantised& others,
                  int64_t column, uint64_t* masks, uint64_t* active) {
  const auto rows = reinterpret_cast<const uint8_t*>(anchors.rows.data());
  tier.screen({rows + row * anchors.depth, anchors.bounds.data() + row, count,
               others.panels.data() + column * others.depth, others.starts.data() + column,
               others.inverse.data() + column, others.weighted.data() + column, others.active_weighted.data() + column,
               others.depth, kPanel, masks, active, nullptr});
}

template <class T>
Quantised quantise_rows(const Rows<T>& x, const Quantiser& quantiser, bool as_anchors, bool as_others, int threads) {
  Quantised out(quantiser.depth());
  if (as_anchors) out.make_rows(x.size());
  if (as_others) out.make_panels((x.size() + kPanel - 1) / kPanel);
  const int depth = out.depth;
  std::vector<int8_t> scratch(as_anchors ? 0 : size_t(threads) * depth * kPanel);

  on_threads(threads, [&] {
    int8_t* const mine = as_anchors ? nullptr : scratch.data() + size_t(thread_number()) * depth * kPanel;
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < x.size(); begin += kPanel) {
      const int64_t count = std::min<int64_t>(kPanel, x.size() - begin);
      int8_t* const digits = as_anchors ? out.rows.data() + begin * depth : mine;
      for (int64_t r = 0; r < count; ++r) {
        const Bounds bounds = quantiser.quantise(x.row(begin + r), 0, digits + r * depth);
        out.steps[begin + r] = bounds.step;
        if (as_anchors) out.bounds[begin + r] = bounds.anchor;
        if (!as_others) continue;
        out.starts[begin + r] = bounds.start;
        out.inverse[begin + r] = bounds.inverse;
        out.weighted[begin + r] = bounds.weighted;
        out.active_weighted[begin + r] = bounds.active_weighted;
      }
      if (as_others) pack_panel(digits, count, depth, out.panels.data() + begin * depth);
      if (as_anchors) quantiser.add_offset(digits, count);
    }
  });
  return out;
}

template Quantised quantise_rows(const Rows<float>&, const Quantiser&, bool, bool, int);
template Quantised quantise_rows(const Rows<double>&, const Quantiser&, bool, bool, int);

}  // namespace mmfast
