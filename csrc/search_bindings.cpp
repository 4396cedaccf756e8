// The Python face of search: rows with their 8-bit image, held as NumPy arrays, which may be mapped files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "array_bindings.h"
#include "bindings.h"
#include "exact_search.h"
#include "graph_search.h"
#include "threads.h"

namespace py = pybind11;

namespace mmfast {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// Rows, their image and their keys. Holds on to the arrays it was made from.
class VectorSet {
 public:
  VectorSet(py::array vectors, const std::string& dtype, const std::string& metric, Array<uint8_t> coarse,
            Array<uint8_t> fine, Array<float> terms, Array<float> centre, double unit,
            std::optional<Array<int64_t>> keys)
      : vectors_(std::move(vectors)),
        coarse_(std::move(coarse)),
        fine_(std::move(fine)),
        terms_(std::move(terms)),
        centre_(std::move(centre)),
        keys_(std::move(keys)),
        metric_(parse_metric(metric)),
        rows_(parse_vectors(vectors_, parse_scalar(dtype))) {
    check_image(coarse_, fine_, terms_, rows_.rows, rows_.features);
    if (centre_.ndim() != 1 || centre_.shape(0) != rows_.features) throw py::value_error("centre must be (features,)");
    if (keys_ && (keys_->ndim() != 1 || keys_->shape(0) != rows_.rows)) throw py::value_error("keys must be (rows,)");
    if (!(unit > 0)) throw py::value_error("unit must be positive");
    const py::ssize_t stride = terms_.shape(1);
    const float* const t = terms_.data();
    codes_ = {{coarse_.data(), fine_.data(), code_width(rows_.features)},
              t,
              t + stride,
              t + 2 * stride,
              t + 3 * stride,
              t + 4 * stride,
              centre_.data(),
              unit,
              rows_.rows,
              rows_.features};
  }

  py::tuple search(const Array<float>& queries, int64_t k, const std::optional<Array<bool>>& allowed, bool ranked,
                   int threads) {
    if (k < 1) throw py::value_error("k must be at least 1");
    return matrix(k, ranked,
                  run(queries, k, kInfinite, allowed, threads, [](const ExactSearch& s) { return exact_search(s); }));
  }

  // The links are checked once: whatever they are, no walk leaves the rows.
  void set_links(Array<int32_t> neighbours, Array<int32_t> upper, Array<int32_t> copies, int entries) {
    if (neighbours.ndim() != 2 || neighbours.shape(0) > rows_.rows || neighbours.shape(1) > 8192)
      throw py::value_error("neighbours must be (nodes, slots)");
    const int64_t nodes = neighbours.shape(0);
    if (upper.ndim() != 2 || upper.shape(0) > nodes || upper.shape(1) > 8192)
      throw py::value_error("upper must be (first nodes, slots)");
    if (copies.ndim() != 1 || copies.shape(0) != rows_.rows) throw py::value_error("copies must be (rows,)");
    if (entries < 1 || entries > nodes) throw py::value_error("entries must be from 1 to the number of nodes");
    for (const Array<int32_t>* links : {&neighbours, &upper})
      for (int64_t i = 0; i < links->size(); ++i)
        if (links->data()[i] < -1 || links->data()[i] >= nodes) throw py::value_error("a link leaves the graph");
    const int32_t* const next = copies.data();
    // Copies come after what they are copies of: no walk along them is endless.
    for (int64_t i = 0; i < rows_.rows; ++i)
      if (next[i] != -1 && (next[i] <= i || next[i] < nodes || next[i] >= rows_.rows))
        throw py::value_error("a copy comes before its original");
    const float* const residual = codes_.residual;
    const bool decided = std::all_of(residual, residual + rows_.rows, [](float e) { return e < kInfinite; });
    neighbours_ = std::move(neighbours);
    upper_ = std::move(upper);
    copies_ = std::move(copies);
    links_ = {neighbours_->data(),   next,    upper_->data(), nodes, upper_->shape(0), int(neighbours_->shape(1)),
              int(upper_->shape(1)), entries, decided};
  }

  // Also returns whether k rows were found for every query.
  py::tuple graph_search(const Array<float>& queries, int64_t k, int expansion, int bits,
                         const std::optional<Array<bool>>& allowed, bool ranked, int threads,
                         const std::optional<Array<bool>>& allowed_keys) {
    if (allowed_keys && allowed_keys->ndim() != 1) throw py::value_error("allowed_keys must be (keys,)");
    if (bits != 4 && bits != 8 && bits != 64) throw py::value_error("bits must be 4, 8 or 64");
    if (k < 1 || expansion < 1) throw py::value_error("k and expansion must be at least 1");
    if (!neighbours_) throw py::value_error("there is no graph: set_links first");
    expansion = int(std::min<int64_t>(expansion, links_.nodes));
    const bool* const marks = allowed_keys ? allowed_keys->data() : nullptr;
    const int64_t marked = allowed_keys ? allowed_keys->size() : 0;
    const auto found = run(queries, k, kInfinite, allowed, threads, [&](ExactSearch s) {
      s.allowed_keys = marks;
      s.allowed_keys_count = marked;
      return mmfast::graph_search(s, links_, expansion, Precision(bits));
    });
    const bool complete =
        std::all_of(found.begin(), found.end(), [&](const auto& row) { return int64_t(row.size()) == k; });
    const py::tuple results = matrix(k, ranked, found);
    return py::make_tuple(results[0], results[1], complete);
  }

