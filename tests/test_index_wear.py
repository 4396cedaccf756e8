"""What changes have cost a graph: measured in the background, told, and the reason to build the next one."""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast import Index
from mmfast.search import folding, wear
from mmfast.search.durable import DurableIndex
from mmfast.search.searching import nearest
from mmfast.search.segment import Segment
from mmfast.search.tuning import Point
from mmfast.search.wear import Wear
from tests.test_index import gaussian
from tests.test_index_engines import wait, wait_for_threads

COUNT, NDIM, LEAST = 6000, 16, 500
ROWS = gaussian(COUNT + 1500, NDIM)
# The rows of one place, nearest to its middle first: walks to where these were find what is left around it badly.
PLACE = np.argsort(((ROWS[:COUNT] - ROWS[7]) ** 2).sum(axis=1))


@pytest.fixture(scope="module")
def built() -> Index:
    """Return an index with a graph, through which a single query always walks."""
    index = Index(NDIM, "l2sq", "f32")
    index.add(range(COUNT), ROWS[:COUNT])
    index.build()
    curve = segment_of(index).curve
    assert curve is not None
    # As it was measured, whatever this machine does meanwhile.
    points = {10: [Point(20, 0.93, 5e-6, 1e-5), Point(24, 0.956, 6e-6, 1e-5), Point(60, 0.998, 1e-5, 2e-5)]}
    segment_of(index).curve = dataclasses.replace(curve, points=points, exact_single_seconds=1.0, _walks={})
    return index


