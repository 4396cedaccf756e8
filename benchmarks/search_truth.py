"""The exact neighbours in float64, and how many of them a search found."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.providers import WrongResultError
from benchmarks.search_data import Data, Ints
from benchmarks.search_peers import Mask

Doubles = npt.NDArray[np.float64]

BLOCK_ELEMENTS = 1 << 23  # of float64 at a time: 64 MiB per intermediate
# A neighbour as near as the k-th is as good as it: rows that are equal, or that float32 cannot tell apart.
RELATIVE, ABSOLUTE = 1e-6, 1e-12


class Truth(NamedTuple):
    """How far a row may be to count as one of the k nearest."""

    limits: Doubles  # (Q,)
    wanted: int  # k, or the number of allowed rows where that is less


def exact(data: Data, k: int, where: Mask | None = None) -> Truth:
    """Compute the distances to all rows, or to those allowed."""
    rows = data.rows if where is None else data.rows[where]
    wanted = min(k, len(rows))
    if wanted < 1:
        raise ValueError("there must be rows to search, and k must be at least 1")
    queries = data.queries.astype(np.float64)
    nearest = np.full((len(queries), wanted), np.inf)
    height = max(wanted, BLOCK_ELEMENTS // max(len(queries), rows.shape[1]))
    for start in range(0, len(rows), height):
        block = rows[start : start + height].astype(np.float64)
        found = 1 - queries @ block.T
        if data.metric == "l2sq":  # |q - x|² = |q|² + |x|² - 2 q·x
            found = 2 * found - 2 + _squares(queries)[:, None] + _squares(block)[None, :]
        candidates = np.concatenate([nearest, found], axis=1)
        nearest = np.partition(candidates, wanted - 1, axis=1)[:, :wanted]
    last = nearest.max(axis=1)
    return Truth(last + RELATIVE * np.abs(last) + ABSOLUTE, wanted)


def as_ids(found: Any, queries: int) -> Ints:
    """Return what a library found as int64, (Q, k); what it pads with becomes negative or too large."""
    return np.asarray(found).reshape(queries, -1).astype(np.int64)


def recall(data: Data, truth: Truth, ids: Ints, where: Mask | None = None) -> float:
    """Return which share of the wanted neighbours of the first queries is among their ``ids``, each counted once."""
    ids = np.sort(ids, axis=1)
    valid = (ids >= 0) & (ids < len(data.rows))
    valid[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    if where is not None and not where[ids[valid]].all():
        raise WrongResultError("a search returned rows that its filter forbids")
    right = 0
    height = max(1, BLOCK_ELEMENTS // (ids.shape[1] * data.rows.shape[1]))
    for start in range(0, len(ids), height):
        block = slice(start, start + height)
        rows = data.rows[np.where(valid[block], ids[block], 0)].astype(np.float64)  # (block, k, D)
        queries = data.queries[: len(ids)][block].astype(np.float64)
        if data.metric == "l2sq":
            distances = _squares(queries[:, None, :] - rows)
        else:
            distances = 1 - np.einsum("qd,qkd->qk", queries, rows)
        near = distances <= truth.limits[: len(ids)][block, None]
        right += int(np.minimum((near & valid[block]).sum(axis=1), truth.wanted).sum())
    return right / (len(ids) * truth.wanted)


def _squares(vectors: Doubles) -> Doubles:
    squares: Doubles = np.square(vectors).sum(axis=-1)
    return squares
