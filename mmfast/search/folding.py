"""Build the next segment from a state, while the state goes on serving and changing, and put it in its place.

A fold takes the rows that are there when it begins. At the end it marks those that were removed meanwhile, and leaves
in the tail those that were added. It runs in the background once the tail, which is searched row by row, or the removed
rows, which are walked through for nothing, are many, or are measured to have cost recall or speed
(:mod:`mmfast.search.wear`).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast.search import wear
from mmfast.search.freed import return_freed_memory
from mmfast.search.interrupts import abandonable, uninterrupted
from mmfast.search.segment import Segment
from mmfast.search.state import Part, State
from mmfast.search.tail import Tail, appended

if TYPE_CHECKING:
    from mmfast.search.index import Index

_log = logging.getLogger("mmfast")

# 10,000 rows of 384 features are searched in some 0.1 ms, as long as a walk takes through many more. A graph is built
# anew whenever it would grow by a quarter, so that building stays a small multiple of building once; sooner where it is
# measured to pay (wear.py), but not before a tenth has changed.
LEAST_ROWS = 10_000
_TAIL_SHARE = 4
_REMOVED_SHARE = 2


def is_due(state: State) -> bool:
    """Tell whether there is something to be done: to build a new graph, or to measure whether to."""
    return reason(state) is not None or wear.is_unknown(state)


def reason(state: State) -> str | None:
    """Say in words why to build a new graph, if there is a reason."""
    rows = len(state.main.segment) if state.main else 0
    fresh = len(state.tail.segment) if state.tail else 0
    removed = state.main.removed() if state.main else 0
    if fresh > max(LEAST_ROWS, rows // _TAIL_SHARE):
        return f"tail of {fresh:,} rows"
    if removed > max(LEAST_ROWS, rows // _REMOVED_SHARE):
        return f"{removed:,} rows were removed"
    measured = state.main.segment.wear if state.main else None
    return measured.reason() if measured else None


class _Taken(NamedTuple):
    """The rows that a fold begins with."""

    keys: npt.NDArray[np.int64]
    stored: npt.NDArray[Any]
    main_rows: npt.NDArray[np.int64]  # of the main part, in order
    tail_rows: npt.NDArray[np.int64]  # of the tail, in order, behind them
    main: Segment | None
    tail: Tail | None
    tail_end: int  # rows that the tail had


def _alive(part: Part | None) -> npt.NDArray[np.int64]:
    if part is None:
        return np.zeros(0, dtype=np.int64)
    return np.arange(len(part.segment)) if part.alive is None else np.flatnonzero(part.alive)


def _take(state: State, ndim: int) -> _Taken:
    main_rows, tail_rows = _alive(state.main), _alive(state.tail)
    parts = [(state.main, main_rows), (state.tail, tail_rows)]
    chosen = [(part.segment, rows) for part, rows in parts if part is not None]
    keys = np.concatenate([np.zeros(0, np.int64), *(segment.keys[rows] for segment, rows in chosen)])
    stored = np.concatenate([segment.stored[rows] for segment, rows in chosen]) if chosen else np.zeros((0, ndim))
    main, tail = (part.segment if part else None for part in (state.main, state.tail))
    return _Taken(keys, stored, main_rows, tail_rows, main, tail.tail if tail else None, len(tail) if tail else 0)


def fold(index: Index, threads: int, progress: Callable[[int], None]) -> None:
    """Build a graph of all rows, while the caller waits, unless there is one of exactly these."""
    stopped = index._folding.is_stopped()

    # All by the thread that works: one that waits may be in a signal handler that waits for this.
    def work(reach: Callable[[int], None]) -> bool:
        with index._folding.turn():
            state = index._state
            if state.tail is None and (state.main is None or state.main.alive is None):
                return False
            taken = _take(state, index.ndim)
            if not len(taken.keys):
                return False
            built = Segment.build(index._settings, taken.keys, taken.stored, threads, reach)
            with index._lock:
                _install(index, taken, *built, threads)
            return True

    def reach(count: int) -> None:
        if index._folding.is_stopped() and not stopped:
            raise InterruptedError("the index was closed while its graph was built")
        progress(count)

    if abandonable(work, reach):
        return_freed_memory()


def _install(index: Index, taken: _Taken, segment: Segment, order: npt.NDArray[np.int64] | None, threads: int) -> None:
    """Put the segment in place of what it was made of; the caller holds the index's lock."""
    now = index._state
    if now.main is not None and now.main.segment is not taken.main:  # a durable index took over another snapshot
        return
    same_tail = now.tail is not None and now.tail.segment.tail is taken.tail
    alive = np.concatenate(
        [
            _still(now.main, taken.main_rows),
            _still(now.tail if same_tail else None, taken.tail_rows),
        ]
    )
    if order is not None:
        alive = alive[order]
    main = Part(segment, None if alive.all() else alive) if alive.any() else None
    left = None
    if now.tail is not None:
        rows = _alive(now.tail)
        rows = rows[rows >= taken.tail_end] if same_tail else rows
        if len(rows):
            behind = now.tail.segment
            left = appended(None, index._settings, behind.keys[rows], behind.stored[rows], threads)
    index._state = State(main, left)


