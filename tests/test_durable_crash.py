"""The durable index, killed at random moments: what was acknowledged is there and is found, and nothing is half done.

The changes are a function of the version alone, so a second process can tell from the version what must be there.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmfast import Index, col
from mmfast.search import folding, graph
from mmfast.search.durable import DurableIndex
from tests.stores import kill_again_and_again

NDIM, BATCH = 8, 60
State = dict[Any, tuple[int, Any]]  # key -> (the version of its vector, its metadata)


def vector(key: Any, version: int) -> npt.NDArray[np.float32]:
    seed = int(str(key).split()[-1]) * 1_000_003 + version
    return np.random.default_rng(seed).standard_normal(NDIM).astype(np.float32)


def change(version: int, kind: str, state: State) -> tuple[str, list[Any], Any]:
    """Return the name of the change that makes ``version`` from ``state``, its keys, and their metadata."""
    chosen = random.Random(version)
    held = sorted(state, key=str)
    if len(held) > 900:
        return "remove", chosen.sample(held, 600), None
    if len(held) >= BATCH and version % 5 == 2:
        return "remove", chosen.sample(held, BATCH // 2), None
    if len(held) >= BATCH and version % 5 == 3:
        return "update_metadata", chosen.sample(held, BATCH), [{"version": version}] * BATCH
    numbers = chosen.sample(range(5000), BATCH)
    keys: list[Any] = numbers if kind == "int" else [f"key {number}" for number in numbers]
    if version % 5 == 4:
        keys = [key for key in keys if key not in state]
        return "add", keys, None
    return "upsert", keys, [{"version": version}] * BATCH


def advance(state: State, version: int, kind: str) -> None:
    name, keys, metadata = change(version, kind, state)
    for position, key in enumerate(keys):
        if name == "remove":
            del state[key]
        elif name == "update_metadata":
            state[key] = (state[key][0], {**(state[key][1] or {}), **metadata[position]})
        else:
            state[key] = (version, metadata[position] if metadata else None)


def carry_out(index: DurableIndex, version: int, kind: str, state: State) -> None:
    name, keys, metadata = change(version, kind, state)
    if name == "remove":
        assert index.remove(keys) == len(keys)
    elif name == "update_metadata":
        index.update_metadata(keys, metadata)
    else:
        rows = np.array([vector(key, version) for key in keys])
        index.upsert(keys, rows, metadata) if name == "upsert" else index.add(keys, rows)


def check(index: DurableIndex, state: State) -> None:
    """Check that the index holds ``state``, all of it and nothing else, and finds it."""
    keys = list(index)
    assert len(index) == len(keys) == len(state) == index.stats()["rows"]
    assert set(keys) == set(state)
    if keys:
        rows = np.array([vector(key, state[key][0]) for key in keys])
        np.testing.assert_array_equal(index.get(keys), rows)
        found = index.search(rows, 1, exact=True)
        assert found.keys[:, 0].tolist() == keys
        assert (found.distances == 0).all()
        everything = index.search(rows[0], len(keys) + 1, exact=True).keys.tolist()
        assert set(everything) == {*keys, -1 if index.key_kind == "int" else None}
    assert index.metadata(keys) == [state[key][1] for key in keys]
    described = {key for key in keys if state[key][1]}
    conforming = index.search(np.ones(NDIM), len(described) + 5, where=col("version") >= 0).keys.tolist()
    assert set(conforming[: len(described)]) == described
    assert index.verify() == []


def write_until_killed(folder: Path, kind: str, known: int, state: State, acknowledge: int) -> None:
    """Change the index without end, in a child, writing each version that was acknowledged to a pipe."""
    index = Index.open(folder)
    version = known
    while True:
        carry_out(index, version + 1, kind, state)
        assert index.stats()["version"] == version + 1
        version += 1
        advance(state, version, kind)
        os.write(acknowledge, version.to_bytes(8, "little"))
        if version % 23 == 0:
            index.build()
        if version % 31 == 0:
            index.compact()


def outlive_kills(folder: Path, kind: str, times: int) -> None:
    Index.open(folder, NDIM, "l2sq", "f32", key_kind=kind).close()
    version = 0
    state: State = {}

    def look(acknowledged: int) -> None:
        nonlocal version
        with Index.open(folder) as index:
            # One change may have been committed whose acknowledgement was cut off.
            reached = index.stats()["version"]
            assert acknowledged <= reached <= acknowledged + 1
            while version < reached:
                version += 1
                advance(state, version, kind)
            check(index, state)
        assert not list(folder.glob(".mmfast-*"))

    kill_again_and_again(
        times,
        lambda share: share**2 * 0.2,
        lambda acknowledge: write_until_killed(folder, kind, version, state, acknowledge),
        look,
    )
    assert version >= times


@pytest.fixture(autouse=True)
def _early_graphs(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 100)
    monkeypatch.setattr(graph, "EXACT_ROWS", 300)
    monkeypatch.setattr(graph, "HELD_BACK", 20)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_what_was_acknowledged_outlives_a_kill(kind: str, tmp_path: Path) -> None:
    outlive_kills(tmp_path / "index", kind, 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int", "str"])
def test_what_was_acknowledged_outlives_many_kills(kind: str, tmp_path: Path) -> None:
    outlive_kills(tmp_path / "index", kind, 50)


def test_what_a_killed_writer_left_of_a_snapshot_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    with Index.open(folder, NDIM) as index:
        index.add(range(50), np.random.default_rng(0).standard_normal((50, NDIM)))
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            index = Index.open(folder)
            os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            index.build()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(folder.glob(".mmfast-*.tmp"))) == 1
    with Index.open(folder, read_only=True) as index:
        assert len(index) == 50
    assert len(list(folder.glob(".mmfast-*.tmp"))) == 1
    with Index.open(folder) as index:
        assert len(index) == 50
        assert not list(folder.glob(".mmfast-*.tmp"))


class AlarmError(Exception):
    """What the handler of an alarm raises."""


# Python drops what a handler raises within the callback of a weak reference.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["int", "str"])
@pytest.mark.parametrize("times", [80, pytest.param(700, marks=pytest.mark.slow)])
def test_an_interrupted_call_is_whole_or_not_at_all(kind: str, times: int, tmp_path: Path) -> None:
    def ring(*_: object) -> None:
        raise AlarmError

    chosen = random.Random(times)
    before = signal.signal(signal.SIGALRM, ring)
    state: State = {}
    version = interrupted = 0
    folder = tmp_path / "index"
    index = Index.open(folder, NDIM, "l2sq", "f32", key_kind=kind)
    reader = Index.open(folder, read_only=True)
    try:
        for step in range(times):
            try:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-5 + chosen.random() ** 2 * 0.015)
                    carry_out(index, version + 1, kind, state)
                    reader.search(np.ones((3, NDIM)), 5)
                    if step % 7 == 0:
                        index.build()
                    if step % 11 == 0:
                        index.compact()
                    Index.open(folder, read_only=True).close()
                finally:  # which may itself be interrupted
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except AlarmError:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupted += 1
            reached = index.stats()["version"]
            assert reached in (version, version + 1)
            if reached > version:
                version += 1
                advance(state, version, kind)
            if step % 10 == 9:
                for each in (index, reader):
                    check(each, state)
        gc.collect()  # an interrupt at the very moment can leave it a connection to close
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert min(interrupted, version) > 10
    reader.close()
    index.close()
    with Index.open(folder) as index:
        check(index, state)
    assert sorted(os.listdir(folder)) == ["snapshot.index", "truth.sqlite", "writer.lock"]
