// What the files that face Python share.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace mmfast {

constexpr int kMaxThreads = 1024;  // OpenMP ends the process where it cannot start as many

// As many threads as may be used of those asked for.
int allowed_threads(int threads);

// Lets other threads run Python while it lives. When the interpreter has ended meanwhile, it ends the threads that come
// back to it, which pybind11's own would turn into the end of the process by SIGABRT; this one waits for that end.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  WithoutGil(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

void bind_forks(pybind11::module_& m);
void bind_search(pybind11::module_& m);
void bind_vectors(pybind11::module_& m);

}  // namespace mmfast
