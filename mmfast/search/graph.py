"""Build a graph of neighbours with USearch, and lay its rows out for walking through them (csrc/graph_search.h).

USearch builds good graphs fast, but is not asked to search, unless its links cannot be read (mmfast.search.native): it
has no filters and no say about its candidates, and walks through full vectors. What is read from it are the links of
its two lowest layers.

A navigable graph gets lost among copies: after 3,000 identical vectors every candidate is one of them, all at the same
distance, and of 500 distinct vectors added next hardly any is found. Copies are common in real data (one placeholder
picture behind many products), so the graph holds each vector once, and the others hang on it in a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mmfast import _C
from mmfast._forks import alone_after_fork
from mmfast.search.arrays import widen
from mmfast.search.image import aligned, encode
from mmfast.search.settings import Settings

# Measured: up to here looking at every row is as fast as walking the graph, and it is exact.
EXACT_ROWS = 2000
# Where walks begin: the nearest of so many rows. Of 128, 0.5 us are spent on looking at them.
ENTRIES = 128
# Rows that are added last: they are the queries by which the graph is measured, before they are in it.
HELD_BACK = 256
_CHUNK = 4096  # rows added between two looks at whether to go on
# When bytes stand for rows. Measured: a graph of data at all of these limits finds 0 to 4 % less; with 4 % of the rows
# falling together it finds half.
_SAMPLE = 128  # rows whose tenth neighbours are looked at
_FEW = 0.05  # of these may be closer than is good
_MOVED, _LIFTED = 1 / 10, 1 / 4  # of the tenth neighbour's distance: a step, and what all distances gain
_TOGETHER = 0.01  # of the rows may be equal to others

Rows = npt.NDArray[np.int32]
Progress = Callable[[int], None]  # rows added so far; it may raise, to give up


class Links(NamedTuple):
    """A graph over the first rows of a segment; the others are copies of them."""

    neighbours: Rows  # (nodes, slots), padded with -1
    upper: Rows  # (first nodes, slots): their links on the level above, likewise
    copies: Rows  # (rows,): the next row with the same vector, or -1
    entries: int  # the first rows, where walks begin

    def with_copies(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return rows of the graph and all copies of them."""
        found = [rows]
        while len(found[-1]):
            following = self.copies[found[-1]]
            found.append(following[following >= 0].astype(np.int64))
        return np.concatenate(found)


class Plan(NamedTuple):
    """In which order the rows of a segment lie, and their links before and after the held-back rows were added."""

    order: npt.NDArray[np.int64]  # (rows,): the row that is moved to each place
    links: Links
    first: Links  # over the same places; those of `held` have no links
    held: range  # places


