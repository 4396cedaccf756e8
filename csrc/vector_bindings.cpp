// The Python face of what comes before searching: rows are checked, compared and encoded, and USearch's graphs read.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>

#include "array_bindings.h"
#include "bindings.h"
#include "threads.h"
#include "usearch_file.h"

namespace py = pybind11;

namespace mmfast {
namespace {

constexpr int64_t kSerialChecks = 1 << 20;  // numbers: fewer are checked before a second thread is awake

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
  const WithoutGil released;
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
    const WithoutGil released;
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
  const WithoutGil released;
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
    const WithoutGil released;
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

void bind_vectors(py::module_& m) {
  m.def("search_frame", &frame, py::arg("vectors"), py::arg("dtype"), py::arg("metric"));
  m.def("encode_rows", &encode_rows, py::arg("vectors"), py::arg("dtype"), py::arg("metric"),
        py::arg("coarse").noconvert(), py::arg("fine").noconvert(), py::arg("terms").noconvert(),
        py::arg("centre").noconvert(), py::arg("unit"), py::arg("begin"), py::arg("threads"));
  m.def("unfit_rows", &unfit_rows, py::arg("vectors"), py::arg("dtype"), py::arg("metric"), py::arg("longest"),
        py::arg("threads"));
  m.def("code_width", &code_width, py::arg("features"));
  m.def("hash_rows", &hash_rows, py::arg("rows"));
  m.def("usearch_graph", &usearch_graph, py::arg("content").noconvert());
}

}  // namespace mmfast
