// Forks amid the work of SQLite: its locks are free in the child, as malloc's are.
//
// SQLite has a few locks for the whole process, one of them for allocating memory, and no handlers of forks: where a
// thread is in SQLite at the moment, the child would wait for ever as soon as it opens any database. They are held for
// moments only, so who forks takes all of them first. That cannot be done in Python, where another thread may run in
// between and wait for one of them while it holds the interpreter's lock.
#include <pthread.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "bindings.h"

namespace mmfast {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::seconds(1);  // after it the child may hang, and this process does not
constexpr auto kPause = std::chrono::microseconds(20);
// SQLITE_MUTEX_STATIC_MAIN, MEM, OPEN, PRNG, LRU, PMEM, and VFS1 to VFS3.
constexpr int kLocks[] = {2, 3, 4, 5, 6, 7, 11, 12, 13};

int (*try_lock)(void*);
void (*leave_lock)(void*);
std::vector<void*> locks;
thread_local size_t taken;  // of the locks, by the thread that forks

void leave() {
  while (taken > 0) leave_lock(locks[--taken]);
}

// Takes all or, in the end, none: who waits for one while it holds another may be waited for.
void take() {
  for (const auto begin = Clock::now();;) {
    while (taken < locks.size() && try_lock(locks[taken]) == 0) ++taken;
    if (taken == locks.size()) return;
    leave();
    if (Clock::now() - begin > kPatience) return;
    std::this_thread::sleep_for(kPause);
  }
}

// By the addresses of sqlite3_mutex_alloc, sqlite3_mutex_try and sqlite3_mutex_leave.
void hold_at_forks(uintptr_t alloc, uintptr_t try_address, uintptr_t leave_address) {
  if (!locks.empty()) return;
  try_lock = reinterpret_cast<int (*)(void*)>(try_address);
  leave_lock = reinterpret_cast<void (*)(void*)>(leave_address);
  for (const int number : kLocks) locks.push_back(reinterpret_cast<void* (*)(int)>(alloc)(number));
  pthread_atfork(take, leave, leave);
}

}  // namespace

void bind_forks(pybind11::module_& m) {
  m.def("hold_sqlite_at_forks", &hold_at_forks, pybind11::arg("alloc"), pybind11::arg("try_address"),
        pybind11::arg("leave_address"));
}

}  // namespace mmfast