def plan_graph(stored: npt.NDArray[Any], settings: Settings, threads: int, progress: Progress) -> Plan | None:
    """Build a graph over distinct rows, or None where there are few."""
    heads, copied = distinct(stored)
    if len(heads) <= EXACT_ROWS:
        return None
    builder = Builder(stored, settings, threads, progress, as_bytes(stored, heads, settings, threads, progress))
    held = sample(len(heads))
    builder.add(heads[~held])
    graph = builder.graph()
    nodes = graph.rows[_layout(graph.levels, graph.neighbours)]
    order = np.concatenate([nodes, heads[held], copied.rows])
    place = np.empty(len(stored), dtype=np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    copies = copied.chains(place)
    above = int((graph.levels > 0).sum())
    first = Links(*_placed(graph, place, len(heads), above), copies, min(ENTRIES, len(nodes)))
    builder.add(heads[held])
    links = Links(*_placed(builder.graph(), place, len(heads), above), copies, first.entries)
    return Plan(order, links, first, range(len(nodes), len(heads)))


def sample(count: int) -> npt.NDArray[np.bool_]:
    """Mark some, spread evenly."""
    marked = np.zeros(count, dtype=np.bool_)
    marked[np.linspace(0, count - 1, min(HELD_BACK, count // 16)).astype(np.int64)] = True
    return marked


@alone_after_fork
def as_bytes(
    stored: npt.NDArray[Any], heads: npt.NDArray[np.int64], settings: Settings, threads: int, progress: Progress
) -> npt.NDArray[np.int8] | None:
    """Return rows, of unit length under "cos", in bytes of one scale, if a graph of the heads from these is as good.

    Building a graph takes distances and little else, and those of bytes take half of the time. The order of squared
    distances is kept by a common scale and centre. Rounding to steps of s moves a distance by about s, and all squared
    distances of D features by D s²/6; both have to be small beside the distance of a tenth neighbour, for all but few
    of a sample of rows. Rows that fall together would be copies, in which a graph gets lost; few may. Inner products
    know no such neighbours.
    """
    if settings.metric == "ip":
        return None
    progress(0)
    image = encode(stored, settings.dtype, settings.metric, threads)
    centre = torch.from_numpy(image.centre)

    def framed(begin: int) -> torch.Tensor:
        progress(0)
        rows = torch.from_numpy(widen(stored[begin : begin + _CHUNK], settings.dtype))
        if settings.dtype == "i8":
            rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows - centre

    begins = range(0, len(stored), _CHUNK)
    step = max(float(framed(begin).abs().max()) for begin in begins) / 127
    rows = _C.VectorSet(stored, settings.dtype, settings.metric, *image, None)
    asked = widen(stored[heads[np.linspace(0, len(heads) - 1, _SAMPLE).astype(np.int64)]], settings.dtype)
    among = np.zeros(len(stored), dtype=np.bool_)
    among[heads] = True
    _, distances = rows.search(asked, 11, among, False, threads)  # the row itself is found too
    tenth = np.sqrt(np.quantile(distances[:, -1], _FEW) * (2 if settings.metric == "cos" else 1))
    if not (0 < step <= _MOVED * tenth and step * (stored.shape[1] / 12) ** 0.5 <= _LIFTED * tenth):
        return None
    small = np.empty(stored.shape, dtype=np.int8)
    for begin in begins:
        small[begin : begin + _CHUNK] = (framed(begin) / step).round().to(torch.int8).numpy()
    return small if len(distinct(small[heads])[0]) >= (1 - _TOGETHER) * len(heads) else None


class _Graph(NamedTuple):
    """A graph by slots."""

    rows: npt.NDArray[np.int64]  # (nodes,): the row in each slot
    levels: npt.NDArray[np.int16]
    neighbours: Rows  # (nodes, slots) on the lowest level
    upper: Rows  # (nodes above that, slots) on the next one


class Builder:
    """USearch's graph of rows, or of bytes that stand for them; its keys are the numbers of rows."""

    def __init__(
        self,
        stored: npt.NDArray[Any],
        settings: Settings,
        threads: int,
        progress: Progress,
        small: npt.NDArray[np.int8] | None = None,
    ) -> None:
        from usearch.index import Index as NativeIndex

        self._rows, self._threads, self._progress = stored, threads, progress
        self._raw = "bf16" if settings.dtype == "bf16" else None  # NumPy cannot name it
        form = asdict(settings)
        if small is not None:
            self._rows, self._raw = small, None
            form |= {"metric": "l2sq", "dtype": "i8"}
        elif settings.metric == "cos" and settings.dtype != "i8":
            # Rows are of unit length: their inner product says the same as the cosine, in two thirds of the time.
            form |= {"metric": "ip"}
        self.native: Any = NativeIndex(**form, enable_key_lookups=False)
        self._added = 0

    def add(self, rows: npt.NDArray[np.int64]) -> None:
        for start in range(0, len(rows), _CHUNK):
            self._progress(self._added)
            chunk = rows[start : start + _CHUNK]
            threads = min(self._threads, len(chunk))
            self.native.add(chunk.astype(np.uint64), self._rows[chunk], threads=threads, dtype=self._raw)
            self._added += len(chunk)
        self._progress(self._added)

    def graph(self) -> _Graph:
        """Return the graph so far."""
        return _Graph(*_C.usearch_graph(np.frombuffer(self.native.save(), np.uint8)))


def _layout(levels: npt.NDArray[np.int16], neighbours: Rows) -> npt.NDArray[np.int64]:
    """Order slots by level, and those of the lowest so that neighbours lie near each other."""
    front = np.argsort(-levels, kind="stable")[: max(int((levels > 0).sum()), 1)]
    seen = np.zeros(len(levels), dtype=np.bool_)
    parts = []
    while len(front):
        seen[front] = True
        parts.append(front)
        near = neighbours[front].ravel()
        near = near[near >= 0]
        near = near[~seen[near]]
        _, first = np.unique(near, return_index=True)
        front = near[np.sort(first)].astype(np.int64)
    return np.concatenate([*parts, np.flatnonzero(~seen)])


def _placed(graph: _Graph, place: Rows, nodes: int, above: int) -> tuple[Rows, Rows]:
    """Return the neighbours of each place, and those on the next level of the first ones, which ``above`` counts."""
    at = place[graph.rows]
    neighbours = aligned((nodes, graph.neighbours.shape[1]), np.int32)
    neighbours.fill(-1)
    neighbours[at] = np.where(graph.neighbours >= 0, at[graph.neighbours], np.int32(-1))
    upper = np.full((above, graph.upper.shape[1]), -1, dtype=np.int32)
    lifted = at[graph.levels > 0]
    kept = lifted < above  # of rows that were held back only the links of the lowest level count
    upper[lifted[kept]] = np.where(graph.upper >= 0, at[graph.upper], np.int32(-1))[kept]
    return neighbours, upper


class Copied(NamedTuple):
    """Rows that are equal to one before, in order."""

    rows: npt.NDArray[np.int64]
    heads: npt.NDArray[np.int64]  # which row each is a copy of

    def by_head(self) -> Copied:
        """Return them by what they are copies of."""
        order = np.argsort(self.heads, kind="stable")
        return Copied(self.rows[order], self.heads[order])

    def of(self, heads: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the copies of some heads; these are ordered by head."""
        ends = np.searchsorted(self.heads, heads, side="right")
        counts = ends - np.searchsorted(self.heads, heads)
        return self.rows[np.repeat(ends - np.cumsum(counts), counts) + np.arange(counts.sum())]

    def chains(self, place: Rows) -> Rows:
        """Return for each place that of the next copy; places of copies follow those of their heads, in order."""
        following = np.full(len(place), -1, dtype=np.int32)
        rows, heads = self.by_head()
        if len(rows):
            starts = np.append(True, heads[1:] != heads[:-1])
            before = np.where(starts, heads, np.append(0, rows[:-1]))
            following[place[before]] = place[rows]
        return following


def distinct(stored: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], Copied]:
    """Return the first row of each vector, and the others."""
    count = len(stored)
    if not count:
        return np.zeros(0, np.int64), Copied(np.zeros(0, np.int64), np.zeros(0, np.int64))
    hashes = _C.hash_rows(stored)
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    head = first[which]
    # A collision makes two rows seem copies that are not; such a row stays a vector of its own.
    later = np.flatnonzero(head != np.arange(count))
    bits = stored.view(f"u{stored.itemsize}")
    for start in range(0, len(later), _CHUNK):
        block = later[start : start + _CHUNK]
        head[block] = np.where((bits[block] == bits[head[block]]).all(axis=1), head[block], block)
    later = later[head[later] != later]
    mask = np.ones(count, dtype=np.bool_)
    mask[later] = False
    return np.flatnonzero(mask), Copied(later, head[later])
