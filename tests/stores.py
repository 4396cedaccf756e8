"""What the tests of durable stores share: settings, rows, keys, and a process that is killed while it writes."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfast.search.conditions import Condition
from mmfast.search.truth import Truth

SETTINGS: dict[str, object] = {"ndim": 4, "metric": "l2sq", "dtype": "bf16"}
KINDS = ("int", "str")


def rows(count: int, seed: int = 0, ndim: int = 4) -> npt.NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-(2**15), 2**15, (count, ndim)).astype(np.int16)


def keys_of(kind: str, numbers: Any) -> Any:
    return [int(n) for n in numbers] if kind == "int" else [f"key {n} ä'\"" for n in numbers]


def ids_where(truth: Truth, condition: Condition) -> npt.NDArray[np.int64]:
    """Return the ids of the rows that fulfil a condition."""
    ids = truth.filter(condition).keys
    assert ids is not None
    return ids


def kill_again_and_again(
    times: int, pause: Callable[[float], float], write: Callable[[int], None], look: Callable[[int], None]
) -> None:
    """Have a child ``write`` without end, kill it after a ``pause`` made of a number from 0 to 1, and ``look``.

    The child writes each version that was acknowledged to the pipe that it is given, in 8 bytes; the last of them is
    what there is to look for.
    """
    chosen = random.Random(times)
    for _ in range(times):
        read, acknowledge = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                write(acknowledge)
            os._exit(1)
        os.close(acknowledge)
        first = os.read(read, 8)  # it is at work
        time.sleep(pause(chosen.random()))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        rest = b"".join(iter(lambda read=read: os.read(read, 4096), b""))  # type: ignore[misc]
        os.close(read)
        look(int.from_bytes((first + rest)[-8:], "little"))
