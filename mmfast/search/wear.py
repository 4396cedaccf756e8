"""Measure what changes have cost the searches of a graph: rows that were added are looked at one by one, and rows that
were removed are walked through for nothing, or surround a query so that a walk finds nothing else.

The same queries are asked of the graph as it was built and of what has become of it, at the same moment: what differs
is due to the changes, not to the machine or its load. The queries are the rows that were changed, since what was lost
is lost near them. To one that is in the graph its own links lead, so recall comes out too high: about as much in both,
and it is the fall that counts.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from mmfast.search import arrays
from mmfast.search.graph import Progress
from mmfast.search.searching import Keys, Options, Queries, nearest
from mmfast.search.state import Part, State
from mmfast.search.tail import appended
from mmfast.search.tuning import recall_of

# Rows changed between two measurements: enough to draw queries from, and a share of the graph, so that an index that
# grows row by row is built at most eleven times over. Measuring 60,000 rows took 0.2 s, a fold 13 s.
LEAST_CHANGED = 1000
_CHANGED_SHARE = 10
_QUERIES = 256
_K = 10
# Four standard errors and more: measured, that of a fall by 256 queries is at most 0.005.
_FALL = 0.02
# Of 60,000 rows of 384 features: after 60 % were removed at random, or 5,000 added. Where nothing changed, ratios of
# 0.95 to 1.05 were measured, on a busy machine as well.
_TIMES = 2.0
_RUNS = 2
_TICK = 1e-9  # seconds: no clock tells less
_EXACT = Options(recall=1, engine="exact")
_TOGETHER = 32  # exact searches between two looks at whether to go on


class Wear(NamedTuple):
    """What a search for 10 neighbours has come to, by rows that were changed."""

    changed: int  # rows, by then
    was: float  # its recall in the graph as it was built
    recall: float
    times: float  # what it takes, in what it took

    @property
    def lost(self) -> float:
        """Return by how much recall fell."""
        return max(self.was - self.recall, 0.0)

    def reason(self) -> str | None:
        """Say in words why to build a new graph, if there is a reason."""
        if self.lost > _FALL:
            return f"recall at {_K} fell from {self.was:.3f} to {self.recall:.3f} near rows that were changed"
        if self.times > _TIMES:
            return f"a search near rows that were changed takes {self.times:.1f} times what it took"
        return None


def changed(state: State) -> int:
    """Count the rows that were removed from the graph or added since it was built, those of both kinds twice."""
    return (state.main.removed() if state.main else 0) + (len(state.tail.segment) if state.tail else 0)


def is_unknown(state: State) -> bool:
    """Tell whether much has changed since the graph was built, or measured by :func:`measure`."""
    if state.main is None or state.main.segment.walker is None:
        return False
    segment, now = state.main.segment, changed(state)
    known = segment.wear.changed if segment.wear else 0
    if now < known:  # rows that were added are gone again
        known = 0
    return now - known >= max(LEAST_CHANGED, len(segment) // _CHANGED_SHARE)


def measure(state: State, threads: int, progress: Progress) -> None:
    """Note with the graph of a state what changes have cost: no search differs by it, and none waits for it."""
    assert state.main is not None
    keys, queries = _changed_rows(state.main, state.tail)
    was, took = _reached(_as_built(state.main, state.tail), keys, queries, threads, progress)
    recall, takes = _reached(state, keys, queries, threads, progress)
    state.main.segment.wear = Wear(changed(state), was, recall, takes / max(took, _TICK))


def _changed_rows(main: Part, tail: Part | None) -> tuple[Keys, Queries]:
    """Return some rows, evenly from those removed from the graph and those added since."""
    removed = np.zeros(0, np.int64) if main.alive is None else np.flatnonzero(~main.alive)
    chosen = np.linspace(0, changed(State(main, tail)) - 1, _QUERIES).astype(np.int64)
    gone = removed[chosen[chosen < len(removed)]]
    keys, stored = main.segment.keys[gone], main.segment.stored[gone]
    if tail:
        added = chosen[chosen >= len(removed)] - len(removed)
        keys = np.append(keys, tail.segment.keys[added])
        stored = np.append(stored, tail.segment.stored[added], axis=0)
    return keys, arrays.widen(stored, main.segment.settings.dtype)


def _as_built(main: Part, tail: Part | None) -> State:
    """Return the graph with all of its rows, and a tail of one where there is a tail: soon after a fold there is."""
    one = None
    if tail:
        one = appended(None, tail.segment.settings, tail.segment.keys[:1], tail.segment.stored[:1], 1)
    return State(Part(main.segment), one)


def _reached(state: State, keys: Keys, queries: Queries, threads: int, progress: Progress) -> tuple[float, float]:
    """Return the recall of searches for rows other than the queries themselves, and the seconds that they take."""
    truth = _found(state, queries, _EXACT, _TOGETHER, threads, progress)
    seconds = []
    for _ in range(_RUNS):
        begin = time.thread_time()  # as if nothing else ran on the machine
        found = _found(state, queries, Options(), 1, 1, progress)
        seconds.append(time.thread_time() - begin)
    return recall_of(found, np.where(truth == keys[:, None], -1, truth)), min(seconds)


def _found(state: State, queries: Queries, options: Options, together: int, threads: int, progress: Progress) -> Keys:
    found = []
    for begin in range(0, len(queries), together):
        progress(begin)
        found.append(nearest(state, queries[begin : begin + together], _K, options, None, threads)[0])
    return np.concatenate(found)
