// The Python face of the engine. Arrays are checked here once more than the wrappers do, so that no call can crash.
#include "bindings.h"

#include <pthread.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "checksums.h"
#include "pair_hinge.h"
#include "prune.h"
#include "tier.h"

namespace py = pybind11;

namespace mmfast {

// A forked child has none of its parent's threads, and OpenMP would wait for them for ever.
std::atomic<bool> forked{false};

int allowed_threads(int threads) { return forked ? 1 : std::clamp(threads, 1, kMaxThreads); }

}  // namespace mmfast

namespace {

constexpr py::ssize_t kMaxFeatures = py::ssize_t(1) << 30;  // their number can be rounded up in 32 bits

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // no forcecast: the wrapper converts, nothing is copied here

mmfast::Reduction parse_reduction(const std::string& name) {
  if (name == "sum") return mmfast::Reduction::kSum;
  if (name == "mean") return mmfast::Reduction::kMean;
  if (name == "mean_nonzero") return mmfast::Reduction::kMeanNonzero;
  throw py::value_error("reduction must be 'sum', 'mean' or 'mean_nonzero', got '" + name + "'");
}

template <class T>
void check_side(const Array<T>& rows, const Array<int64_t>& labels, const std::optional<Array<T>>& gradient,
                py::ssize_t features) {
  if (rows.ndim() != 2 || labels.ndim() != 1 || rows.shape(0) != labels.shape(0) || rows.shape(1) != features)
    throw py::value_error("rows must be (rows, features) and labels (rows,)");
  if (gradient && (gradient->ndim() != 2 || gradient->shape(0) != rows.shape(0) || gradient->shape(1) != features))
    throw py::value_error("a gradient must have the shape of its rows");
  if (rows.shape(0) > std::numeric_limits<int32_t>::max() || features > kMaxFeatures)
    throw py::value_error("at most 2^31 - 1 rows and 2^30 features are supported");
}

template <class T>
double pair_hinge(const Array<T>& x, const Array<int64_t>& x_labels, const std::optional<Array<T>>& y,
                  const std::optional<Array<int64_t>>& y_labels, double margin, const std::string& reduction,
                  int64_t ignore_index, std::optional<Array<T>> x_gradient, std::optional<Array<T>> y_gradient,
                  int threads) {
  if (x.ndim() != 2) throw py::value_error("rows must be (rows, features)");
  if (y.has_value() != y_labels.has_value()) throw py::value_error("the second side needs both rows and labels");
  check_side(x, x_labels, x_gradient, x.shape(1));
  if (y) check_side(*y, *y_labels, y_gradient, x.shape(1));
  mmfast::PairHinge<T> problem = {};
  problem.x = x.data();
  problem.x_labels = x_labels.data();
  problem.x_rows = x.shape(0);
  problem.cross = y.has_value();
  if (y) {
    problem.y = y->data();
    problem.y_labels = y_labels->data();
    problem.y_rows = y->shape(0);
    if (y_gradient) problem.y_gradient = y_gradient->mutable_data();
  }
  if (x_gradient) problem.x_gradient = x_gradient->mutable_data();
  problem.features = int(x.shape(1));
  problem.margin = margin;
  problem.ignore_index = ignore_index;
  problem.reduction = parse_reduction(reduction);
  problem.threads = mmfast::allowed_threads(threads);
  const mmfast::WithoutGil released;
  return double(T(mmfast::pair_hinge(problem)));  // rounded as the caller will; what overflows becomes infinite
}

// The number of texts and the sum of their checksums, or None.
std::optional<std::pair<int64_t, uint64_t>> sum_of_texts(const py::bytes& ids, const py::bytes& texts, int64_t after) {
  const std::string_view numbers = ids, all = texts;
  const mmfast::WithoutGil released;
  const auto found = mmfast::sum_of_texts(numbers, all, after);
  if (!found) return std::nullopt;
  return std::pair(found->count, found->sum);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  pthread_atfork(nullptr, nullptr, [] { mmfast::forked = true; });
  m.doc() = "The native engine of mmfast; use the functions of the package instead.";
  m.def("pair_hinge", &pair_hinge<float>, py::arg("x").noconvert(), py::arg("x_labels").noconvert(),
        py::arg("y").noconvert(), py::arg("y_labels").noconvert(), py::arg("margin"), py::arg("reduction"),
        py::arg("ignore_index"), py::arg("x_gradient").noconvert(), py::arg("y_gradient").noconvert(),
        py::arg("threads"));
  m.def("pair_hinge", &pair_hinge<double>, py::arg("x").noconvert(), py::arg("x_labels").noconvert(),
        py::arg("y").noconvert(), py::arg("y_labels").noconvert(), py::arg("margin"), py::arg("reduction"),
        py::arg("ignore_index"), py::arg("x_gradient").noconvert(), py::arg("y_gradient").noconvert(),
        py::arg("threads"));
  m.def("cpu_tier", [] { return std::string(mmfast::current_tier().name); });
  m.def("cpu_tiers_available", &mmfast::available_tiers);
  m.def("select_cpu_tier", &mmfast::select_tier, py::arg("name"));
  m.def("enable_pruning", &mmfast::enable_pruning, py::arg("enabled"), "For measuring what pruning saves.");
  m.def("sum_of_texts", &sum_of_texts, py::arg("ids"), py::arg("texts"), py::arg("after"));
  mmfast::bind_forks(m);
  mmfast::bind_search(m);
  mmfast::bind_vectors(m);
}
