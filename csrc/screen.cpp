// Quantise both sides into the form the screen's proof (screen.h) speaks of.
#include "screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mmfast {
namespace {

constexpr int64_t kCentreSample = 512;  // rows averaged for the centre: any centre is right, this one is cheap
constexpr double kLargest = 0x1p500;    // rows beyond this would overflow when squared; they are not screened

template <class T>
void add_sample(const Rows<T>& x, std::vector<double>& sum, int64_t& count) {
  const int64_t step = std::max<int64_t>(1, x.size() / kCentreSample);
  for (int64_t i = 0; i < x.size(); i += step, ++count) {
    const T* row = x.row(i);
    for (int k = 0; k < x.features; ++k) sum[k] += double(row[k]) * 0x1p-12;  // 2^-12: the sum cannot overflow
  }
}

// The largest |x - centre|, leaving out what is too large to screen; NaN if any value is not finite.
template <class T>
double largest_magnitude(const Rows<T>& x, const std::vector<double>& centre, int threads) {
  double largest = 0;
  bool finite = true;
#pragma omp parallel for num_threads(threads) reduction(max : largest) reduction(&& : finite)
  for (int64_t i = 0; i < x.size(); ++i) {
    const T* row = x.row(i);
    double row_largest = 0;
    T zero = 0;
    for (int k = 0; k < x.features; ++k) {
      zero += row[k] * T(0);  // 0 for finite values, NaN otherwise
      const double magnitude = std::abs(double(row[k]) - centre[k]);
      row_largest = magnitude > row_largest ? magnitude : row_largest;
    }
    finite = finite && zero == T(0);
    if (row_largest < kLargest && row_largest > largest) largest = row_largest;
  }
  return finite ? largest : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

template <class T>
Frame common_frame(const Rows<T>& x, const Rows<T>* y, int threads) {
  Frame frame;
  frame.centre.assign(x.features, 0.0);
  int64_t count = 0;
  add_sample(x, frame.centre, count);
  if (y) add_sample(*y, frame.centre, count);
  for (double& c : frame.centre) c = c / double(std::max<int64_t>(count, 1)) * 0x1p12;

  // A centre that is not finite says that a sampled value is not.
  double largest = largest_magnitude(x, frame.centre, threads);
  if (y) {
    const double other = largest_magnitude(*y, frame.centre, threads);
    largest = std::isnan(other) || other > largest ? other : largest;
  }
  frame.finite = !std::isnan(largest);
  if (frame.finite && largest > 0) frame.unit = std::ldexp(1.0, -std::ilogb(largest));
  return frame;
}

template <class T>
Quantised quantise_rows(const Rows<T>& x, const Frame& frame, double margin, const Tier& tier, bool as_anchors,
                        bool as_others, int threads) {
  Quantised out;
  const int features = x.features, depth = (features + 7) / 8 * 8;
  const int64_t panels = (x.size() + kPanel - 1) / kPanel;
  out.depth = depth;
  if (as_anchors) {
    out.rows.resize(x.size() * depth);
    out.bounds.resize(x.size());
  }
  if (as_others) {
    out.panels.assign(panels * kPanel * depth, uint8_t(tier.offset));
    out.inverse.assign(panels * kPanel, 1.0f);
    out.weighted.assign(panels * kPanel, 0.0f);
  }
  const double scaled_margin = margin * frame.unit * frame.unit, root = std::sqrt(scaled_margin);
  std::vector<int8_t> scratch(size_t(threads) * depth * kPanel);

#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    int8_t* const mine = scratch.data() + size_t(omp_get_thread_num()) * depth * kPanel;
#else
    int8_t* const mine = scratch.data();
#endif
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t begin = panel * kPanel, end = std::min<int64_t>(begin + kPanel, x.size());
      for (int64_t i = begin; i < end; ++i) {
        int8_t* const q = as_anchors ? out.rows.data() + i * depth : mine + (i - begin) * depth;
        std::memset(q + features, 0, depth - features);
        const T* row = x.row(i);
        QuantisedRow r;
        if constexpr (sizeof(T) == 4)
          r = tier.quantise_f32(row, frame.centre.data(), features, frame.unit, tier.qmax, q);
        else
          r = tier.quantise_f64(row, frame.centre.data(), features, frame.unit, tier.qmax, q);

        const double n = r.scale * r.scale * double(r.sum_squares), e = r.residual;
        const double t = scaled_margin / 2 + 2 * root * e + 2 * e * e;
        double a = n - t - 16 * 0x1p-24 * (n + t) - 1e-30;
        // Written so that NaN fails it too: such a row is looked at in every pair.
        const bool screenable = std::abs(a) < 1e30 && r.scale < 0x1p40 && features <= kMaxScreenedFeatures;
        if (!screenable) {
          std::memset(q, 0, depth);
          r.sum = 0;
          r.scale = 1;
          a = -std::numeric_limits<double>::infinity();
        }
        if (as_anchors) out.bounds[i] = {float(2 * r.scale), float(a), -tier.offset * r.sum};
        if (as_others) {
          out.inverse[i] = float(1 / r.scale);
          out.weighted[i] = float(a / r.scale);
        }
      }
      if (!as_others) continue;
      uint8_t* const packed = out.panels.data() + panel * kPanel * depth;
      const int8_t* const digits = as_anchors ? out.rows.data() + begin * depth : mine;
      for (int64_t c = 0; c < end - begin; ++c)
        for (int k = 0; k < depth; k += 4) {
          uint8_t* const four = packed + (int64_t(k / 4) * kPanel + c) * 4;
          for (int b = 0; b < 4; ++b) four[b] = uint8_t(digits[c * depth + k + b] + tier.offset);
        }
    }
  }
  return out;
}

template Frame common_frame(const Rows<float>&, const Rows<float>*, int);
template Frame common_frame(const Rows<double>&, const Rows<double>*, int);
template Quantised quantise_rows(const Rows<float>&, const Frame&, double, const Tier&, bool, bool, int);
template Quantised quantise_rows(const Rows<double>&, const Frame&, double, const Tier&, bool, bool, int);

}  // namespace mmfast
