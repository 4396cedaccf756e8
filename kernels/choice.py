"""Who computes the screen's products: the screen itself, tile by tile, or the vendor's library, for a block at a time.

The products are the same integers, but the blocks are not, and so neither are the last bits of float64 sums over them.
On a GPU the first batch of LEAST_ROWS rows measures both, which waits for the GPU once for each number of features, and
the choice is kept; ``MMFAST_SCREEN=fused|chunked`` chooses without. A graph captured before that is fused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

VARIABLE = "MMFAST_SCREEN"
NAMES = ("fused", "chunked")
REPEATS = 3
LEAST_ROWS = 4096  # a smaller batch says little, and asks for little

_chosen: dict[tuple[torch.device, int], bool] = {}


def products_given(screen: Callable[[bool], Any], digits: Tensor) -> bool:
    """Choose for the first block of a batch; ``screen`` screens it, with products given or not."""
    name = os.environ.get(VARIABLE)
    if name is not None and name not in NAMES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(NAMES)}, got {name!r}")
    if name is not None:
        return name == "chunked"
    key = digits.device, digits.shape[2]
    if key not in _chosen:
        # A measurement waits for the GPU, which a graph that is being captured cannot.
        if digits.device.type != "cuda" or digits.shape[1] < LEAST_ROWS or torch.cuda.is_current_stream_capturing():
            return False
        _chosen[key] = _seconds_per_row(screen, True) < _seconds_per_row(screen, False)
    return _chosen[key]


def _seconds_per_row(screen: Callable[[bool], Any], given: bool) -> float:
    """Return the best of some times of a block, by the rows that it holds: those given are smaller."""
    times = []
    for _ in range(1 + REPEATS):  # the first one compiles
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        rows = screen(given).doubtful.shape[0]
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / rows)
    return min(times[1:])
