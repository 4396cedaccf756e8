"""Ctrl-C, and whatever else signal handlers raise, at the worst moments: nothing is half done, and nothing is lost."""

from __future__ import annotations

import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast import Index
from mmfast.search import folding, storage
from mmfast.search.database import _Held
from mmfast.search.interrupts import uninterrupted
from tests.test_index import gaussian


class AlarmError(Exception):
    """What the handler of an alarm raises."""


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    def ring(*_: object) -> None:
        raise AlarmError

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def pressing(real: Callable[..., Any], before: bool) -> Callable[..., Any]:
    """Return ``real`` with Ctrl-C pressed before or after it."""

    def call(*args: Any, **options: Any) -> Any:
        if before:
            press_ctrl_c()
        result = real(*args, **options)
        if not before:
            press_ctrl_c()
        return result

    return call


STEPS = [
    ("add", "mmfast.search.tail.Tail.append"),
    ("add", "mmfast.search.state.State.held"),
    ("upsert", "mmfast.search.state.State.without"),
    ("upsert", "mmfast.search.tail.Tail.append"),
    ("remove", "mmfast.search.state.State.without"),
    ("build", "mmfast.search.folding._install"),
]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("method", "step"), STEPS)
def test_ctrl_c_leaves_nothing_half_done(
    method: str, step: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.concatenate([gaussian(8, 3), np.ones((4, 3), dtype=np.float32)])
    index = Index(3, "l2sq", "f32")
    index.add(range(12), rows)
    module, _, name = step.rpartition(".")
    monkeypatch.setattr(step, pressing(getattr(pkgutil.resolve_name(module), name), before))
    change = {
        "add": lambda: index.add([20, 21, 22], rows[[0, 11, 1]] + [[0], [0], [1]]),  # two copies and a new one
        "upsert": lambda: index.upsert([3, 20], rows[[0, 1]]),
        "remove": lambda: index.remove([3, 8, 9, 11]),
        "build": index.build,
    }
    with pytest.raises(KeyboardInterrupt):
        change[method]()
    monkeypatch.undo()
    present = {
        "add": {*range(12), 20, 21, 22},
        "upsert": {*range(12), 20},
        "remove": set(range(12)) - {3, 8, 9, 11},
        "build": set(range(12)),
    }[method]
    index.save(tmp_path / "index")
    for each in (index, Index.load(tmp_path / "index")):
        assert len(each) == len(present)
        assert set(each.search(np.zeros(3), 30).keys.tolist()) == {-1, *present}
        each.remove(sorted(present)[:-1])
        each.add([3], rows[[3]])
        assert len(each) == 2
        assert set(each.search(np.zeros(3), 3).keys.tolist()) == {-1, 3, max(present)}


@pytest.mark.parametrize("queries", [1, 1500])
def test_what_a_handler_raises_during_a_search_is_not_lost(queries: int, alarm: Callable[[float], None]) -> None:
    index = Index(64, "cos", "f32")
    index.add(range(1500), gaussian(1500, 64))
    asked = gaussian(queries, 64)
    with pytest.raises(AlarmError):  # noqa: PT012
        alarm(0.01)
        while True:
            index.search(asked, 1000)


def test_the_work_is_complete_before_an_interrupt_is_raised(alarm: Callable[[float], None]) -> None:
    done = []

    def work() -> None:
        alarm(0.01)
        time.sleep(0.03)
        press_ctrl_c()
        time.sleep(0.03)
        done.append(lock.locked())

    lock = threading.Lock()
    with pytest.raises(AlarmError):  # the first
        uninterrupted(lock, work)
    assert done == [True]
    assert not lock.locked()


def test_a_build_is_given_up(alarm: Callable[[float], None]) -> None:
    index = Index(16)
    index.add(range(20_000), gaussian(20_000, 16))
    index._folding.stop()
    with pytest.raises(AlarmError):  # noqa: PT012
        alarm(0.05)
        while True:
            index.build()
    assert len(index) == 20_000
    index.build()
    assert index.stats()["graph"] == 20_000


def test_results_and_errors_come_through() -> None:
    lock = threading.Lock()

    def fail() -> None:
        raise ZeroDivisionError

    def fail_and_press() -> None:
        press_ctrl_c()
        fail()

    assert uninterrupted(lock, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        uninterrupted(lock, fail)
    with pytest.raises(KeyboardInterrupt) as caught:
        uninterrupted(lock, fail_and_press)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not lock.locked()


def test_no_thread_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    index = Index(3)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        index.add(1, np.ones(3))
    monkeypatch.undo()
    assert len(index) == 0
    index.add(1, np.ones(3))


def test_work_is_done_while_the_interpreter_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr("_thread.start_new_thread", refuse)
    index = Index(3)
    index.add(1, np.ones(3))
    assert len(index) == 1


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), ImportError("no usearch")])
def test_a_change_is_made_whether_or_not_a_graph_can_be_built(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, folder: Path
) -> None:
    rows = gaussian(20_000, 4)
    with Index.open(folder, 4) as durable:
        for index in (Index(4), durable):
            with monkeypatch.context() as patch:
                if isinstance(error, ImportError):
                    patch.setitem(sys.modules, "usearch.index", None)
                else:
                    patch.setattr("threading.Thread.start", lambda _: (_ for _ in ()).throw(error))
                index.add(range(20_000), rows)
            assert len(index) == 20_000
            assert "failed to start" in caplog.text
            caplog.clear()
            assert index.stats()["graph"] == 0
            index.upsert(0, rows[0])  # tries again
            while not index.stats()["graph"]:
                time.sleep(0.01)


