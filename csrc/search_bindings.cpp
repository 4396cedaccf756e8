// The Python face of search: rows with their 8-bit image, held as NumPy arrays, which may be mapped files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "bindings.h"
#include "exact_search.h"
#include "graph_search.h"
#include "threads.h"
#include "usearch_file.h"
#include "vectors.h"

namespace py = pybind11;

namespace mmfast {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;  // no forcecast: the wrapper converts, nothing is copied here

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr py::ssize_t kMaxFeatures = 65536;  // integer sums stay below 2^31
constexpr py::ssize_t kPadding = 64;
constexpr int64_t kSerialChecks = 1 << 20;  // numbers: fewer are checked before a second thread is awake

// Terms are readable as far as this.
py::ssize_t padded_rows(int64_t rows) { return (rows + kPadding - 1) / kPadding * kPadding + kPadding; }

Metric parse_metric(const std::string& name) {
  if (name == "cos") return Metric::kCos;
  if (name == "ip") return Metric::kIp;
  if (name == "l2sq") return Metric::kL2sq;
  throw py::value_error("metric must be 'cos', 'ip' or 'l2sq', got '" + name + "'");
}

Scalar parse_scalar(const std::string& name) {
  if (name == "f32") return Scalar::kF32;
  if (name == "f16") return Scalar::kF16;
  if (name == "bf16") return Scalar::kBf16;
  if (name == "i8") return Scalar::kI8;
  throw py::value_error("dtype must be 'f32', 'f16', 'bf16' or 'i8', got '" + name + "'");
}

Vectors parse_vectors(const py::array& vectors, Scalar scalar) {
  const char kind = vectors.dtype().kind();
  const py::ssize_t size = vectors.itemsize();
  const bool fits = scalar == Scalar::kF32    ? kind == 'f' && size == 4
                    : scalar == Scalar::kF16  ? kind == 'f' && size == 2
                    : scalar == Scalar::kBf16 ? kind == 'i' && size == 2
                                              : kind == 'i' && size == 1;
  if (vectors.ndim() != 2 || !(vectors.flags() & py::array::c_style) || !fits)
    throw py::value_error("vectors must be C-contiguous, (rows, features), and of the dtype named");
  if (vectors.shape(0) > std::numeric_limits<int32_t>::max() || vectors.shape(1) > kMaxFeatures || vectors.shape(1) < 1)
    throw py::value_error("at most 2^31 - 1 rows of 1 to 65,536 features are supported");
  return {vectors.data(), scalar, vectors.shape(0), int(vectors.shape(1))};
}

void check_image(const Array<uint8_t>& coarse, const Array<uint8_t>& fine, const Array<float>& terms, int64_t rows,
                 int features) {
  for (const Array<uint8_t>* plane : {&coarse, &fine})
    if (plane->ndim() != 1 || plane->shape(0) < rows * code_width(features) + kPadding)
      throw py::value_error("coarse and fine must be (rows * width + 64,)");
  if (terms.ndim() != 2 || terms.shape(0) != 5 || terms.shape(1) < padded_rows(rows))
    throw py::value_error("terms must be (5, rows rounded up to 64, and 64)");
}

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
    neighbours_ = std::move(neighbours);
    upper_ = std::move(upper);
    copies_ = std::move(copies);
    links_ = {neighbours_->data(),   next,   upper_->data(), nodes, upper_->shape(0), int(neighbours_->shape(1)),
              int(upper_->shape(1)), entries};
  }

  // Also returns whether k rows were found for every query.
  py::tuple graph_search(const Array<float>& queries, int64_t k, int expansion, bool coarse,
                         const std::optional<Array<bool>>& allowed, bool ranked, int threads) {
    if (k < 1 || expansion < 1) throw py::value_error("k and expansion must be at least 1");
    if (!neighbours_) throw py::value_error("there is no graph: set_links first");
    expansion = int(std::min<int64_t>(expansion, links_.nodes));
    const auto found = run(queries, k, kInfinite, allowed, threads,
                           [&](const ExactSearch& s) { return mmfast::graph_search(s, links_, expansion, coarse); });
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
                         int threads) {
    if (!std::isfinite(radius)) throw py::value_error("radius must be finite");
    const auto found =
        run(queries, Shortlist::kAll, radius, allowed, threads, [](const ExactSearch& s) { return exact_search(s); });
    Array<int64_t> offsets(queries.shape(0) + 1);
    int64_t total = 0;
    for (size_t j = 0; j < found.size(); ++j) offsets.mutable_at(j) = total, total += int64_t(found[j].size());
    offsets.mutable_at(found.size()) = total;
    Array<int64_t> keys(total);
    Array<float> distances(total);
    int64_t* key = keys.mutable_data();
    float* distance = distances.mutable_data();
    for (const auto& row : found)
      for (const Neighbour& n : row) *key++ = n.key, *distance++ = float(to_distance(metric_, n.rank));
    return py::make_tuple(offsets, keys, distances);
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
    py::gil_scoped_release released;
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

// The centre and the unit for rows.
py::tuple frame(const py::array& vectors, const std::string& dtype, const std::string& metric) {
  const Vectors rows = parse_vectors(vectors, parse_scalar(dtype));
  Array<float> centre(rows.features);
  double unit = 1;
  choose_frame(rows, parse_metric(metric), centre.mutable_data(), &unit);
  return py::make_tuple(centre, unit);
}

// Writes the image of rows into arrays as VectorSet wants them, from row `begin` on.
void encode_rows(const py::array& vectors, const std::string& dtype, const std::string& metric, Array<uint8_t>& coarse,
                 Array<uint8_t>& fine, Array<float>& terms, const Array<float>& centre, double unit, int64_t begin,
                 int threads) {
  const Vectors rows = parse_vectors(vectors, parse_scalar(dtype));
  const Metric parsed = parse_metric(metric);
  if (centre.ndim() != 1 || centre.shape(0) != rows.features) throw py::value_error("centre must be (features,)");
  if (begin < 0) throw py::value_error("begin must not be negative");
  check_image(coarse, fine, terms, begin + rows.rows, rows.features);
  const int64_t first = begin * code_width(rows.features), stride = terms.shape(1);
  float* const t = terms.mutable_data() + begin;
  const NewCodes out = {coarse.mutable_data() + first,
                        fine.mutable_data() + first,
                        t,
                        t + stride,
                        t + 2 * stride,
                        t + 3 * stride,
                        t + 4 * stride};
  const float* const c = centre.data();
  threads = allowed_threads(threads);
  py::gil_scoped_release released;
  encode(rows, parsed, c, unit, out, threads);
}

// Which rows no distance can be computed from: the numbers of those that are not finite, of those that are zero where
// the metric is a cosine, and of those longer than `longest` where it is not. None if there are no such rows.
std::optional<py::tuple> unfit_rows(const py::array& vectors, const std::string& dtype, const std::string& metric,
                                    double longest, int threads) {
  const Vectors rows = parse_vectors(vectors, parse_scalar(dtype));
  const bool cosine = parse_metric(metric) == Metric::kCos;
  enum { kFits, kNotFinite, kZero, kTooLong };
  std::vector<char> kinds(rows.rows);
  const int used = rows.rows * int64_t(rows.features) < kSerialChecks ? 1 : allowed_threads(threads);
  bool all_fit = true;
  {
    py::gil_scoped_release released;
    const DefaultArithmetic arithmetic;
    const Tier& tier = current_tier();
    std::vector<float> scratch(size_t(used) * rows.features);
    on_threads(used, [&] {
      float* const mine = scratch.data() + size_t(thread_number()) * rows.features;
#pragma omp for schedule(static) reduction(&& : all_fit)
      for (int64_t i = 0; i < rows.rows; ++i) {
        const float* const row = rows.row(i, mine);
        const double squares = tier.f32.dot(row, row, rows.features);
        kinds[i] = char(!std::isfinite(squares)                  ? kNotFinite
                        : cosine && squares == 0                 ? kZero
                        : !cosine && squares > longest * longest ? kTooLong
                                                                 : kFits);
        all_fit = all_fit && kinds[i] == kFits;
      }
    });
  }
  if (all_fit) return std::nullopt;
  std::vector<int64_t> found[3];
  for (int64_t i = 0; i < rows.rows; ++i)
    if (kinds[i] != kFits) found[kinds[i] - 1].push_back(i);
  const auto array = [](const std::vector<int64_t>& v) { return Array<int64_t>(py::ssize_t(v.size()), v.data()); };
  return py::make_tuple(array(found[0]), array(found[1]), array(found[2]));
}

// 64 bits of each row's bytes: equal rows have equal ones, and others very rarely do.
Array<uint64_t> hash_rows(const py::array& rows) {
  if (rows.ndim() != 2 || !(rows.flags() & py::array::c_style)) throw py::value_error("rows must be C-contiguous");
  const size_t size = size_t(rows.shape(1) * rows.itemsize());
  const int64_t count = rows.shape(0);
  Array<uint64_t> hashes(count);
  uint64_t* const out = hashes.mutable_data();
  const char* const bytes = static_cast<const char*>(rows.data());
  py::gil_scoped_release released;
  for (int64_t i = 0; i < count; ++i) out[i] = std::hash<std::string_view>()({bytes + i * size, size});
  return hashes;
}

// Keys (nodes,), levels (nodes,), neighbours (nodes, slots) and upper (nodes of level 1 and more, slots) of a graph as
// USearch saves it.
py::tuple usearch_graph(const Array<uint8_t>& content) {
  UsearchGraph graph;
  {
    const uint8_t* const data = content.data();
    const size_t size = size_t(content.size());
    py::gil_scoped_release released;
    graph = read_usearch_graph(data, size);
  }
  Array<int32_t> neighbours({py::ssize_t(graph.nodes), py::ssize_t(graph.slots)});
  std::copy(graph.neighbours.begin(), graph.neighbours.end(), neighbours.mutable_data());
  const int64_t upper_nodes = graph.upper_slots ? int64_t(graph.upper.size()) / graph.upper_slots : 0;
  Array<int32_t> upper({py::ssize_t(upper_nodes), py::ssize_t(graph.upper_slots)});
  std::copy(graph.upper.begin(), graph.upper.end(), upper.mutable_data());
  return py::make_tuple(Array<int64_t>(py::ssize_t(graph.nodes), graph.keys.data()),
                        Array<int16_t>(py::ssize_t(graph.nodes), graph.levels.data()), neighbours, upper);
}

}  // namespace

void bind_search(py::module_& m) {
  m.def("search_frame", &frame, py::arg("vectors"), py::arg("dtype"), py::arg("metric"));
  m.def("encode_rows", &encode_rows, py::arg("vectors"), py::arg("dtype"), py::arg("metric"),
        py::arg("coarse").noconvert(), py::arg("fine").noconvert(), py::arg("terms").noconvert(),
        py::arg("centre").noconvert(), py::arg("unit"), py::arg("begin"), py::arg("threads"));
  m.def("unfit_rows", &unfit_rows, py::arg("vectors"), py::arg("dtype"), py::arg("metric"), py::arg("longest"),
        py::arg("threads"));
  m.def("code_width", &code_width, py::arg("features"));
  m.def("hash_rows", &hash_rows, py::arg("rows"));
  m.def("usearch_graph", &usearch_graph, py::arg("content").noconvert());
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
           py::arg("coarse"), py::arg("allowed").noconvert(), py::arg("ranked"), py::arg("threads"))
      .def("range_search", &VectorSet::range_search, py::arg("queries").noconvert(), py::arg("radius"),
           py::arg("allowed").noconvert(), py::arg("threads"));
}

}  // namespace mmfast
