"""The durable index that nobody closes, in forks, and in processes that are spawned."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mmfast import Index
from mmfast.search import folding
from mmfast.search.durable import DurableIndex
from tests.test_durable_failures import ROWS, check, names


@pytest.fixture
def index(folder: Path) -> Iterator[DurableIndex]:
    with Index.open(folder, 6, "l2sq", "f32", key_kind="str") as made:
        made.add(names(range(20)), ROWS[:20])
        yield made


def test_one_that_is_forgotten_lets_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 1000)
    for number in range(3):
        index = Index.open(folder, 6, "l2sq", "f32")
        index.upsert(range(2500 + number), ROWS[: 2500 + number])
        del index
        gc.collect()
        for thread in threading.enumerate():
            if thread.name == "mmfast-build":
                thread.join()
        gc.collect()
    with Index.open(folder) as index:
        assert len(index) == 2502
        assert index.verify() == []


@pytest.mark.parametrize("when", ["at once", "while the snapshot is written"])
def test_an_interpreter_that_ends_without_a_close(when: str, folder: Path) -> None:
    code = f"""
import sys, threading, time, numpy as np
from mmfast import Index
from mmfast.search import folding, storage
folding.LEAST_ROWS = 2000
written = threading.Event()
write = storage.write_atomically
def slowly(*args):
    written.set()
    time.sleep(0.5)
    write(*args)
storage.write_atomically = slowly
index = Index.open(sys.argv[1], 6)
index.add(range(3000), np.random.default_rng(0).standard_normal((3000, 6)))
if {when!r} != "at once":
    assert written.wait(30)
"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    with Index.open(folder) as index:
        assert len(index) == 3000
        assert index.verify() == []


def test_forks_get_an_error(index: DurableIndex, folder: Path) -> None:
    index.search(ROWS[0], 1)
    reader = Index.open(folder, read_only=True)
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            for each in (index, reader):
                for use in (
                    lambda each=each: each.search(ROWS[0], 1), lambda each=each: len(each), each.build, each.stats,
                    lambda each=each: each.add("x", ROWS[0]), lambda each=each: each.remove("0"), each.verify,
                    lambda each=each: each.get("0"), lambda: Index.open(folder, read_only=True),
                ):  # fmt: skip
                    with pytest.raises(RuntimeError, match="is a fork"):
                        use()
                each.close()
            del index, reader, each
            gc.collect()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    index.add("after", ROWS[30])
    present = {**{f"{n}": n for n in range(20)}, "after": 30}
    check(index, present)
    check(reader, present)
    reader.close()


def test_a_fork_made_while_locks_are_held(index: DurableIndex) -> None:
    with index._lock, index._saving, index._engine._lock:
        child = os.fork()
        if child == 0:
            try:
                signal.alarm(20)
                for use in (lambda: index.search(ROWS[0], 1), lambda: index.add("x", ROWS[0]), index.build):
                    with suppress(RuntimeError):
                        use()
                index.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _answer(reader: DurableIndex, queue: Any) -> None:
    queue.put((reader.read_only, reader.search(ROWS[:20], 1).keys[:, 0].tolist()))


def test_spawned_processes_read(index: DurableIndex) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_answer, args=(index, queue))
    process.start()
    assert queue.get(timeout=60) == (True, names(range(20)))
    process.join()
    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(index))))
    index.add("later", ROWS[30])
    assert copy.search(ROWS[30], 1).keys.tolist() == ["later"]
    with pytest.raises(PermissionError, match="read_only"):
        copy.remove("later")