def test_a_handler_may_use_the_index_that_it_interrupts(tmp_path: Path, alarm: Callable[[float], None]) -> None:
    # As one that saves before the process ends: it waits its turn.
    index = Index(64, "cos", "f32")
    sizes = []

    def save(*_: object) -> None:
        index.save(tmp_path / "index")
        sizes.append(len(Index.load(tmp_path / "index")))

    signal.signal(signal.SIGALRM, save)
    alarm(0.02)
    rows = gaussian(100, 64)
    for start in range(0, 100_000, 100):
        index.add(range(start, start + 100), rows + start)
        if sizes:
            break
    assert sizes[0] in (start, start + 100)


def test_a_handler_may_build_while_it_interrupts_a_build(alarm: Callable[[float], None]) -> None:
    rows = gaussian(20_000, 16)
    index = Index(16, "l2sq", "f32")
    index.add(range(15_000), rows[:15_000])
    index._folding.stop()
    graphs = []

    def add_and_build(*_: object) -> None:
        index.add(range(15_000, 20_000), rows[15_000:])
        index.build()
        graphs.append(index.stats()["graph"])

    signal.signal(signal.SIGALRM, add_and_build)
    alarm(0.05)
    index.build()
    while not graphs:
        time.sleep(0.001)
    assert graphs == [20_000]
    assert len(index) == 20_000
    assert index.search(rows[::1000], 1).keys[:, 0].tolist() == list(range(0, 20_000, 1000))


def test_a_handler_may_close_an_index_that_closes(
    folder: Path, alarm: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(folder, 4)
    index.add(range(100), gaussian(100, 4))
    closed: list[bool] = []
    real = _Held.close

    def slow(held: _Held) -> None:
        monkeypatch.setattr(_Held, "close", real)
        alarm(0.01)
        time.sleep(0.1)
        real(held)

    def close(*_: object) -> None:
        index.close()
        closed.append(True)

    signal.signal(signal.SIGALRM, close)
    monkeypatch.setattr(_Held, "close", slow)
    index.close()
    assert closed
    with Index.open(folder) as again:
        assert len(again) == 100


def test_a_handler_may_close_an_index_that_builds(folder: Path, alarm: Callable[[float], None]) -> None:
    index = Index.open(folder, 16, progress=False)
    start, index._engine._folding.start = index._engine._folding.start, lambda *_: None  # type: ignore[method-assign]
    index.add(range(30_000), gaussian(30_000, 16))
    closed: list[bool] = []

    def close(*_: object) -> None:
        start(index._engine, 1)  # waits for the turn that the build has
        index.close()
        closed.append(True)

    signal.signal(signal.SIGALRM, close)
    alarm(0.1)
    with pytest.raises(InterruptedError, match="closed while its graph was built"):
        index.build()
    assert closed
    with Index.open(folder, read_only=True) as again:
        assert len(again) == 30_000


@pytest.fixture
def handled() -> Iterator[Callable[[Callable[[], object], type[BaseException]], None]]:
    """Have a handler of SIGALRM do something, and then raise."""
    before = signal.getsignal(signal.SIGALRM)

    def handle(act: Callable[[], object], error: type[BaseException]) -> None:
        def ring(*_: object) -> None:
            act()
            raise error

        signal.signal(signal.SIGALRM, ring)

    yield handle
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["close", "build"])
def test_a_handler_may_close_or_build_while_a_fold_waits_to_write(
    name: str, folder: Path, handled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, waiting, write = gaussian(4000, 4), threading.Event(), storage.write_atomically
    with Index.open(folder, 4) as index:
        index.add(range(2500), rows[:2500])
        index.build()
        handled(getattr(index, name), AlarmError)
        monkeypatch.setattr(folding, "LEAST_ROWS", 1000)
        folded = index._engine._folding.folded

        def wait() -> None:
            waiting.set()
            folded()

        def interrupted(*args: Any) -> None:
            if not waiting.is_set():
                threading.Thread(target=lambda: index.add(range(2500, 4000), rows[2500:])).start()
                assert waiting.wait(60)  # for the main thread, which is writing
                signal.raise_signal(signal.SIGALRM)
            write(*args)

        monkeypatch.setattr(index._engine._folding, "folded", wait)
        monkeypatch.setattr(storage, "write_atomically", interrupted)
        with pytest.raises(AlarmError):
            index.tune(rows[:50])
    with Index.open(folder) as index:
        assert len(index) == 4000


class LateError(TimeoutError, ValueError):
    """What might be taken for an error of a file or of a thread."""


def test_what_a_handler_raises_is_no_failure_to_start_a_build(
    handled: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ringing(*args: Any) -> Any:
        signal.raise_signal(signal.SIGALRM)
        return uninterrupted(*args)

    handled(lambda: None, LateError)
    index = Index(4)
    with monkeypatch.context() as patch:
        patch.setattr("mmfast.search.folding.uninterrupted", ringing)
        with pytest.raises(LateError):
            index.add(range(20_000), gaussian(20_000, 4))
    assert len(index) == 20_000
    assert caplog.records == []


def test_what_a_handler_raises_is_no_damage_of_a_snapshot(
    folder: Path, handled: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Index.open(folder, 4) as index:
        index.add(range(100), gaussian(100, 4))
        index.build()
    unpack = storage.unpack

    def ringing(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGALRM)
        return unpack(*args)

    handled(lambda: None, LateError)
    monkeypatch.setattr(storage, "unpack", ringing)
    with pytest.raises(LateError):
        Index.open(folder)
    assert caplog.records == []
    monkeypatch.undo()
    Index.open(folder).close()
