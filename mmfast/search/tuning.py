"""Measure what recall a walk through the graph reaches in what time, and choose how to search.

A graph is measured against the exact engine by rows of the same data that are not in it yet: for a row in the graph the
walk would only have to find itself. A search then takes as many candidates as the wanted recall does, or the exact
engine where that is faster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Neighbours that recall is measured for. A search for other numbers takes the next larger, or is in proportion.
_K = (10, 100)
_EXPANSIONS = sorted({round(10 * 1.25**step) for step in range(21)})  # up to 867
# Of each feature, that a walk can go by: digits, or the rows as they are stored, in float64. Fewer are faster.
_BITS = (4, 8, 64)
_COMPARED = 48  # candidates of the walks by which these are compared
_MARGIN = 0.005  # one standard error of a recall measured with 256 queries
_SINGLE = 48  # queries timed one at a time
_REMEMBERED = 1000  # walks
_MANY = 64  # queries in a call: from here on they count as a batch


class Point(NamedTuple):
    """What a walk with so many candidates reaches."""

    ef: int
    recall: float
    batch_seconds: float  # for a query of a batch
    single_seconds: float  # for a query by itself


class Walk(NamedTuple):
    """How to walk for a recall, and from where on that is faster than to look at all rows."""

    ef: int
    recall: float  # that it reached, or in proportion between two that did
    factor: float  # of what was measured, for more neighbours
    least_share: float  # a walk is faster where more than this share of the rows may be found

    def candidates(self, k: int, share: float) -> int:
        """Return how many to keep where a share of the rows may be found: a walk meets as many others."""
        return max(int(self.ef * (self.factor / share)), k)


@dataclass(frozen=True)
class Curve:
    """The points for each number of neighbours, reached by so many bits of a feature, and the exact engine's time."""

    points: dict[int, list[Point]]
    bits: int
    exact_batch_seconds: float
    exact_single_seconds: float
    _walks: dict[tuple[bool, int, float], Walk] = field(default_factory=dict, compare=False, repr=False)

    def walk(self, queries: int, k: int, recall: float) -> Walk:
        """Return how to walk for a number of queries: as far as was measured, where nothing reached the recall."""
        asked = (queries >= _MANY, k, recall)
        walk = self._walks.get(asked)  # another thread may empty it at any time
        if walk is None:
            if len(self._walks) >= _REMEMBERED:
                self._walks.clear()
            walk = self._walks[asked] = self._plan(*asked)
        return walk

    def _plan(self, batch: bool, k: int, recall: float) -> Walk:
        measured = next((each for each in _K if k <= each), _K[-1])
        factor = max(k / measured, 1)
        exact = self.exact_batch_seconds if batch else self.exact_single_seconds
        wanted, points = min(recall + _MARGIN, 1), self.points[measured]
        enough = next((i for i, point in enumerate(points) if point.recall >= wanted), None)
        if enough is None:
            return Walk(points[-1].ef, points[-1].recall, factor, math.inf)
        point = points[0] if enough == 0 else _between(points[enough - 1], points[enough], wanted)
        # Among a share of the rows the exact engine takes that share of its time, and a walk 1 / share of its.
        seconds = (point.batch_seconds if batch else point.single_seconds) * factor
        return Walk(point.ef, point.recall, factor, math.sqrt(seconds / exact))

    def reached(self, recall: float) -> float:
        """Return what a search for 10 neighbours of one query reached that asks for a recall."""
        walk = self.walk(1, _K[0], recall)
        return 1.0 if walk.least_share >= 1 else walk.recall

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` takes."""
        return {
            "points": {str(k): [list(point) for point in points] for k, points in self.points.items()},
            "bits": self.bits,
            "exact": [self.exact_batch_seconds, self.exact_single_seconds],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Curve:
        """Make a curve again."""
        points = {int(k): [Point(*point) for point in points] for k, points in value["points"].items()}
        return cls(points, value["bits"], *value["exact"])


def _between(less: Point, more: Point, recall: float) -> Point:
    """Return the point between two that reaches a recall, or more: recall grows ever more slowly with ef."""
    steps = more.ef - less.ef
    share = math.ceil((recall - less.recall) / (more.recall - less.recall) * steps) / steps
    ef, *others = (a + share * (b - a) for a, b in zip(less, more, strict=True))
    return Point(round(ef), *others)


Mask = npt.NDArray[np.bool_]


def measure(
    rows: Any, queries: npt.NDArray[np.float32], allowed: Mask | None, walked: Mask | None, threads: int
) -> Curve | None:
    """Measure the graph of ``rows`` against exact searches, each among the rows that may be found by it."""
    if not len(queries):
        return None
    few = queries[:_SINGLE]
    exact_batch = _seconds(lambda: rows.search(queries, _K[0], None, False, threads)) / len(queries)
    exact_single = _seconds(lambda: [rows.search(few[i : i + 1], _K[0], None, False, threads) for i in range(4)]) / 4
    points = {}
    bits = _BITS[0]
    for k in _K:
        asked = queries if k == _K[0] else queries[: max(1, len(queries) // 8)]
        truth, _ = rows.search(asked, k, allowed, False, threads)
        if k == _K[0]:
            bits = _fewest_bits(rows, asked, truth, walked, threads)
        points[k] = list(_walks(rows, asked, few, truth, bits, walked, exact_batch, threads))
    return Curve(points, bits, exact_batch, exact_single)


def _fewest_bits(
    rows: Any, queries: npt.NDArray[np.float32], truth: npt.NDArray[np.int64], allowed: Mask | None, threads: int
) -> int:
    """Return the fewest bits of a feature by which walks find as much as by any."""
    k, found = truth.shape[1], {}
    for bits in _BITS:
        keys, _, _ = rows.graph_search(queries, k, _COMPARED, bits, allowed, False, threads)
        found[bits] = recall_of(keys, truth)
    return next(bits for bits in _BITS if found[bits] >= max(found.values()) - _MARGIN)


def recall_of(found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """Return the share of the true neighbours that was found; -1 in their place is none."""
    return float((found[:, :, None] == truth[:, None, :]).any(axis=1)[truth >= 0].mean())


def _walks(
    rows: Any,
    queries: npt.NDArray[np.float32],
    few: npt.NDArray[np.float32],
    truth: npt.NDArray[np.int64],
    bits: int,
    allowed: Mask | None,
    exact_seconds: float,
    threads: int,
) -> Iterator[Point]:
    """Walk with more and more candidates, until nearly all neighbours are found or the exact engine is faster."""
    k = truth.shape[1]
    for expansion in (each for each in _EXPANSIONS if each >= k):
        begin = time.perf_counter()
        found, _, _ = rows.graph_search(queries, k, expansion, bits, allowed, False, threads)
        batch = (time.perf_counter() - begin) / len(queries)
        single = _seconds(lambda: rows.graph_search(few, k, expansion, bits, allowed, False, 1)) / len(few)  # noqa: B023
        recall = recall_of(found, truth)
        yield Point(expansion, recall, batch, single)
        if recall > 0.997 or min(batch, single) > 2 * exact_seconds:
            return


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
