// Quantise rows into the form the screen's proof (screen.h) speaks of.
#include "screen.h"

#include <algorithm>
#include <cmath>
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
  return bounds(tier_.quantise_f32(row, frame_.centre.data(), features_, frame_.unit, tier_.qmax, digits), radius,
                digits);
}

Bounds Quantiser::quantise(const double* row, double radius, int8_t* digits) const {
  return bounds(tier_.quantise_f64(row, frame_.centre.data(), features_, frame_.unit, tier_.qmax, digits), radius,
                digits);
}

Bounds Quantiser::bounds(QuantisedRow r, double radius, int8_t* digits) const {
  std::fill(digits + features_, digits + depth_, int8_t(0));
  const double n = r.scale * r.scale * double(r.sum_squares), e = r.residual + radius * frame_.unit;
  const double t = margin_ / 2 + 2 * std::sqrt(margin_) * e + 2 * e * e;
  double a = n - t - 16 * 0x1p-24 * (n + t) - 1e-30;
  const double reach = 2 * std::sqrt(margin_) * e;
  double b = n - margin_ / 2 + reach + 16 * 0x1p-24 * (n + margin_ / 2 + reach) + 1e-30;
  // Written so that NaN fails it too: such a row is looked at in every pair.
  const bool screenable = screened_ && std::abs(a) < 1e30 && r.scale < 0x1p40;
  if (!screenable) {
    std::fill(digits, digits + depth_, int8_t(0));
    r.sum = 0;
    r.scale = 1;
    a = -std::numeric_limits<double>::infinity();
  }
  if (!screenable || !(std::abs(b) < 1e25)) b = std::numeric_limits<double>::infinity();
  const float v = float(2 * r.scale);
  const int32_t start = -tier_.offset * r.sum;
  return {{v, float(a), start}, {v, float(b), start}, float(1 / r.scale), float(a / r.scale), float(b / r.scale)};
}

void Quantiser::pack(const int8_t* digits, int64_t count, uint8_t* panel) const {
  for (int64_t c = 0; c < count; ++c)
    for (int k = 0; k < depth_; k += 4) {
      uint8_t* const four = panel + (int64_t(k / 4) * kPanel + c) * 4;
      for (int b = 0; b < 4; ++b) four[b] = uint8_t(digits[c * depth_ + k + b] + tier_.offset);
    }
}

void screen_panel(const Tier& tier, const Quantised& anchors, int64_t row, int count, const Quantised& others,
                  int64_t column, Limit limit, uint64_t* masks) {
  const bool active = limit == Limit::kActive;
  tier.screen(anchors.rows.data() + row * anchors.depth,
              (active ? anchors.active_bounds : anchors.bounds).data() + row, count,
              others.panels.data() + column * others.depth, others.inverse.data() + column,
              (active ? others.active_weighted : others.weighted).data() + column, others.depth, masks);
}

template <class T>
Quantised quantise_rows(const Rows<T>& x, const Quantiser& quantiser, const Tier& tier, bool as_anchors, bool as_others,
                        int threads) {
  Quantised out(quantiser.depth());
  if (as_anchors) out.make_rows(x.size());
  if (as_others) out.make_panels((x.size() + kPanel - 1) / kPanel, tier.offset);
  const int depth = out.depth;
  std::vector<int8_t> scratch(as_anchors ? 0 : size_t(threads) * depth * kPanel);

#pragma omp parallel num_threads(threads)
  {
    int8_t* const mine = as_anchors ? nullptr : scratch.data() + size_t(thread_number()) * depth * kPanel;
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < x.size(); begin += kPanel) {
      const int64_t count = std::min<int64_t>(kPanel, x.size() - begin);
      int8_t* const digits = as_anchors ? out.rows.data() + begin * depth : mine;
      for (int64_t r = 0; r < count; ++r) {
        const Bounds bounds = quantiser.quantise(x.row(begin + r), 0, digits + r * depth);
        if (as_anchors) out.bounds[begin + r] = bounds.anchor, out.active_bounds[begin + r] = bounds.active_anchor;
        if (!as_others) continue;
        out.inverse[begin + r] = bounds.inverse;
        out.weighted[begin + r] = bounds.weighted;
        out.active_weighted[begin + r] = bounds.active_weighted;
      }
      if (as_others) quantiser.pack(digits, count, out.panels.data() + begin * depth);
    }
  }
  return out;
}

template Quantised quantise_rows(const Rows<float>&, const Quantiser&, const Tier&, bool, bool, int);
template Quantised quantise_rows(const Rows<double>&, const Quantiser&, const Tier&, bool, bool, int);

}  // namespace mmfast
