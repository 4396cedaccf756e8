// Asks for memory that will be read soon.
#pragma once

#include <cstdint>

namespace mmfast {

// Into the second-level cache: what does not fit into the queue of the first, 24 lines on Zen 4, is dropped there, and
// a walk asks for a hundred at once. GCC drops calls of a function that only prefetches, since it has no effect; the
// empty statement counts as one.
inline void fetch(const void* from, int64_t bytes = 1) {
  const char* const first = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(first + i, 0, 2);
  if (bytes > 1) __builtin_prefetch(first + bytes - 1, 0, 2);  // in one line more, if the first begins amid a line
  asm volatile("");
}

}  // namespace mmfast
