"""The durable store, killed and interrupted: what was acknowledged is there, and no batch by half.

The changes are a function of the version alone, so a second process can tell from the version what must be there.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast.search.conditions import col
from mmfast.search.truth import Truth
from tests.stores import ids_where, kill_again_and_again

SETTINGS: dict[str, object] = {"ndim": 32, "dtype": "bf16"}
BATCH = 40
State = dict[Any, tuple[int, Any]]


def change(version: int, kind: str, state: State) -> tuple[str, list[Any], Any]:
    """Return the name of the change that makes ``version`` from ``state``, its keys, and their metadata."""
    chosen = random.Random(version)
    held = sorted(state, key=str)
    if len(held) > 600:
        return "remove", chosen.sample(held, 300), None
    if len(held) >= BATCH and version % 4 == 2:
        return "remove", chosen.sample(held, BATCH // 2), None
    if len(held) >= BATCH and version % 4 == 3:
        return "update_metadata", chosen.sample(held, BATCH), [{"version": version}] * BATCH
    numbers = chosen.sample(range(10_000), BATCH)
    keys = numbers if kind == "int" else [f"key {number}" for number in numbers]
    return "upsert", keys, [{"version": version, "made": version}] * BATCH


def advance(state: State, version: int, kind: str) -> None:
    """Make the change in a dict: key -> (the value of its whole vector, its metadata)."""
    name, keys, metadata = change(version, kind, state)
    for position, key in enumerate(keys):
        if name == "remove":
            del state[key]
        elif name == "upsert":
            state[key] = (version % 2**15, metadata[position])
        else:
            state[key] = (state[key][0], {**state[key][1], **metadata[position]})


def carry_out(truth: Truth, version: int, kind: str, state: State) -> int:
    """Make the change in the store."""
    name, keys, metadata = change(version, kind, state)
    if name == "remove":
        return truth.remove(keys)
    if name == "update_metadata":
        return truth.update_metadata(keys, metadata)
    return truth.upsert(keys, np.full((len(keys), 32), version % 2**15, dtype=np.int16), metadata)


def check(truth: Truth, state: State) -> None:
    """Check that the store holds ``state``, all of it and nothing else."""
    keys = list(truth)
    assert len(truth) == len(keys)
    assert set(keys) == set(state)
    stored = truth.get(keys)
    assert (stored == stored[:, :1]).all()
    assert stored[:, 0].tolist() == [state[key][0] for key in keys]
    assert truth.metadata(keys) == [state[key][1] for key in keys]
    assert len(ids_where(truth, col("version") >= 0)) == len(keys)
    assert truth.verify() == []


def write_until_killed(folder: Path, kind: str, known: int, state: State, acknowledge: int) -> None:
    """Change the store without end, in a child, writing each version that was acknowledged to a pipe."""
    truth = Truth.open(folder)
    version = known
    while True:
        assert carry_out(truth, version + 1, kind, state) == version + 1
        version += 1
        advance(state, version, kind)
        os.write(acknowledge, version.to_bytes(8, "little"))


def outlive_kills(folder: Path, kind: str, times: int) -> None:
    Truth.open(folder, SETTINGS, key_kind=kind).close()
    version = 0
    state: State = {}

    def look(acknowledged: int) -> None:
        nonlocal version
        with Truth.open(folder) as truth:
            # One change may have been committed whose acknowledgement was cut off.
            assert acknowledged <= truth.version <= acknowledged + 1
            while version < truth.version:
                version += 1
                advance(state, version, kind)
            check(truth, state)

    kill_again_and_again(
        times,
        lambda share: share * 0.06,
        lambda acknowledge: write_until_killed(folder, kind, version, state, acknowledge),
        look,
    )
    assert version >= times


@pytest.mark.parametrize("kind", ["int", "str"])
def test_what_was_acknowledged_outlives_a_kill(kind: str, tmp_path: Path) -> None:
    outlive_kills(tmp_path / "index", kind, 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int", "str"])
def test_what_was_acknowledged_outlives_many_kills(kind: str, tmp_path: Path) -> None:
    outlive_kills(tmp_path / "index", kind, 100)


def test_a_large_batch_killed_midway_is_not_there(tmp_path: Path) -> None:
    """A batch of many times the page cache, part of which is in the log when the process dies."""
    folder = tmp_path / "index"
    with Truth.open(folder, {"ndim": 1000, "dtype": "bf16"}, key_kind="int") as truth:
        truth.add(range(10), np.ones((10, 1000), dtype=np.int16))
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            truth = Truth.open(folder)
            truth.add(range(10, 60_000), np.zeros((59_990, 1000), dtype=np.int16))
        os._exit(1)
    log = folder / "truth.sqlite-wal"
    while not log.exists() or log.stat().st_size < 20_000_000:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with Truth.open(folder) as truth:
        assert (len(truth), truth.version, list(truth)) == (10, 1, list(range(10)))
        assert truth.verify() == []
        truth.add(range(10, 1000), np.zeros((990, 1000), dtype=np.int16))
        assert len(truth) == 1000


def test_any_beginning_of_the_log_is_some_whole_version(tmp_path: Path) -> None:
    """What a loss of power leaves of a log that was not yet synced: its beginning, or torn pages in it."""
    folder = tmp_path / "index"
    states: list[State] = [{}]
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            truth = Truth.open(folder, SETTINGS, key_kind="str")
            state: State = {}
            for version in range(1, 11):
                carry_out(truth, version, "str", state)
                advance(state, version, "str")
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    for version in range(1, 11):
        states.append(dict(states[-1]))
        advance(states[-1], version, "str")
    log = (folder / "truth.sqlite-wal").read_bytes()
    chosen = random.Random(5)
    seen = set()
    for _ in range(30):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm", "writer.lock"))
        if chosen.random() < 0.7:
            left = log[: chosen.randrange(len(log))]
        else:
            page = chosen.randrange(32 // 16384, len(log) // (16384 + 24)) * (16384 + 24) + 32
            left = log[: page + 4096] + bytes(4096) + log[page + 8192 :]
        (copy / "truth.sqlite-wal").write_bytes(left)
        with Truth.open(copy) as truth:
            seen.add(truth.version)
            check(truth, states[truth.version])
    assert len(seen) > 5


class AlarmError(Exception):
    """What the handler of an alarm raises."""


@pytest.mark.parametrize("kind", ["int", "str"])
def test_an_interrupted_call_is_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    def ring(*_: object) -> None:
        raise AlarmError

    chosen = random.Random(11)
    before = signal.signal(signal.SIGALRM, ring)
    state: State = {}
    version = interrupted = 0
    gc.disable()  # an alarm within a callback of its that another library has set would be nobody's
    try:
        with Truth.open(tmp_path / "index", SETTINGS, key_kind=kind) as truth:
            for _ in range(150):
                with suppress(AlarmError):
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 1e-5 + chosen.random() * 0.006)
                        carry_out(truth, version + 1, kind, state)
                        list(truth.rows(block=50))
                        truth.metadata(list(truth)[:100])
                    except AlarmError:
                        interrupted += 1
                        raise
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                assert truth.version in (version, version + 1)
                if truth.version > version:
                    version += 1
                    advance(state, version, kind)
                assert len(truth) == len(state)
            check(truth, state)
            gc.collect()  # an interrupt at the very moment can leave it a connection to close
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 10
    assert version > 10
    assert sorted(os.listdir(tmp_path / "index")) == ["truth.sqlite", "writer.lock"]


def test_readers_in_other_processes_see_whole_commits_only(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Truth.open(folder, SETTINGS, key_kind="int").close()
    read, write = os.pipe()

    def look() -> None:
        """Open, look and close, again and again, while the writer opens and closes as well."""
        os.close(write)
        os.set_blocking(read, False)
        while True:
            with Truth.open(folder, read_only=True) as truth:
                for _ in range(5):
                    changes = truth.changes(0)
                    assert changes is not None
                    values, counts = np.unique(changes.stored[:, 0], return_counts=True)
                    assert (counts == 30).all(), counts
                    assert values.tolist() == list(range(1, changes.version + 1))
            with suppress(BlockingIOError):
                if os.read(read, 1) == b"":  # the writer is done
                    os._exit(0)

    children = [_fork(look) for _ in range(2)]
    os.close(read)
    version = 0
    for _ in range(6):
        with Truth.open(folder) as truth:
            for _ in range(6):
                version += 1
                stored = np.full((30, 32), version, dtype=np.int16)
                truth.add(range(version * 30, version * 30 + 30), stored)
    os.close(write)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child
