"""Search the parts of a state and put together what they find."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast.search.filters import Allowed, Filter
from mmfast.search.results import RangeResult, padded
from mmfast.search.segment import Segment
from mmfast.search.state import Part, State

Keys = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float32]
Queries = npt.NDArray[np.float32]


class Options(NamedTuple):
    """How to search, and what is done where nothing is asked for."""

    recall: float = 0.95
    engine: Literal["exact", "graph"] | None = None
    expansion: int | None = None


def nearest(
    state: State, queries: Queries, k: int, options: Options, allowed: Filter | None, threads: int
) -> tuple[Keys, Distances]:
    """Return keys and distances (N, k), padded with -1 and +inf."""
    parts, count = state.parts(), len(queries)
    if not parts:
        return padded(np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32), k)

    def nearest_of(part: Part, ranked: bool) -> tuple[Keys, npt.NDArray[Any]]:
        return _nearest_of(part, queries, min(k, len(part.segment)), options, allowed, ranked, threads)

    if len(parts) == 1:
        return padded(*nearest_of(parts[0], False), k)
    found = [nearest_of(part, True) for part in parts]
    keys, ranks = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
    order = np.lexsort((keys, ranks), axis=1)[:, :k]  # padding, at infinity, comes last
    keys, ranks = np.take_along_axis(keys, order, 1), np.take_along_axis(ranks, order, 1)
    return padded(keys, _distances(ranks, parts[0].segment.settings.metric), k)


def _distances(ranks: npt.NDArray[np.float64], metric: str) -> Distances:
    """Return the distances that belong to ranks (csrc/vectors.h)."""
    with np.errstate(all="ignore"):  # what is too small for a float32 is zero, whatever the caller set for such
        distances = ranks if metric == "l2sq" else 1 + ranks
        if metric == "cos":
            np.clip(distances, 0, 2, out=distances, where=np.isfinite(distances))
        return distances.astype(np.float32)


def _nearest_of(
    part: Part, queries: Queries, k: int, options: Options, allowed: Filter | None, ranked: bool, threads: int
) -> tuple[Keys, npt.NDArray[Any]]:
    """Return keys, and distances or the float64 that rows are ranked by; k is at most the number of rows."""
    segment = part.segment
    rows = None if allowed is None and part.alive is None else Allowed(part, allowed)
    expansion = _expansion(segment, len(queries), k, options, rows)
    if expansion is None:
        keys, distances = segment.rows.search(queries, k, rows.mask if rows else None, ranked, threads)
        return keys, distances
    bits = segment.curve.bits if segment.curve else 8
    by_key = rows.key_mask if rows and segment.native is None else None
    mask = rows.mask if rows and by_key is None else None
    keys, distances, complete = segment.walker.graph_search(
        queries, k, max(expansion, k), bits, mask, ranked, threads, by_key
    )
    # Where links lead to the same few rows, or to many that may not be found, a walk ends before it has met enough.
    if not complete:
        mask, available = (rows.mask, rows.count) if rows else (None, len(segment))
        short = np.flatnonzero(keys[:, min(k, available) - 1] < 0) if available else np.zeros(0, np.int64)
        if len(short):
            keys[short], distances[short] = segment.rows.search(queries[short], k, mask, ranked, threads)
    return keys, distances


def _expansion(segment: Segment, queries: int, k: int, options: Options, rows: Allowed | None) -> int | None:
    """Return how many candidates a walk is to keep; None: all rows are to be looked at."""
    if options.engine == "exact" or segment.walker is None:
        return None
    if options.expansion is not None:
        return options.expansion
    if segment.curve is None:
        return None
    walk = segment.curve.walk(queries, k, options.recall)
    if options.engine == "graph":
        share = max(rows.share(0), 1 / len(segment)) if rows else 1
        return min(walk.candidates(k, share), len(segment))
    if options.recall >= 1 or walk.least_share >= 1:
        return None
    share = rows.share(walk.least_share) if rows else 1
    return walk.candidates(k, share) if share > walk.least_share and k < share * len(segment) else None


def within(state: State, queries: Queries, radius: float, allowed: Filter | None, threads: int) -> RangeResult:
    """Return all neighbours within the radius."""
    parts = state.parts()
    several = len(parts) > 1
    found = []
    for part in parts:
        mask = Allowed(part, allowed).mask
        found.append(part.segment.rows.range_search(queries, radius, mask, several, threads))
    if len(found) == 1:
        return RangeResult(*found[0])
    which = [np.repeat(np.arange(len(queries)), np.diff(offsets)) for offsets, _, _ in found]
    query = np.concatenate([np.zeros(0, np.int64), *which])
    keys = np.concatenate([np.zeros(0, np.int64), *(keys for _, keys, _ in found)])
    ranks = np.concatenate([np.zeros(0), *(ranks for _, _, ranks in found)])
    order = np.lexsort((keys, ranks, query))
    offsets = np.searchsorted(query[order], np.arange(len(queries) + 1)).astype(np.int64)
    distances = _distances(ranks[order], parts[0].segment.settings.metric) if parts else np.zeros(0, np.float32)
    return RangeResult(offsets, keys[order], distances)
