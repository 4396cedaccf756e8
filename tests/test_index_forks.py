"""Children of forks that are made while threads of their parent are at work in an index: they inherit no thread."""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from mmfast import Index, exact_search
from tests.test_index import gaussian

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def in_a_child(work: Callable[[], bool]) -> bool:
    """Tell whether ``work`` is true in the child of a fork; one that hangs is killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with suppress(BaseException):
            os._exit(not work())
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_asks_for_what_a_thread_of_its_parent_was_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    index, begun, ended, argsort = Index(3), threading.Event(), threading.Event(), np.argsort
    index.add([5, 6], gaussian(2, 3))

    def waiting(*args: Any, **options: Any) -> Any:
        begun.set()
        ended.wait(60)
        return argsort(*args, **options)

    monkeypatch.setattr(np, "argsort", waiting)
    thread = threading.Thread(target=lambda: 5 in index)
    thread.start()
    try:
        assert begun.wait(60)
        monkeypatch.undo()
        assert in_a_child(lambda: 5 in index and 7 not in index)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize(
    "step", ["mmfast.search.tail.Tail._larger", "mmfast.search.image.Image.write", "mmfast.search.tail.Tail.append"]
)
def test_a_child_is_made_amid_a_change(step: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gaussian(600, 3)
    index, begun, ended = Index(3, "l2sq", "f32"), threading.Event(), threading.Event()
    index.add(range(first), rows[:first])
    path, _, name = step.rpartition(".")
    real = getattr(pkgutil.resolve_name(path), name)

    def pausing(*args: Any) -> Any:
        result = real(*args)
        begun.set()
        ended.wait(60)
        return result

    def change() -> bool:
        index.add([6, 7], rows[6:8])
        index.remove(7)
        held = [*range(first), 6]
        found = index.search(rows[held], 1, exact=True)
        return bool(sorted(index.keys().tolist()) == held == found.keys[:, 0].tolist())

    monkeypatch.setattr(step, pausing)
    thread = threading.Thread(target=index.add, args=(range(100, 600), rows[100:]))
    thread.start()
    try:
        assert begun.wait(60)
        monkeypatch.undo()
        assert in_a_child(change)
    finally:
        ended.set()
        thread.join()
    assert len(index) == first + 500


def test_a_child_ends_while_it_builds_whatever_its_parent_was_starting() -> None:
    program = """
import os, sys, threading, numpy as np, mmfast
from mmfast.search import folding
folding.LEAST_ROWS = 1000
rows = np.random.default_rng(0).standard_normal((12_000, 32))
begun, ended, start = threading.Event(), threading.Event(), threading.Thread.start
def starting(thread):
    if thread.name == "mmfast-build" and os.getpid() == parent:
        begun.set()
        ended.wait(60)
    start(thread)
parent, threading.Thread.start = os.getpid(), starting
index = mmfast.Index(32)
thread = threading.Thread(target=index.add, args=(range(12_000), rows))
thread.start()
begun.wait(60)
child = os.fork()
if child:
    ended.set()
    thread.join()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
index.add(range(20_000, 32_000), rows)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Have PyTorch compute by two threads, of which a child does not have the second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.ones(1000, 1000).double().sum()  # starts it
    yield
    torch.set_num_threads(threads)


ROWS = torch.from_numpy(gaussian(2000, 256))
LAID_OUT = {
    "float64": ROWS.double(),
    "float64 of NumPy": ROWS.double().numpy(),
    "strided": ROWS.t().contiguous().t()[:1000],
    "strided in NumPy": np.asfortranarray(ROWS.numpy()),
    "bfloat16": ROWS.bfloat16().t().contiguous().t()[:1000],
}


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("rows", LAID_OUT.values(), ids=LAID_OUT)
def test_a_child_takes_rows_of_every_layout(rows: Any) -> None:
    index = Index(256, "l2sq", "f32")
    index.add(range(2000), ROWS)

    def work() -> bool:
        found = index.search(rows, 1, exact=True).keys[:, 0].tolist()
        index.upsert(range(5000, 5000 + len(rows)), rows)
        again = exact_search(rows, rows, 1).keys[:, 0].tolist()
        return found == again == list(range(len(rows))) and torch.get_num_threads() == 2

    assert in_a_child(work)


@pytest.mark.usefixtures("two_threads")
def test_a_child_changes_what_a_thread_of_its_parent_was_changing() -> None:
    rows = gaussian(2000, 256)
    index, ended = Index(256), threading.Event()
    index.upsert(range(2000), rows)  # here, since on a busy machine the thread may be at its first when a child is made

    def work() -> None:
        while not ended.is_set():
            index.upsert(range(2000), rows)

    def change() -> bool:
        index.add(range(5000, 7000), rows)
        index.build()
        return len(index) == 4000

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(5):
            time.sleep(0.02)
            assert in_a_child(change)
    finally:
        ended.set()
        thread.join()
