"""Rows that never change: as they were stored, their 8-bit image, their keys and, where they are many, a graph."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search import arrays
from mmfast.search.cached import cached
from mmfast.search.graph import EXACT_ROWS, Links, Progress, plan_graph
from mmfast.search.image import Image, aligned, encode
from mmfast.search.native import Native, NativeSearch, begin_native, unknown_version
from mmfast.search.settings import Settings
from mmfast.search.tuning import Curve, measure

if TYPE_CHECKING:
    from mmfast.search.tail import Tail
    from mmfast.search.wear import Wear

_SAMPLED = 1024  # keys


class Segment:
    """Immutable but for where its arrays lie, so any number of threads may search it."""

    def __init__(
        self,
        settings: Settings,
        keys: npt.NDArray[np.int64],  # (N,) distinct
        stored: npt.NDArray[Any],  # (N, ndim) in the storage dtype
        image: Image,
        links: Links | None = None,
        curve: Curve | None = None,
        built: float | None = None,
        native: Native | None = None,
        tail: Tail | None = None,
    ) -> None:
        self.tail = tail  # in which it grows
        self.settings, self.keys, self.stored, self.image, self.links = settings, keys, stored, image, links
        self.curve, self.built, self.native = curve, built, native
        self.wear: Wear | None = None  # what changes have cost, if that was measured
        self.tuned = False  # the curve knows what they had cost by then
        self.rows: Any = _C.VectorSet(stored, settings.dtype, settings.metric, *image, keys)
        self.walker: Any = None  # what walks through the graph, if there is one
        if links:
            self.rows.set_links(*links)
            self.walker = self.rows
        elif native:
            self.walker = NativeSearch(native, self.rows, len(keys))

    @classmethod
    def build(
        cls,
        settings: Settings,
        keys: npt.NDArray[np.int64],
        stored: npt.NDArray[Any],
        threads: int,
        progress: Progress,
    ) -> tuple[Segment, npt.NDArray[np.int64] | None]:
        """Return a segment of these rows, and the order that they were brought into, if it is another."""
        if len(keys) > EXACT_ROWS and (why := unknown_version()):
            image = encode(stored, settings.dtype, settings.metric, threads)
            begun = begin_native(stored, settings, threads, progress, why)
            segment = cls(settings, keys, stored, image, native=begun.native if begun else None)
            if begun:
                copies = begun.native.copied.of(begun.held)
                segment._measure_by(begun.held, np.concatenate([begun.held, copies]), threads)
                begun.builder.add(begun.held)
            return segment, None
        plan = plan_graph(stored, settings, threads, progress)
        if plan is None:
            return cls(settings, keys, stored, encode(stored, settings.dtype, settings.metric, threads)), None
        keys = keys[plan.order]
        stored = np.take(stored, plan.order, axis=0, out=aligned(stored.shape, stored.dtype), mode="clip")
        segment = cls(settings, keys, stored, encode(stored, settings.dtype, settings.metric, threads), plan.first)
        held = np.arange(plan.held.start, plan.held.stop)
        segment._measure_by(held, plan.links.with_copies(held), threads)
        segment.links = plan.links
        segment.rows.set_links(*plan.links)
        return segment, plan.order

    def _measure_by(self, held: npt.NDArray[np.int64], missing: npt.NDArray[np.int64], threads: int) -> None:
        """Measure the graph by rows that are not in it yet, with ``missing``, which are these and their copies."""
        allowed = np.ones(len(self), dtype=np.bool_)
        allowed[missing] = False
        self.curve = measure(self.walker, arrays.widen(self.stored[held], self.settings.dtype), allowed, None, threads)
        self.built = time.time()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def measure(self, queries: npt.NDArray[np.float32], alive: npt.NDArray[np.bool_] | None, threads: int) -> None:
        """Measure the graph by queries of the caller."""
        self.curve, self.tuned = measure(self.walker, queries, alive, alive, threads), True

    def recall(self, asked: float) -> float | None:
        """Return what a search for 10 neighbours reaches that asks for a recall, as far as was measured."""
        if self.curve is None:
            return None
        return self.curve.reached(asked) - (self.wear.lost if self.wear and not self.tuned else 0)

    def move_to(self, same: Segment) -> None:
        """Take the arrays of a segment of the same content in place of its own, of which searches at work keep theirs.

        Not a segment in its stead: which rows are removed, what was measured meanwhile and what a fold began with all
        hang on this one.
        """
        self.keys, self.stored, self.image, self.links = same.keys, same.stored, same.image, same.links
        self.rows, self.walker = same.rows, same.walker

    def bytes(self) -> int:
        """Return the bytes of its arrays, in memory or mapped."""
        held = [self.keys, self.stored, *(self.links[:3] if self.links else ())]
        return sum(int(each.nbytes) for each in held) + self.image.bytes()

    @cached
    def largest_key(self) -> int:
        """Return the largest key, or -1."""
        return int(self.keys.max()) if len(self.keys) else -1

    @cached
    def sampled_keys(self) -> npt.NDArray[np.int64]:
        """Return some keys, spread evenly over the rows."""
        return self.keys[:: max(1, len(self.keys) // _SAMPLED)].copy()

    @cached
    def _by_key(self) -> npt.NDArray[np.int64]:
        return np.argsort(self.keys, kind="stable")

    def locate(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the last row of each key, or -1."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        at = np.searchsorted(self.keys, keys, side="right", sorter=self._by_key) - 1
        rows = self._by_key[np.maximum(at, 0)]
        return np.where(self.keys[rows] == keys, rows, -1)