def _still(part: Part | None, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    if part is None:
        return np.zeros(len(rows), dtype=np.bool_)
    return np.ones(len(rows), dtype=np.bool_) if part.alive is None else part.alive[rows]


class _Abandoned(Exception):
    """Nobody waits for the fold any more."""


class Folding:
    """The building of graphs of one index, one after the other, in the background or while a caller waits."""

    def __init__(self) -> None:
        self._turn, self._next = threading.Lock(), threading.Lock()
        self._starting = threading.Lock()
        self._running = threading.Lock()  # held while a thread is at it, or about to be
        self._stopped = threading.Event()
        _foldings.add(self)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait to be the only one that folds: who had its turn cannot have the next before one that waits for it."""
        turn = self._turn  # a child of a fork has another
        with self._next:
            turn.acquire()
        try:
            yield
        finally:
            turn.release()

    def reset(self) -> None:
        """Forget the threads of a parent process."""
        self._turn, self._next = threading.Lock(), threading.Lock()
        self._starting, self._running = threading.Lock(), threading.Lock()

    def start(self, index: Index, threads: int) -> None:
        """Do in the background what is due, unless that is under way; where it cannot be, the next change tries."""
        if self.is_stopped() or self._running.locked():
            return

        def work() -> None:
            try:
                self._start(index, threads)
            except Exception:  # the change that brought us here is made
                _log.exception("building the graph in the background failed to start")

        try:
            uninterrupted(self._starting, work)
        except RuntimeError as error:  # what else comes out is of a signal handler
            if "start new thread" not in str(error):
                raise
            _log.exception("building the graph in the background failed to start")

    def _start(self, index: Index, threads: int) -> None:
        import usearch.index  # noqa: F401  # here, or a fork while the thread imports it would get half a module

        if self.is_stopped() or not self._running.acquire(blocking=False):
            return
        thread = threading.Thread(
            target=self._run, args=(weakref.ref(index), threads), name="mmfast-build", daemon=True
        )
        try:
            _threads.add(thread)
            thread.start()
        except BaseException:
            _threads.discard(thread)
            self._running.release()
            raise

    def _run(self, reference: weakref.ref[Index], threads: int) -> None:
        def progress(_: int) -> None:
            if reference() is None or self.is_stopped():
                raise _Abandoned

        running = self._running
        try:
            while True:
                with self.turn():
                    if self.is_stopped() or (index := reference()) is None or not is_due(index._state):
                        return
                    state, settings = index._state, index._settings
                    del index
                    if (why := reason(state)) is None:
                        wear.measure(state, threads, progress)
                        continue
                    _log.info("building the graph of %s rows in the background: %s", f"{state.size():,}", why)
                    taken = _take(state, settings.ndim)
                    built = Segment.build(settings, taken.keys, taken.stored, threads, progress)
                    if (index := reference()) is not None:
                        with index._lock:
                            _install(index, taken, *built, threads)
                    del index, state, taken, built
                self.folded()
                return_freed_memory()
        except _Abandoned:
            return
        except Exception:  # searches go on without
            _log.exception("building the graph, or measuring what changes have cost it, failed")
        finally:
            running.release()

    def folded(self) -> None:
        """Do what is to be done once a graph was built in the background."""

    def is_stopped(self) -> bool:
        """Tell whether nothing is to be built any more."""
        return _stopping.is_set() or self._stopped.is_set()

    def stop(self) -> None:
        """Wait until nothing is built in the background, now or later."""
        self._stopped.set()
        uninterrupted(self._running, lambda: None)


_foldings: weakref.WeakSet[Folding] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_stopping = threading.Event()


def _stop() -> None:
    """Let the threads end before the interpreter does: native code must not return into one that is gone."""
    _stopping.set()
    for thread in list(_threads):
        with suppress(RuntimeError):  # it has not begun, and ends as soon as it does
            thread.join()


def _forget_parent() -> None:
    _threads.clear()
    for each in list(_foldings):
        each.reset()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
