"""Search with USearch itself, where it writes files of a version whose links are not known here.

That takes longer than a walk of our own, and it knows neither filters nor copies nor exact distances: what it finds is
joined by its copies, filtered, and ranked as rows are everywhere else.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search.graph import EXACT_ROWS, Builder, Copied, Progress, distinct, sample
from mmfast.search.settings import Settings

_log = logging.getLogger("mmfast")


class Native(NamedTuple):
    """USearch's graph of the first row of each vector; its keys are the numbers of rows."""

    index: Any
    copied: Copied

    def save(self) -> npt.NDArray[np.uint8]:
        """Return what :meth:`restore` takes."""
        return np.frombuffer(self.index.save(), np.uint8)

    @classmethod
    def restore(cls, content: memoryview, copied: Copied) -> Native | None:
        """Return the graph, or None where this version of USearch cannot read what another wrote."""
        from usearch.index import Index as NativeIndex

        try:
            return cls(NativeIndex.restore(bytes(content)), copied)
        except (RuntimeError, ValueError) as error:
            _log.warning("no graph, searches are exact until the next is built: %s", error)
            return None


def unknown_version() -> str | None:
    """Say why the links of graphs cannot be read, if they cannot."""
    from usearch.index import Index as NativeIndex

    empty: Any = NativeIndex(ndim=1)
    try:
        _C.usearch_graph(np.frombuffer(empty.save(), np.uint8))
    except ValueError as error:
        return str(error)
    return None


class Begun(NamedTuple):
    """A graph of all rows but some, by which it is to be measured before they are added."""

    native: Native
    builder: Builder
    held: npt.NDArray[np.int64]


def begin_native(
    stored: npt.NDArray[Any], settings: Settings, threads: int, progress: Progress, why: str
) -> Begun | None:
    """Begin a graph, or return None where there are few rows."""
    heads, copied = distinct(stored)
    if len(heads) <= EXACT_ROWS:
        return None
    _log.warning("%s: USearch searches by itself, which is slower; mmfast was tested with usearch 2", why)
    held = sample(len(heads))
    builder = Builder(stored, settings, threads, progress)
    builder.add(heads[~held])
    return Begun(Native(builder.native, copied.by_head()), builder, heads[held])


class NativeSearch:
    """What rows with links can be asked (``_C.VectorSet``), by USearch's graph."""

    def __init__(self, native: Native, rows: Any, count: int) -> None:
        self._native, self._rows, self._count = native, rows, count
        self.search = rows.search

    def graph_search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        expansion: int,
        bits: int,
        mask: npt.NDArray[np.bool_] | None,
        ranked: bool,
        threads: int,
        by_key: None = None,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any], bool]:
        """Return keys, distances or ranks, and whether each query has k; ``bits`` are USearch's own."""
        index, copied = self._native
        found = index.search(queries, min(expansion, len(index)), threads=min(threads, len(queries)))
        keys = np.full((len(queries), k), -1, dtype=np.int64)
        distances = np.full((len(queries), k), np.inf, dtype=np.float64 if ranked else np.float32)
        allowed = np.zeros(self._count, dtype=np.bool_)
        for i, candidates in enumerate(found.keys.reshape(len(queries), -1).astype(np.int64)):
            rows = np.concatenate([candidates, copied.of(candidates)])
            allowed[rows] = True if mask is None else mask[rows]
            keys[i : i + 1], distances[i : i + 1] = self._rows.search(queries[i : i + 1], k, allowed, ranked, 1)
            allowed[rows] = False
        return keys, distances, bool((keys[:, -1] >= 0).all())