@pytest.fixture
def index(built: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setattr(wear, "LEAST_CHANGED", LEAST)
    return copy.deepcopy(built)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is measured and built."""
    notes: list[str] = []
    measure, build = wear.measure, Segment.build

    def measuring(*args: Any) -> None:
        measure(*args)
        notes.append("measured")

    def building(*args: Any) -> Any:
        notes.append("built")
        return build(*args)

    monkeypatch.setattr(wear, "measure", measuring)
    monkeypatch.setattr(Segment, "build", building)
    return notes


def pretend(monkeypatch: pytest.MonkeyPatch, *, recall: float) -> None:
    """Have it measured that recall fell from 1, at once."""

    def found(state: Any, *_: Any) -> tuple[float, float]:
        return (1.0 if state.main.alive is None and (state.tail is None or len(state.tail.segment) == 1) else recall), 1

    monkeypatch.setattr(wear, "_reached", found)


def segment_of(index: Index) -> Segment:
    assert index._state.main is not None
    return index._state.main.segment


def idle(index: Index) -> None:
    """Wait until nothing is done in the background."""
    with index._folding._running:
        pass


@pytest.mark.parametrize(
    ("removed", "ignored", "reason"),
    [
        (600, "_TIMES", r"recall at 10 fell from 0\.9\d\d to 0\.9\d\d near rows that were changed"),
        (1800, "_FALL", r"a search near rows that were changed takes \d+\.\d times what it took"),
    ],
)
def test_a_loss_of_recall_or_speed_is_a_reason_to_build(
    index: Index,
    done: list[str],
    removed: int,
    ignored: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(wear, ignored, 1e9)
    with caplog.at_level(logging.INFO, logger="mmfast"):
        index.remove(PLACE[:removed])
        idle(index)
    assert done == ["measured", "built"]
    assert (index.stats()["graph"], index.stats()["removed"]) == (COUNT - removed, 0)
    (record,) = caplog.records
    begun = f"building the graph of {COUNT - removed:,} rows in the background: "
    assert re.fullmatch(re.escape(begun) + reason, record.getMessage())


def test_nothing_is_built_where_nothing_is_lost(
    index: Index, done: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wear, "_TIMES", 3.0)  # it is 1.2, but the machine may be busy
    before, spread = index.stats(), np.arange(0, COUNT, 8)
    with caplog.at_level(logging.INFO, logger="mmfast"):
        index.remove(spread[: LEAST + 99])
        idle(index)
        assert done == []  # before a tenth of the rows
        index.remove(spread[LEAST + 99])
        idle(index)
        assert done == ["measured"]
        index.add(range(COUNT, COUNT + 599), ROWS[COUNT : COUNT + 599])
        idle(index)
        assert done == ["measured"]  # and before another tenth
        index.upsert(COUNT - 1, ROWS[-1])
        idle(index)
    assert done == ["measured"] * 2
    assert caplog.records == []
    now = index.stats()
    assert (now["tail"], now["removed"], now["built"]) == (600, LEAST + 101, before["built"])
    assert before["recall"] - wear._FALL <= now["recall"] <= before["recall"]


def test_recall_in_the_stats_is_what_was_measured_last(index: Index) -> None:
    index._folding.stop()
    built = index.stats()["recall"]
    curve = segment_of(index).curve
    assert curve is not None
    assert built == curve.walk(1, 10, 0.95).recall
    assert 0.955 - 1e-9 <= built <= next(point.recall for point in curve.points[10] if point.recall >= 0.955)
    index.remove(PLACE[:600])
    assert index.stats()["recall"] == built
    wear.measure(index._state, 2, lambda _: None)
    measured = segment_of(index).wear
    assert measured is not None
    assert measured.changed == 600
    assert measured.lost > wear._FALL
    assert index.stats()["recall"] == built - measured.lost
    index.build()
    assert index.stats()["recall"] >= 0.955 - 1e-9
    segment_of(index).wear = Wear(600, 0.95, 0.97, 1.0)  # what is gained was not measured when the graph was built
    curve = segment_of(index).curve
    assert curve is not None
    assert index.stats()["recall"] == curve.reached(0.95)
    segment_of(index).wear = Wear(600, 0.97, 0.9, 1.0)
    assert index.stats()["recall"] == curve.reached(0.95) - (0.97 - 0.9)
    index.tune(ROWS[:64])  # measures all there is now
    curve = segment_of(index).curve
    assert curve is not None
    assert index.stats()["recall"] == curve.reached(0.95)


def test_rows_that_are_gone_again_are_no_changes(index: Index) -> None:
    index._folding.stop()
    segment_of(index).wear = Wear(600, 0.97, 0.96, 1.0)
    index.add(range(COUNT, COUNT + 600), ROWS[COUNT : COUNT + 600])
    assert not wear.is_unknown(index._state)
    index.remove(range(COUNT, COUNT + 600))
    assert not wear.is_unknown(index._state)
    index.remove(PLACE[:599])
    assert not wear.is_unknown(index._state)
    index.remove(PLACE[599])
    assert not wear.is_unknown(index._state)  # 600 were measured
    segment_of(index).wear = Wear(1300, 0.97, 0.96, 1.0)
    assert wear.is_unknown(index._state)


def test_the_default_recall_of_the_exact_engine_is_1(index: Index) -> None:
    curve = segment_of(index).curve
    assert curve is not None
    assert dataclasses.replace(curve, exact_single_seconds=1e-12, _walks={}).reached(0.95) == 1
    small = Index(4)
    small.add(range(50), gaussian(50, 4))
    small.build()
    assert small.stats()["recall"] is None


def test_a_loss_builds_once(index: Index, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Though as much is lost again as soon as it is measured."""
    pretend(monkeypatch, recall=0.5)
    index.upsert(PLACE[:600], ROWS[PLACE[:600]] + 1)
    idle(index)
    assert done == ["measured", "built"]
    for key in range(360):
        index.remove(key) if key % 2 else index.upsert(key, ROWS[key])  # which counts twice
    idle(index)
    assert done == ["measured", "built"]
    index.remove(range(1000, 1060))
    idle(index)
    assert done == ["measured", "built"] * 2


def test_rows_do_not_find_themselves(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index._folding.stop()
    gone, kept, fresh = PLACE[:300], PLACE[300:500], np.arange(COUNT, COUNT + 100)
    index.remove(gone)
    index.upsert(kept, ROWS[kept] + 1)
    index.add(fresh, ROWS[fresh])
    main, tail = index._state
    assert main is not None
    keys, queries = wear._changed_rows(main, tail)
    assert len(keys) == len(queries) == 256
    # 500 rows of the graph and 300 of the tail, some of both under the same keys.
    assert np.isin(keys, np.concatenate([gone, kept, fresh])).all()
    assert np.isin(keys, fresh).sum() == pytest.approx(32, abs=2)
    old, new = ((queries == rows).all(axis=1) for rows in (ROWS[keys], ROWS[keys] + 1))
    assert (old ^ new).all()
    assert new.sum() == pytest.approx(64, abs=2)

    def only_itself(state: Any, asked: Any, k: int, options: Any, *rest: Any) -> Any:
        found, distances = nearest(state, asked, k, options, *rest)
        if options.engine is None:
            found[:, 1:] = -1
        return found, distances

    monkeypatch.setattr("mmfast.search.wear.nearest", only_itself)
    assert wear._reached(index._state, keys[-40:], queries[-40:], 2, lambda _: None)[0] == 0  # of the tail


def test_the_index_is_used_and_closed_while_it_measures(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, going, asked = threading.Event(), threading.Event(), []

    def slowly(*args: Any) -> Any:
        asked.append(args)
        begun.set()
        assert going.wait(60)
        return nearest(*args)

    monkeypatch.setattr("mmfast.search.wear.nearest", slowly)
    index.remove(PLACE[:600])
    assert begun.wait(60)
    index.add(COUNT, ROWS[PLACE[0]])
    assert index.search(ROWS[PLACE[0]], 1).keys.tolist() == [COUNT]
    index.remove(PLACE[600:700])
    stopping = threading.Thread(target=index._folding.stop)
    stopping.start()
    wait(index._folding.is_stopped)
    going.set()
    stopping.join(60)
    assert (stopping.is_alive(), len(asked), segment_of(index).wear) == (False, 1, None)


def test_an_index_that_is_dropped_is_not_measured(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, dropped, asked = threading.Event(), threading.Event(), []

    def slowly(*args: Any) -> Any:
        asked.append(1)
        begun.set()
        assert dropped.wait(60)
        return nearest(*args)

    monkeypatch.setattr("mmfast.search.wear.nearest", slowly)
    measuring = copy.copy(index)
    measuring.remove(PLACE[:600])
    assert begun.wait(60)
    del measuring
    gc.collect()
    dropped.set()
    wait_for_threads()
    assert len(asked) == 1


def test_a_durable_index_writes_what_a_loss_made_it_build(
    folder: Path, done: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wear, "LEAST_CHANGED", LEAST)
    pretend(monkeypatch, recall=0.5)
    with Index.open(folder, NDIM, "l2sq", "f32") as writer, caplog.at_level(logging.INFO, logger="mmfast"):
        writer.add(range(3000), ROWS[:3000])
        writer.build()
        done.clear()
        with Index.open(folder, read_only=True) as reader:
            before = (folder / "snapshot.index").stat().st_ino
            writer.remove(range(600))
            idle(writer._engine)
            assert done == ["measured", "built"]
            assert (folder / "snapshot.index").stat().st_ino != before
            assert (reader.stats()["removed"], reader.stats()["graph"]) == (0, 2400)
            writer.remove(range(600, 1300))
            idle(writer._engine)
            assert done == ["measured", "built"] * 2  # readers measure and build nothing
            assert [record.getMessage() for record in caplog.records] == [
                f"building the graph of {rows} rows in the background: "
                "recall at 10 fell from 1.000 to 0.500 near rows that were changed"
                for rows in ("2,400", "1,700")
            ]


def test_nothing_is_measured_where_nothing_is_to_be_built(
    folder: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wear, "LEAST_CHANGED", 10)
    small = Index(4)  # too few rows for a graph
    small.add(range(50), gaussian(50, 4))
    small.build()
    done.clear()
    small.remove(range(30))
    idle(small)
    assert done == []
    with Index.open(folder, NDIM, "l2sq", "f32") as index:
        index.add(range(2500), ROWS[:2500])
        index.build()
        done.clear()
    with DurableIndex.open(folder, {}, key_kind=None, read_only=False, indexed_columns=(), progress=False,
                           build_when_due=False) as index:  # fmt: skip
        index.remove(range(600))
        idle(index._engine)
    assert done == []


def test_a_long_tail_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 30)
    index = Index(4)
    with caplog.at_level(logging.INFO, logger="mmfast"):
        index.add(range(31), gaussian(31, 4))
        idle(index)
        index.remove(range(31))
        index.add(range(100), gaussian(100, 4))
        idle(index)
    begun = "building the graph of {0} rows in the background: tail of {0} rows"
    assert [record.getMessage() for record in caplog.records] == [begun.format(31), begun.format(100)]
    assert folding.reason(index._state) is None
    index._folding.stop()
    index.remove(range(31, 82))
    assert folding.reason(index._state) == "51 rows were removed"
