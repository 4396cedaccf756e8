"""Measures what searches find and how long they take: all of them in turn, round after round, in one process.

As in :mod:`benchmarks.interleaved`, a slow minute of the machine meets all alike, and each round starts with another
case. Before each measurement the same search runs untimed for a moment, so that its rows and threads are awake and
those of its predecessor asleep.

Memory is what building adds to the resident set of a process that already holds the rows. Called as
``python -m benchmarks.search_run PEER ROWS.npy METRIC THREADS``, this module is that process.
"""

from __future__ import annotations

import gc
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import ROOT, status
from benchmarks.search_data import Data, Floats
from benchmarks.search_peers import Mask, Peer, Search, Setting, build, make_peers
from benchmarks.search_truth import Truth, as_ids, recall
from mmfast.search.freed import return_freed_memory

ALONE_SECONDS = 1.0  # what the queries that are sent one at a time may take in a round
MIN_ALONE, MAX_ALONE = 20, 500
SLOW_SECONDS = 15.0  # what one case may take; then it has fewer rounds, down to MIN_ROUNDS
MIN_ROUNDS = 2
ROUND_SECONDS = 0.03  # a shorter batch is repeated within a round
TOLD_SECONDS = 30.0  # between lines of progress
WARM_UP = 64  # queries before each measurement
SMALL_ROWS = 1000  # to load a library before memory is measured


class Case(NamedTuple):
    """One peer at one setting, over all rows or over those that a filter allows."""

    peer: Peer
    setting: Setting
    truth: Truth
    allowed: float = 1.0  # share of the rows
    where: Mask | None = None


class Plan(NamedTuple):
    """A case whose results are known, and how often to time it."""

    case: Case
    recall: float  # in a batch
    recall_alone: float
    alone: int  # queries to send one at a time
    rounds: int


class _Progress:
    """Says now and then how far it is, apart from the results."""

    def __init__(self) -> None:
        self._told = time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._told >= TOLD_SECONDS:
            self._told = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def measure(cases: Sequence[Case], data: Data, k: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Return one record per case."""
    tell = _Progress()
    plans = []
    for number, case in enumerate(cases):
        tell(f"tried {number} of {len(cases)} settings")
        plans.append(_plan(case, data, k, threads, rounds))
    batch: list[list[float]] = [[] for _ in plans]
    alone: list[list[float]] = [[] for _ in plans]
    for turn in range(rounds):
        first = turn * len(plans) // rounds
        for done, place in enumerate([*range(first, len(plans)), *range(first)]):
            tell(f"round {turn + 1} of {rounds}: timed {done} of {len(plans)} settings")
            plan = plans[place]
            if turn < plan.rounds:
                batch[place].append(_time_batch(plan.case, data.queries, k, threads))
                alone[place].append(_time_alone(plan.case, data.queries[: plan.alone], k, threads)[0])
    return [_record(plan, data, *times) for plan, *times in zip(plans, batch, alone, strict=True)]


def _plan(case: Case, data: Data, k: int, threads: int, rounds: int) -> Plan:
    queries = data.queries
    ids = as_ids(_search(case, k, threads)(queries), len(queries))
    in_batch = _time_batch(case, queries, k, threads)
    each, _ = _time_alone(case, queries[:MIN_ALONE], k, threads)
    count = min(len(queries), MAX_ALONE, max(MIN_ALONE, int(ALONE_SECONDS / each)))
    _, lone = _time_alone(case, queries[:count], k, threads)
    # Fewer queries are sent one at a time than in the batch, so what is measured on them is how much they differ there.
    found, found_alone, found_same = (
        recall(data, case.truth, part, case.where) for part in (ids, as_ids(lone, count), ids[:count])
    )
    affordable = int(SLOW_SECONDS / (in_batch + each * count))
    return Plan(case, found, found + found_alone - found_same, count, min(rounds, max(MIN_ROUNDS, affordable)))


def _search(case: Case, k: int, threads: int) -> Search:
    return case.peer.searcher(case.setting, k, threads, case.where)


def _time_batch(case: Case, queries: Floats, k: int, threads: int) -> float:
    """Return the seconds of one call with all queries."""
    search = _search(case, k, threads)
    search(queries[:WARM_UP])
    repeats, start = 0, time.perf_counter()
    while repeats == 0 or time.perf_counter() - start < ROUND_SECONDS:
        search(queries)
        repeats += 1
    return (time.perf_counter() - start) / repeats


def _time_alone(case: Case, queries: Floats, k: int, threads: int) -> tuple[float, list[Any]]:
    """Return the mean seconds of one query, each in a call of its own, and what was found."""
    search = _search(case, k, 1 if case.peer.one_thread_alone else threads)
    single = [queries[row : row + 1] for row in range(len(queries))]
    for query in single[:WARM_UP]:
        search(query)
    start = time.perf_counter()
    found = [search(query) for query in single]
    return (time.perf_counter() - start) / len(single), found


def _record(plan: Plan, data: Data, batch: Sequence[float], alone: Sequence[float]) -> dict[str, Any]:
    return {
        "provider": plan.case.peer.name,
        "setting": plan.case.setting,
        "allowed": plan.case.allowed,
        "batch": len(data.queries),
        "recall": plan.recall,
        "best": min(batch),
        "median": statistics.median(batch),
        "queries_alone": plan.alone,
        "recall_alone": plan.recall_alone,
        "best_alone": min(alone),
        "median_alone": statistics.median(alone),
        "rounds": plan.rounds,
    }


def memory(name: str, path: Path, metric: str, threads: int) -> int | None:
    """Return by how many bytes an index of the rows in ``path`` raises the resident set of a fresh process.

    None where the kernel has no /proc to tell.
    """
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.search_run", name, str(path), metric, str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def _measure_memory(name: str, path: Path, metric: str, threads: int) -> int:
    rows = np.load(path)
    build(make_peers()[name], rows[:SMALL_ROWS], metric, threads)  # loads the library and starts its threads
    peer = make_peers()[name]
    before = _resident()
    build(peer, rows, metric, threads)
    return _resident() - before


def _resident() -> int:
    gc.collect()
    return_freed_memory()
    return status("VmRSS")


def main(arguments: list[str]) -> None:
    """Print the memory of one index; see the module's docstring for the arguments."""
    name, path, metric, threads = arguments
    print(_measure_memory(name, Path(path), metric, int(threads)))


if __name__ == "__main__":
    main(sys.argv[1:])
