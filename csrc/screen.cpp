// Quantise both sides into the form the screen's proof (screen.h) speaks of.
#include "screen.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mmfast {
namespace {

constexpr int64_t kSample = 512;     // rows of a side that the frame is made from
constexpr double kOutlier = 8;       // times the median deviation: rows beyond take no part in the centre
constexpr int kCentreRounds = 4;     // an outlier hides smaller ones from the first round

// Tells by the exponent's bits, since the compiler makes vectors of integer logic.
template <class T>
bool all_finite(const Rows<T>& x, int threads) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const Bits exponent = sizeof(T) == 4 ? Bits(0x7f800000) : Bits(0x7ff0000000000000);
  bool finite = true;
#pragma omp parallel for num_threads(threads) reduction(&& : finite)
  for (int64_t i = 0; i < x.size(); ++i) {
    const T* row = x.row(i);
    Bits unusual = 0;
    for (int k = 0; k < x.features; ++k) {
      Bits bits;
      std::memcpy(&bits, row + k, sizeof bits);
      unusual |= Bits((bits & exponent) == exponent);
    }
    finite = finite && !unusual;
  }
  return finite;
}

template <class T>
void add_sample(const Rows<T>& x, std::vector<const T*>& sample) {
  const int64_t step = std::max<int64_t>(1, x.size() / kSample);
  for (int64_t i = 0; i < x.size(); i += step) sample.push_back(x.row(i));
}

template <class T>
void average(const std::vector<const T*>& rows, std::vector<double>& centre) {
  std::fill(centre.begin(), centre.end(), 0.0);
  const double share = 0x1p-12;  // the sum cannot overflow
  for (const T* row : rows)
    for (size_t k = 0; k < centre.size(); ++k) centre[k] += double(row[k]) * share;
  for (double& c : centre) c = c / double(rows.size()) / share;
}

template <class T>
double largest_deviation(const T* row, const std::vector<double>& centre) {
  double largest = 0;
  for (size_t k = 0; k < centre.size(); ++k) largest = std::max(largest, std::abs(double(row[k]) - centre[k]));
  return largest;
}

}  // namespace

template <class T>
Frame common_frame(const Rows<T>& x, const Rows<T>* y, int threads) {
  Frame frame;
  frame.centre.assign(x.features, 0.0);
  frame.finite = all_finite(x, threads) && (!y || all_finite(*y, threads));
  std::vector<const T*> sample;
  add_sample(x, sample);
  if (y) add_sample(*y, sample);
  if (!frame.finite || sample.empty()) return frame;

  // The mean of the sample, then without the rows far from it, so that a few outliers do not cost the others the screen.
  std::vector<double> deviations;
  double median = 0;
  for (int round = 0; round < kCentreRounds; ++round) {
    average(sample, frame.centre);
    deviations.clear();
    for (const T* row : sample) deviations.push_back(largest_deviation(row, frame.centre));
    std::vector<double> ordered = deviations;
    std::nth_element(ordered.begin(), ordered.begin() + ordered.size() / 2, ordered.end());
    median = ordered[ordered.size() / 2];
    size_t kept = 0;
    for (size_t i = 0; i < sample.size(); ++i)
      if (deviations[i] <= kOutlier * median) sample[kept++] = sample[i];
    if (kept == sample.size() || kept == 0) break;
    sample.resize(kept);
  }
  if (median > 0) frame.unit = std::ldexp(1.0, std::clamp(-std::ilogb(median), -1000, 1000));
  return frame;
}

template <class T>
Quantised quantise_rows(const Rows<T>& x, const Frame& frame, double margin, const Tier& tier, bool as_anchors,
                        bool as_others, int threads) {
  Quantised out;
  const bool screened = x.features <= kMaxScreenedFeatures && margin >= kLeastScreenedMargin;
  const int features = screened ? x.features : 0, depth = (features + 7) / 8 * 8;
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
  std::vector<int8_t> scratch(as_anchors ? 0 : size_t(threads) * depth * kPanel);

#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    int8_t* const mine = as_anchors ? nullptr : scratch.data() + size_t(omp_get_thread_num()) * depth * kPanel;
#else
    int8_t* const mine = scratch.data();
#endif
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t begin = panel * kPanel, end = std::min<int64_t>(begin + kPanel, x.size());
      for (int64_t i = begin; i < end; ++i) {
        int8_t* const q = as_anchors ? out.rows.data() + i * depth : mine + (i - begin) * depth;
        std::fill(q + features, q + depth, int8_t(0));
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
        const bool screenable = screened && std::abs(a) < 1e30 && r.scale < 0x1p40;
        if (!screenable) {
          std::fill(q, q + depth, int8_t(0));
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
