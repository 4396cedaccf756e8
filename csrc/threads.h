// Work on several threads, which all compute as IEEE 754 says.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <cfenv>
#endif
#include <cstdint>
#include <exception>

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

inline bool in_team() {
#ifdef _OPENMP
  return omp_in_parallel();
#else
  return false;
#endif
}

// Rounds to nearest and keeps denormals while it lives, whatever the caller has set for its thread, as
// torch.set_flush_denormal does, or a thread of the pool was started with.
class DefaultArithmetic {
 public:
#if defined(__x86_64__)  // where that of the x87, which computes nothing here, would take most of the time
  DefaultArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~DefaultArithmetic() { _mm_setcsr(before_); }
#else
  DefaultArithmetic() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultArithmetic() { std::fesetenv(&before_); }
#endif
  DefaultArithmetic(const DefaultArithmetic&) = delete;

 private:
#if defined(__x86_64__)
  unsigned before_;
#else
  std::fenv_t before_;
#endif
};

// Runs `body` on each thread of a team; it may share out a loop by "omp for". It must not throw.
template <class Body>
void on_threads(int threads, Body&& body) {
  if (threads == 1 && !in_team()) {  // a team of one takes a moment to come together
    const DefaultArithmetic arithmetic;
    return body();
  }
#pragma omp parallel num_threads(threads)
  {
    const DefaultArithmetic arithmetic;
    body();
  }
}

// Runs task(0) to task(count - 1), each on whichever thread is free. What one throws is thrown once all have ended.
template <class Task>
void share_out(int threads, int64_t count, Task&& task) {
  std::exception_ptr failure;
  on_threads(threads, [&] {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count; ++i) {
      try {
        task(i);
      } catch (...) {
#pragma omp critical
        failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace mmfast
