"""The durable index in several threads: searches beside changes and builds, and a close at any time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast import Index, col
from mmfast.search import folding, graph
from mmfast.search.durable import DurableIndex
from mmfast.search.segment import Segment
from mmfast.search.state import State
from tests.test_durable_failures import ROWS, check, names

STRESSED = float(os.environ.get("MMFAST_STRESS_SECONDS", "30"))


@pytest.fixture
def index(folder: Path) -> Iterator[DurableIndex]:
    with Index.open(folder, 6, "l2sq", "f32", key_kind="str") as made:
        made.add(names(range(20)), ROWS[:20])
        yield made


@pytest.mark.parametrize("seconds", [3.0, pytest.param(STRESSED, marks=pytest.mark.slow)])
def test_threads_of_all_kinds(seconds: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that stay are found by whoever looks, whatever the others do meanwhile."""
    monkeypatch.setattr(folding, "LEAST_ROWS", 100)
    monkeypatch.setattr(graph, "EXACT_ROWS", 300)
    monkeypatch.setattr(graph, "HELD_BACK", 20)
    failures: list[BaseException] = []
    done = threading.Event()
    held: list[dict[str, int]] = [{}, {}]

    def guarded(work: Callable[[Any, int], None], number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            while not done.is_set():
                work(rng, number)
        except BaseException as error:
            failures.append(error)
            done.set()

    with Index.open(folder, 6, "l2sq", "f32", key_kind="str") as index, Index.open(folder, read_only=True) as reader:
        index.add(names(range(400)), ROWS[:400], [{"n": n} for n in range(400)])

        def write(rng: Any, number: int) -> None:
            chosen = rng.choice(1000, rng.integers(1, 120), replace=False) + 1000 * (number + 1)
            keys = names(chosen)
            index.upsert(keys, ROWS[chosen])
            gone = keys[: len(keys) // 2]
            index.remove(gone)
            held[number].update(zip(keys, chosen.tolist(), strict=True))
            for key in gone:
                del held[number][key]

        def read(rng: Any, number: int) -> None:
            each = (index, reader)[number % 2]
            chosen = rng.choice(400, 20, replace=False)
            found = each.search(ROWS[chosen], 1, exact=True)
            assert found.keys[:, 0].tolist() == names(chosen)
            found = each.search(ROWS[chosen], 5)
            assert None not in found.keys
            found = each.search(ROWS[chosen[0]], 3, where=col("n") >= 0, exact=True)
            assert found.keys[0] == f"{chosen[0]}"
            each.range_search(ROWS[chosen[0]], 1.0)
            each.get(names(chosen))

        def build(rng: Any, number: int) -> None:
            (index.build, index.compact, reader.build)[rng.integers(3)]()
            assert (index, reader)[rng.integers(2)].verify() == []

        works: list[Any] = [write, write, read, read, read, read, build]
        threads = [threading.Thread(target=guarded, args=(work, n)) for n, work in enumerate(works)]
        for thread in threads:
            thread.start()
        done.wait(seconds)
        done.set()
        for thread in threads:
            thread.join()
        assert failures == []
        present = {f"{n}": n for n in range(400)} | held[0] | held[1]
        check(index, present)
        check(reader, present)
    with Index.open(folder) as index:
        check(index, present)


def test_removing_while_a_graph_is_built(index: DurableIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment at which the new graph is put in its place falls into a change."""
    without, pressed = State.without, threading.Event()

    def slowly(*args: Any) -> Any:
        result = without(*args)
        if threading.current_thread().name != "fold" and not pressed.is_set():
            pressed.set()
            thread.join(0.3)
        return result

    def build() -> None:
        pressed.wait(5)
        index.build()

    thread = threading.Thread(target=build, name="fold")
    thread.start()
    monkeypatch.setattr(State, "without", slowly)
    index.remove(["3"])
    index.add(["after"], ROWS[[30]])
    thread.join()
    check(index, {**{f"{n}": n for n in range(20) if n != 3}, "after": 30})


def test_a_build_has_its_turn_while_graphs_are_always_due(index: DurableIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    due, folded = True, threading.Event()
    monkeypatch.setattr(folding, "reason", lambda _: "always" if due else None)
    monkeypatch.setattr(index._engine._folding, "folded", folded.set)
    index.add(["after"], ROWS[[30]])
    assert folded.wait(20)
    builder = threading.Thread(target=index.build)
    builder.start()
    builder.join(10)
    waits, due = builder.is_alive(), False
    builder.join()
    assert not waits


def test_closing_while_a_graph_is_built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 2000)
    monkeypatch.setattr(folding, "_TAIL_SHARE", 10**6)
    for number in range(4):
        index = Index.open(folder, 6, "l2sq", "f32")
        index.upsert(range(number * 500, 2500 + number * 500), ROWS[number * 500 : 2500 + number * 500])
        if number % 2:
            assert any(thread.name == "mmfast-build" for thread in threading.enumerate())
        index.close()
        index.close()
        assert not any(thread.name == "mmfast-build" for thread in threading.enumerate())
        assert not list(folder.glob(".mmfast-*"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    uses: list[Callable[[], object]] = [
        lambda: index.search(ROWS[0], 1), lambda: index.range_search(ROWS[0], 1), lambda: index.add(9999, ROWS[0]),
        lambda: index.upsert(0, ROWS[0]), lambda: index.remove(0), lambda: index.get(0), lambda: len(index),
        lambda: 0 in index, lambda: list(index), index.keys, index.build, index.compact, index.verify, index.stats,
        index.recall_curve, lambda: index.tune(ROWS[:9]), lambda: index.metadata(0),
        lambda: index.update_metadata(0, {}), lambda: index.save(folder.parent / "file"),
        lambda: index.search(ROWS[0], 1, where=col("a") == 1),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(ValueError, match="is closed; open it again"):
            use()
    repr(index)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not (folder.parent / "file").exists()


def test_closing_while_another_thread_builds(
    index: DurableIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, closed = threading.Event(), threading.Event()
    build, raised = Segment.build, []

    def building(*args: Any) -> Any:
        begun.set()
        closed.wait(5)
        return build(*args)

    def work() -> None:
        try:
            index.build()
        except ValueError as error:
            raised.append(error)

    monkeypatch.setattr(Segment, "build", building)
    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(5)
    index.close()
    closed.set()
    thread.join()
    assert "is closed" in str(raised[0])
    assert "snapshot.index" not in os.listdir(folder)
