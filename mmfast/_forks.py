"""PyTorch in the child of a fork, where it waits for ever for threads of the parent that it shares work out among.

So what computes with large tensors does it by one thread there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

_forked = False


def alone_after_fork(compute: Callable[P, T]) -> Callable[P, T]:
    """Have a function compute by one thread of PyTorch in the child of a fork; each thread has a number of its own."""

    @wraps(compute)
    def computed(*args: P.args, **options: P.kwargs) -> T:
        if not _forked:
            return compute(*args, **options)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return compute(*args, **options)
        finally:
            torch.set_num_threads(threads)

    return computed


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
