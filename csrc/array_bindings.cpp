#include "array_bindings.h"

#include <limits>

namespace py = pybind11;

namespace mmfast {
namespace {

constexpr py::ssize_t kMaxFeatures = 65536;  // integer sums stay below 2^31
constexpr py::ssize_t kPadding = 64;

// Terms are readable as far as this.
py::ssize_t padded_rows(int64_t rows) { return (rows + kPadding - 1) / kPadding * kPadding + kPadding; }

}  // namespace

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

}  // namespace mmfast
