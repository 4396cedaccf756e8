// Arrays from Python as what searches take: rows as they were given, and their image.
#pragma once

#include <pybind11/numpy.h>

#include <string>

#include "vectors.h"

namespace mmfast {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;  // no forcecast: the wrapper converts, nothing is copied

Metric parse_metric(const std::string& name);
Scalar parse_scalar(const std::string& name);
Vectors parse_vectors(const pybind11::array& vectors, Scalar scalar);

// Checks that the image has room for as many rows, and what is readable behind them.
void check_image(const Array<uint8_t>& coarse, const Array<uint8_t>& fine, const Array<float>& terms, int64_t rows,
                 int features);

}  // namespace mmfast
