// What the files that face Python share.
#pragma once

#include <pybind11/pybind11.h>

namespace mmfast {

constexpr int kMaxThreads = 1024;  // OpenMP ends the process where it cannot start as many

// As many threads as may be used of those asked for.
int allowed_threads(int threads);

void bind_search(pybind11::module_& m);
void bind_vectors(pybind11::module_& m);

}  // namespace mmfast
