// The centre is the mean of a sample, the unit follows its median deviation.
#include "frame.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace mmfast {
namespace {

constexpr int64_t kSample = 128;  // rows of a side that the frame is made from
constexpr double kOutlier = 8;    // times the median deviation: rows beyond take no part in the centre
constexpr int kCentreRounds = 4;  // an outlier hides smaller ones from the first round

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
  frame.centre_f32.assign(x.features, 0.0f);
  frame.finite = all_finite(x, threads) && (!y || all_finite(*y, threads));
  std::vector<const T*> sample;
  add_sample(x, sample);
  if (y) add_sample(*y, sample);
  if (!frame.finite || sample.empty()) return frame;

  // The mean of the sample, then without the rows far from it, so that a few outliers do not cost the others the
  // screen.
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
  for (double& c : frame.centre) c = T(c);
  frame.centre_f32.assign(frame.centre.begin(), frame.centre.end());
  const int lowest = sizeof(T) == 4 ? -120 : -900, highest = sizeof(T) == 4 ? 80 : 900;  // see quantise (tiers/body.h)
  if (median > 0) frame.unit = std::ldexp(1.0, std::clamp(-std::ilogb(median), lowest, highest));
  return frame;
}

template Frame common_frame(const Rows<float>&, const Rows<float>*, int);
template Frame common_frame(const Rows<double>&, const Rows<double>*, int);

}  // namespace mmfast