  // (queries, k) keys and distances, or what they are ranked by, padded with -1 and infinity.
  py::tuple matrix(int64_t k, bool ranked, const std::vector<std::vector<Neighbour>>& found) const {
    Array<int64_t> keys({int64_t(found.size()), k});
    if (ranked) return py::make_tuple(keys, fill<double>(keys, found, [](double rank) { return rank; }));
    return py::make_tuple(keys, fill<float>(keys, found, [&](double rank) { return to_distance(metric_, rank); }));
  }
  template <class T, class Convert>
  static Array<T> fill(Array<int64_t>& keys, const std::vector<std::vector<Neighbour>>& found, Convert&& convert) {
    const DefaultArithmetic arithmetic;
    const int64_t k = keys.shape(1);
    Array<T> values({int64_t(found.size()), k});
    int64_t* key = keys.mutable_data();
    T* value = values.mutable_data();
    for (const auto& row : found)
      for (int64_t i = 0; i < k; ++i, ++key, ++value) {
        const bool here = i < int64_t(row.size());
        *key = here ? row[i].key : -1;
        *value = here ? T(convert(row[i].rank)) : std::numeric_limits<T>::infinity();
      }
    return values;
  }

  py::tuple range_search(const Array<float>& queries, double radius, const std::optional<Array<bool>>& allowed,
                         bool ranked, int threads) {
    if (!std::isfinite(radius)) throw py::value_error("radius must be finite");
    const auto found =
        run(queries, Shortlist::kAll, radius, allowed, threads, [](const ExactSearch& s) { return exact_search(s); });
    Array<int64_t> offsets(queries.shape(0) + 1);
    int64_t total = 0;
    for (size_t j = 0; j < found.size(); ++j) offsets.mutable_at(j) = total, total += int64_t(found[j].size());
    offsets.mutable_at(found.size()) = total;
    Array<int64_t> keys(total);
    int64_t* key = keys.mutable_data();
    for (const auto& row : found)
      for (const Neighbour& n : row) *key++ = n.key;
    if (ranked) return py::make_tuple(offsets, keys, flat<double>(total, found, [](double rank) { return rank; }));
    return py::make_tuple(offsets, keys,
                          flat<float>(total, found, [&](double rank) { return to_distance(metric_, rank); }));
  }
  template <class T, class Convert>
  static Array<T> flat(int64_t total, const std::vector<std::vector<Neighbour>>& found, Convert&& convert) {
    const DefaultArithmetic arithmetic;
    Array<T> values(total);
    T* value = values.mutable_data();
    for (const auto& row : found)
      for (const Neighbour& n : row) *value++ = T(convert(n.rank));
    return values;
  }

 private:
  template <class Engine>
  std::vector<std::vector<Neighbour>> run(const Array<float>& queries, int64_t k, double radius,
                                          const std::optional<Array<bool>>& allowed, int threads, Engine&& engine) {
    if (queries.ndim() != 2 || queries.shape(1) != rows_.features)
      throw py::value_error("queries must be (queries, features)");
    if (allowed && (allowed->ndim() != 1 || allowed->shape(0) != rows_.rows))
      throw py::value_error("allowed must be (rows,)");
    const ExactSearch search = {rows_,
                                codes_,
                                metric_,
                                keys_ ? keys_->data() : nullptr,
                                allowed ? allowed->data() : nullptr,
                                queries.data(),
                                queries.shape(0),
                                k,
                                radius,
                                allowed_threads(threads)};
    const WithoutGil released;
    return engine(search);
  }

  py::array vectors_;
  Array<uint8_t> coarse_, fine_;
  Array<float> terms_, centre_;
  std::optional<Array<int64_t>> keys_;
  Metric metric_;
  Vectors rows_;
  Codes codes_;
  std::optional<Array<int32_t>> neighbours_, upper_, copies_;
  Links links_ = {};
};

}  // namespace

void bind_search(py::module_& m) {
  py::class_<VectorSet>(m, "VectorSet")
      .def(py::init<py::array, const std::string&, const std::string&, Array<uint8_t>, Array<uint8_t>, Array<float>,
                    Array<float>, double, std::optional<Array<int64_t>>>(),
           py::arg("vectors"), py::arg("dtype"), py::arg("metric"), py::arg("coarse").noconvert(),
           py::arg("fine").noconvert(), py::arg("terms").noconvert(), py::arg("centre").noconvert(), py::arg("unit"),
           py::arg("keys").noconvert())
      .def("search", &VectorSet::search, py::arg("queries").noconvert(), py::arg("k"), py::arg("allowed").noconvert(),
           py::arg("ranked"), py::arg("threads"))
      .def("set_links", &VectorSet::set_links, py::arg("neighbours").noconvert(), py::arg("upper").noconvert(),
           py::arg("copies").noconvert(), py::arg("entries"))
      .def("graph_search", &VectorSet::graph_search, py::arg("queries").noconvert(), py::arg("k"), py::arg("expansion"),
           py::arg("bits"), py::arg("allowed").noconvert(), py::arg("ranked"), py::arg("threads"),
           py::arg("allowed_keys").noconvert() = py::none())
      .def("range_search", &VectorSet::range_search, py::arg("queries").noconvert(), py::arg("radius"),
           py::arg("allowed").noconvert(), py::arg("ranked"), py::arg("threads"));
}

}  // namespace mmfast
