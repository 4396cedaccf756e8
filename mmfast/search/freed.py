"""Give memory back to the system once work is done that took much for a while.

A fold makes dozens of arrays of up to 32 MB. The first that is freed teaches glibc to serve the like from its heaps
instead of by mappings of their own, and there they stay after they are freed: 270 MB after a fold of 61,666 rows of 384
features, whose graph takes 148 MB. Nothing needs as much again until the next fold. Looking through the heaps takes
some 15 ms. The free end of a heap that is not the main thread's glibc keeps all the same, 64 MB at most.
"""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Have the allocator return what is free, where it is one that keeps it and can be asked: glibc's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
