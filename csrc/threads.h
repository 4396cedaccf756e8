// Work on several threads, which all compute as IEEE 754 says.
#pragma once

#include <cfenv>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace mmfast {

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Rounds to nearest and keeps denormals while it lives, whatever the caller has set for its thread, as
// torch.set_flush_denormal does, or a thread of the pool was started with.
class DefaultArithmetic {
 public:
  DefaultArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultArithmetic() { std::fesetenv(&before_); }
  DefaultArithmetic(const DefaultArithmetic&) = delete;

 private:
  std::fenv_t before_;
};

// Runs `body` on each thread of a team; it may share out a loop by "omp for". It must not throw.
template <class Body>
void on_threads(int threads, Body&& body) {
#pragma omp parallel num_threads(threads)
  {
    const DefaultArithmetic arithmetic;
    body();
  }
}

}  // namespace mmfast
