"""The durable index when memory or disk run out, or Ctrl-C comes: nothing is lost, doubled or half done."""

from __future__ import annotations

import os
import pkgutil
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast import Index
from mmfast.search import folding, graph, storage
from mmfast.search.durable import DurableIndex
from mmfast.search.truth import Truth
from tests.test_index import gaussian
from tests.test_index_interrupts import pressing

ROWS = gaussian(4000, 6)


@pytest.fixture
def index(folder: Path) -> Iterator[DurableIndex]:
    with Index.open(folder, 6, "l2sq", "f32", key_kind="str") as made:
        made.add(names(range(20)), ROWS[:20])
        yield made


def names(numbers: Any) -> list[str]:
    return [f"{n}" for n in numbers]


def check(index: DurableIndex, present: dict[str, int]) -> None:
    """Check that just these keys are there and found, with these of the rows."""
    assert (len(index), set(index)) == (len(present), set(present))
    found = index.search(ROWS[list(present.values())], 1, exact=True)
    assert found.keys[:, 0].tolist() == list(present)
    assert (found.distances == 0).all()
    assert set(index.search(ROWS[0], len(present) + 9, exact=True).keys.tolist()) == {*present, None}
    assert index.stats()["rows"] == len(present)
    assert index.verify() == []


def failing_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException) -> None:
    real, left = getattr(owner, name), [error]

    def call(*args: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("then", ["search", "add", "remove", "build", "compact", "range_search", "close"])
@pytest.mark.parametrize("step", ["add", "upsert", "remove"])
def test_a_commit_that_did_not_reach_the_engine_is_caught_up(
    step: str, then: str, index: DurableIndex, folder: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    index.search(ROWS[0], 1)
    present = {f"{n}": n for n in range(20)}
    if step == "remove":
        failing_once(monkeypatch, Truth, "changes", MemoryError())
        assert index.remove(["3"]) == 1
        del present["3"]
    else:
        failing_once(monkeypatch, Index, "_put_stored", MemoryError())
        index.add("new", ROWS[30]) if step == "add" else index.upsert(["3", "new"], ROWS[[31, 30]])
        present |= {"new": 30} | ({"3": 31} if step == "upsert" else {})
    assert "is committed, but not yet found by searches" in caplog.text
    if then == "search":
        assert set(index.search(ROWS[0], 50).keys.tolist()) == {*present, None}
    elif then == "range_search":
        assert set(index.range_search(ROWS[0], 1e9).keys.tolist()) == set(present)
    elif then == "add":
        index.add("newer", ROWS[40])
        present["newer"] = 40
    elif then == "remove":
        index.remove("4")
        del present["4"]
    elif then == "build":
        index.build()
    elif then == "compact":
        index.compact()
    else:
        index.close()
        index = Index.open(folder)
    with index:
        check(index, present)
        index.upsert(["5", "last"], ROWS[[50, 51]])
        check(index, {**present, "5": 50, "last": 51})


def test_a_batch_that_half_reached_the_engine_is_not_found_twice(
    index: DurableIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Index.open(folder, read_only=True)
    index.remove("3")
    reader.search(ROWS[0], 1)
    present = {f"{n}": n for n in range(20) if n != 3}
    for number, each in enumerate((index, reader)):
        present[f"new {number}"] = 30 + number
        failing_once(monkeypatch, np, "append", MemoryError())  # after the rows were written into the tail
        if each is reader:
            monkeypatch.undo()
            index.add(f"new {number}", ROWS[30 + number])
            failing_once(monkeypatch, np, "append", MemoryError())
            with pytest.raises(MemoryError):
                reader.search(ROWS[0], 1)
        else:
            index.add(f"new {number}", ROWS[30 + number])
        monkeypatch.undo()
        check(each, present)
    check(index, present)
    reader.close()


STEPS = [
    ("add", "mmfast.search.tail.Tail.append"),
    ("add", "mmfast.search.truth.Truth.add"),
    ("upsert", "mmfast.search.state.State.without"),
    ("upsert", "mmfast.search.durable.DurableIndex._name"),
    ("remove", "mmfast.search.truth.Truth.remove"),
    ("remove", "mmfast.search.state.State.without"),
    ("build", "mmfast.search.folding._install"),
    ("build", "mmfast.search.storage.write_atomically"),
    ("build", "os.replace"),
    ("compact", "mmfast.search.truth.Truth.trim"),
    ("follow", "mmfast.search.truth.Truth.changes"),
    ("follow", "mmfast.search.tail.Tail.append"),
    ("open", "mmfast.search.truth.Truth.changes"),
]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("method", "step"), STEPS)
def test_ctrl_c_leaves_nothing_half_done(
    method: str, step: str, before: bool, index: DurableIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.build()
    reader = Index.open(folder, read_only=True)
    reader.search(ROWS[0], 1)
    index.upsert(["0", "20"], ROWS[[60, 20]])
    present = {**{f"{n}": n for n in range(21)}, "0": 60}
    module, _, name = step.rpartition(".")
    monkeypatch.setattr(step, pressing(getattr(pkgutil.resolve_name(module), name), before))
    change: dict[str, Callable[[], object]] = {
        "add": lambda: index.add(["a", "b"], ROWS[[70, 71]]),
        "upsert": lambda: index.upsert(["1", "a"], ROWS[[70, 71]]),
        "remove": lambda: index.remove(["0", "5"]),
        "build": index.build,
        "compact": index.compact,
        "follow": lambda: reader.search(ROWS[0], 1),
        "open": lambda: Index.open(folder, read_only=True),
    }
    with pytest.raises(KeyboardInterrupt):
        change[method]()
    monkeypatch.undo()
    if len(index) != 21:
        present |= {"add": {"a": 70, "b": 71}, "upsert": {"1": 70, "a": 71}}.get(method, {})
        present = {key: row for key, row in present.items() if method != "remove" or key not in ("0", "5")}
    assert sorted(os.listdir(folder))[0] == "snapshot.index"  # and nothing left over
    for each in (index, reader):
        check(each, present)
    index.remove(["7"])
    index.add(["7"], ROWS[[80]])
    index.close()
    with Index.open(folder) as index:
        for each in (index, reader):
            check(each, {**present, "7": 80})
    reader.close()


def test_a_handler_may_use_the_index_that_it_interrupts(index: DurableIndex, folder: Path) -> None:
    calls: list[int] = []

    def ring(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        index.upsert("rung", ROWS[900 + len(calls)])
        assert index.search(ROWS[900 + len(calls)], 1).keys.tolist() == ["rung"]
        assert reader.search(ROWS[900 + len(calls)], 1).keys.tolist() == ["rung"]
        calls.append(1)
        signal.setitimer(signal.ITIMER_REAL, 0.007)

    before = signal.signal(signal.SIGALRM, ring)
    with Index.open(folder, read_only=True) as reader:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            for number in range(60):
                index.add(f"n {number}", ROWS[100 + number])
                reader.search(ROWS[0], 1)
                index.remove(f"n {number}")
                if number % 20 == 0:
                    index.compact()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert calls
        present = {**{f"{n}": n for n in range(20)}, "rung": 899 + len(calls)}
        assert index.search(ROWS[899 + len(calls)], 1).keys.tolist() == ["rung"]
        check(index, present)
        check(reader, present)


def test_an_interrupt_ends_a_build(folder: Path) -> None:
    """As what it is, not as an error of USearch."""
    rows = gaussian(30_000, 16)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    with Index.open(folder, 16, progress=False) as index:
        index._engine._folding._stopped.set()  # none in the background
        index.add(range(30_000), rows)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                index.build()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert index.stats()["tail"] == 30_000
        assert sorted(os.listdir(folder))[0] == "truth.sqlite"


def in_a_child(work: Callable[[], None]) -> None:
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_more_within_a_radius_than_memory_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "radius must be smaller, or queries fewer: what 4,000 queries find within 1000.0 exceeds the memory"

    def work() -> None:
        plain.range_search(ROWS, 0.0)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 10**8, resource.RLIM_INFINITY))
        with pytest.raises(MemoryError, match=message):
            plain.range_search(ROWS, 1e3)  # 448 MB
        assert plain.range_search(ROWS[:10], 1e3).offsets[-1] == 40_000

    plain = Index(6, "l2sq", "f32")
    plain.add(range(4000), ROWS)
    if Path("/proc/self/statm").exists():
        in_a_child(work)
    with Index.open(folder, 6, "l2sq", "f32", key_kind="str") as durable:
        durable.add("a", ROWS[0])
        failing_once(monkeypatch, DurableIndex, "_keys_of", MemoryError())
        with pytest.raises(MemoryError, match=message):
            durable.range_search(ROWS, 1e3)


def test_a_disk_that_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 1000)
    monkeypatch.setattr(graph, "EXACT_ROWS", 10**9)
    with Index.open(folder, 6, "l2sq", "f32") as index:
        index.add(range(900), ROWS[:900])
        index.build()
    old = (folder / "snapshot.index").read_bytes()

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def work() -> None:
        with Index.open(folder) as index:
            limit(30_000)
            with pytest.raises(OSError, match=r"truth\.sqlite"):
                index.add(range(1000, 4000), ROWS[1000:])
            with pytest.raises(OSError):
                index.build()
            assert (len(index), index.stats()["rows"]) == (900, 900)
            limit(resource.RLIM_INFINITY)
            index.upsert(range(1000, 2500), ROWS[1000:2500])
            index._engine._folding.stop()

    def fail_in_the_background() -> None:
        with Index.open(folder) as index:
            write = storage.write_atomically

            def limited(*args: Any) -> None:
                limit(30_000)
                try:
                    write(*args)
                finally:
                    limit(resource.RLIM_INFINITY)

            storage.write_atomically = limited  # type: ignore[assignment]
            index.add(range(1000, 2500), ROWS[1000:2500])
            with index._engine._folding._running:
                pass
            assert index.stats()["tail"] == 0
            assert index.search(ROWS[2000], 1).keys.tolist() == [2000]
            index.add(4000, ROWS[3999])
            assert index.verify() == []

    in_a_child(fail_in_the_background)
    assert (folder / "snapshot.index").read_bytes() == old
    assert not list(folder.glob(".mmfast-*"))
    with Index.open(folder) as index:
        assert len(index) == 2401
        assert index.search(ROWS[2000], 1).keys.tolist() == [2000]
        index.remove(range(1000, 2500))
        index.remove(4000)
    in_a_child(work)
    with Index.open(folder) as index:
        assert sorted(index.keys().tolist()) == [*range(900), *range(1000, 2500)]
        assert index.search(ROWS[1000:2500], 1, exact=True).keys[:, 0].tolist() == list(range(1000, 2500))
        assert index.verify() == []


def test_no_room_for_a_snapshot_at_opening(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Index.open(folder, 6, "l2sq", "f32") as index:
        index.add(range(900), ROWS[:900])
    monkeypatch.setattr(folding, "LEAST_ROWS", 500)
    failing_once(monkeypatch, storage, "write_atomically", OSError(28, "No space left on device"))
    with Index.open(folder) as index:
        assert index.search(ROWS[:900], 1, exact=True).keys[:, 0].tolist() == list(range(900))
        index.remove(range(100))
        assert (len(index), index.verify()) == (800, [])
