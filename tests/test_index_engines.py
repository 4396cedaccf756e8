"""The index's two engines and its parts: filters, radii, replacing, and graphs that are built while it is in use."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmfast import _C, Index, col
from mmfast.search import folding, image, tuning
from mmfast.search.arrays import encode
from mmfast.search.filters import Allowed, Filter
from mmfast.search.graph import EXACT_ROWS, as_bytes, distinct
from mmfast.search.segment import Segment
from mmfast.search.settings import Settings
from tests.test_index import gaussian, true_distances

COUNT = EXACT_ROWS + 500
STRESSED = float(os.environ.get("MMFAST_STRESS_SECONDS", "20"))


def clustered(rows: int, ndim: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, ndim))
    return (centres[rng.integers(0, 40, rows)] + 0.4 * rng.standard_normal((rows, ndim))).astype(np.float32)


@pytest.fixture(scope="module", params=["cos", "ip", "l2sq"])
def parts(request: pytest.FixtureRequest) -> tuple[Index, dict[int, Any]]:
    """Return an index of a graph, a tail and removed rows, and what it holds."""
    rows = clustered(COUNT + 300, 12)
    index = Index(12, request.param, "f32")
    index.add(np.arange(COUNT) * 2, rows[:COUNT])
    index.build()
    index.add(np.arange(COUNT, COUNT + 300) * 2, rows[COUNT:])
    gone = np.arange(0, COUNT + 300, 7) * 2
    index.remove(gone)
    held = {2 * i: row for i, row in enumerate(rows) if i % 7}
    stats = index.stats()
    assert (stats["rows"], stats["rows"]) == (len(index), len(held))
    assert stats["graph"] > EXACT_ROWS > 300 > stats["tail"] > 0
    assert stats["removed"] == len(gone)
    return index, held


def brute_force(index: Index, held: dict[int, Any], queries: Any, allowed: set[int] | None = None) -> Any:
    """Return the keys by distance, and all distances."""
    keys = np.array([key for key in held if allowed is None or key in allowed], dtype=np.int64)
    if not len(keys):
        return np.zeros((len(queries), 0), dtype=np.int64), np.zeros((len(queries), 0))
    truth = true_distances(queries, np.stack([held[key] for key in keys.tolist()]), index.metric)
    order = np.argsort(truth, axis=1)
    return keys[order], np.take_along_axis(truth, order, axis=1)


def test_the_engines_agree(parts: tuple[Index, dict[int, Any]]) -> None:
    index, held = parts
    queries = clustered(120, 12, seed=5)
    keys, truth = brute_force(index, held, queries)
    exact = index.search(queries, 10, exact=True)
    np.testing.assert_array_equal(exact.keys, keys[:, :10])
    np.testing.assert_allclose(exact.distances, truth[:, :10], rtol=1e-5, atol=1e-5)
    walked = index.search(queries, 10, ef=300)
    assert (walked.keys == exact.keys).mean() > 0.9  # of clusters far apart a graph may miss one
    same = walked.keys == exact.keys
    np.testing.assert_array_equal(walked.distances[same], exact.distances[same])  # ranked by the same numbers
    assert (walked.keys == index.search(queries[:, None][:, 0], 10, ef=300).keys).all()
    for one in (0, 7):
        np.testing.assert_array_equal(index.search(queries[one], 10, ef=300).keys, walked.keys[one])


def test_an_engine_can_be_asked_for(parts: tuple[Index, dict[int, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    index, held = parts
    queries = clustered(70, 12, seed=8)  # a batch
    main = index._state.main
    assert main is not None
    segment, curve, walked = main.segment, main.segment.curve, []
    options: dict[str, Any]
    assert curve is not None

    class Walker:
        def graph_search(self, queries: Any, k: int, expansion: int, *rest: Any) -> Any:
            walked.append(expansion)
            return segment.rows.graph_search(queries, k, expansion, *rest)

    monkeypatch.setattr(segment, "walker", Walker())
    # Looking at all rows is faster.
    monkeypatch.setattr(segment, "curve", dataclasses.replace(curve, exact_batch_seconds=1e-12, _walks={}))
    reached = curve.walk(len(queries), 10, 0.9).ef
    for where in (None, list(held)[::2], list(held)[:1]):
        keys, _ = brute_force(index, held, queries, None if where is None else set(where))
        count = min(10, keys.shape[1])
        for options in ({}, {"exact": True}, {"engine": "exact"}, {"exact": True, "engine": "exact"}):
            found = index.search(queries, 10, where=where, **options).keys
            np.testing.assert_array_equal(found[:, :count], keys[:, :count])
        assert walked == []
        among = np.isin(main.keys(), list(held) if where is None else where).sum()
        for options, expansion in (
            ({"recall": 0.9}, min(int(reached * len(segment) / among), len(segment))),
            ({"recall": 1}, min(int(curve.points[10][-1].ef * len(segment) / among), len(segment))),
            ({"ef": 200}, 200),
        ):
            found = index.search(queries, 10, where=where, engine="graph", **options).keys
            assert (found[:, :count, None] == keys[:, None, :count]).any(axis=2).mean() > 0.8
            assert walked.pop() in range(expansion - 1, expansion + 2)
            assert walked == []


def test_an_engine_is_asked_for_by_many_threads_while_rows_come_and_go() -> None:
    rows, failures = clustered(COUNT + 2000, 12), []
    index = Index(12, "l2sq", "f32")
    index.add(range(COUNT), rows[:COUNT])
    index.build()
    ended = threading.Event()

    def ask(engine: Any) -> None:
        try:
            while not ended.is_set():
                found = index.search(rows[:80], 3, engine=engine, where=range(0, COUNT, 2)).keys
                assert (found >= 0).all()
                assert (found % 2 == 0).all()
                assert engine == "graph" or (found[::2, 0] == range(0, 80, 2)).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(engine,)) for engine in ("graph", "exact", "graph", None)]
    for thread in threads:
        thread.start()
    try:
        for begin in range(COUNT, COUNT + 2000, 500):
            index.add(range(begin, begin + 500), rows[begin : begin + 500])
            index.remove(range(begin, begin + 100))
            index.build()
            index.tune(rows[:100])
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.filterwarnings("ignore:where marks")
@pytest.mark.parametrize("share", [0.0, 0.003, 0.05, 0.6])
@pytest.mark.parametrize("options", [{"ef": 12}, {"exact": True}, {"engine": "graph"}, {}])
def test_filters(parts: tuple[Index, dict[int, Any]], share: float, options: dict[str, Any]) -> None:
    index, held = parts
    rng = np.random.default_rng(1)
    mask = rng.random(2 * (COUNT + 300)) < share
    mask[[0, 14]] = True  # removed keys
    listed = np.flatnonzero(mask)
    allowed = set(listed.tolist()) & set(held)
    queries = clustered(40, 12, seed=6)
    keys, _ = brute_force(index, held, queries, allowed)
    count = min(10, len(allowed))
    variants: list[Any] = [
        mask,
        torch.from_numpy(mask),
        listed,
        listed.tolist(),
        set(listed.tolist()),
        mask[: listed[-1] + 1],
    ]
    for where in variants:
        found = index.search(queries, 10, where=where, **options).keys
        assert (found[:, count:] == -1).all()
        assert set(found[:, :count].ravel().tolist()) <= allowed  # and never fewer than there are
        assert all(len(set(row)) == count for row in found[:, :count].tolist())
        if options.get("exact") or not allowed:
            np.testing.assert_array_equal(found[:, :count], keys[:, :count])
    assert (index.search(queries, 3, where=[]).keys == -1).all()


def test_radii(parts: tuple[Index, dict[int, Any]]) -> None:
    index, held = parts
    queries = clustered(25, 12, seed=7)
    keys, truth = brute_force(index, held, queries)
    # Between two distances, since float64 sums in another order here.
    for radius in (truth.min() - 1, truth[:, 20:22].mean(), truth[0, 500:502].mean(), truth.max() + 1):
        found = index.range_search(queries, radius)
        assert found.offsets[0] == 0
        for i, (begin, end) in enumerate(zip(found.offsets, found.offsets[1:], strict=False)):
            expected = keys[i][truth[i] <= radius]
            assert set(found.keys[begin:end].tolist()) == set(expected.tolist())
            assert (np.diff(found.distances[begin:end]) >= 0).all()
    where = list(held)[:50]
    assert set(index.range_search(queries, truth.max() + 1, where=where).keys.tolist()) == set(where)
    assert index.range_search(queries[0], radius).offsets.tolist() == [0, len(held)]


def test_neighbours_within_a_radius_are_in_order_beyond_float32() -> None:
    """Also over several parts, where distances are one and the same float."""
    rows = np.stack([np.ones(80), np.arange(80) * 1e-6], axis=1).astype(np.float32)
    index = Index(2, "l2sq", "f32")
    index.add(range(80, 40, -1), rows[:40])
    index.build()
    index.add(range(40, 0, -1), rows[40:])
    found = index.range_search(np.zeros(2), 2.0)
    assert found.keys.tolist() == list(range(80, 0, -1)) == index.search(np.zeros(2), 80, exact=True).keys.tolist()
    assert (found.distances == 1).all()


def test_radius_of_an_empty_index() -> None:
    found = Index(3).range_search(np.ones((2, 3)), 1.0)
    assert (found.offsets.tolist(), len(found.keys), len(found.distances)) == ([0, 0, 0], 0, 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda index, q: index.range_search(q, "1"), TypeError, "radius must be a number"),
        (lambda index, q: index.range_search(q, np.nan), ValueError, "radius must be finite"),
        (lambda index, q: index.range_search(q, np.inf), ValueError, "radius must be finite"),
        (lambda index, q: index.search(q, 1, recall=0), ValueError, "recall must be above 0"),
        (lambda index, q: index.search(q, 1, recall=95), ValueError, "at most 1, got 95"),
        (
            lambda index, q: index.search(q, 1, recall=10**400),
            ValueError,
            "recall must be a number that a float can hold",
        ),
        (lambda index, q: index.range_search(q, -(10**5000)), ValueError, "radius must be a number that a float"),
        (lambda index, q: index.search(q, 1, recall="1"), TypeError, "recall must be a number"),
        (lambda index, q: index.search(q, 1, ef=0), ValueError, "ef must be from 1"),
        (lambda index, q: index.search(q, 1, ef=2.0), TypeError, "ef must be an int"),
        (
            lambda index, q: index.search(q, 1, exact=True, ef=64),
            ValueError,
            "^exact=True and ef=64 exclude each other: leave",
        ),
        (lambda index, q: index.search(q, 1, exact=True, recall=0.9), ValueError, "^recall=0.9 and exact=True exclude"),
        (lambda index, q: index.search(q, 1, recall=0.9, ef=64), ValueError, "^recall=0.9 and ef=64 exclude"),
        (
            lambda index, q: index.search(q, 1, exact=True, engine="graph"),
            ValueError,
            "^exact=True and engine='graph' exclude",
        ),
        (lambda index, q: index.search(q, 1, ef=64, engine="exact"), ValueError, "^ef=64 and engine='exact' exclude"),
        (lambda index, q: index.search(q, 1, recall=0.9, engine="exact"), ValueError, "^recall=0.9 and engine='exact'"),
        (lambda index, q: index.search(q, 1, engine="hnsw"), ValueError, "engine must be one of 'exact', 'graph'"),
        (lambda index, q: index.search(q, 1, engine=True), ValueError, "engine must be one of .*, got True"),
        (lambda index, q: index.search(q, 1, engine="graph"), ValueError, r"^engine='graph' needs .* build\(\)"),
        (lambda index, q: index.search(q, 1, engine="graph", ef=9), ValueError, "^engine='graph' needs a graph"),
        (lambda index, q: index.search(), TypeError, r"^Index\.search\(\) missing"),
        (lambda index, q: index.search(q, 1, where="year > 2000"), TypeError, r'written mmfast\.col\("year"\) > 2000'),
        (lambda index, q: index.search(q, 1, where=col("a") > 1), TypeError, r"^where.*> 1\); .*mmfast\.Index\.open"),
        (lambda index, q: index.range_search(q, 1, where=col("a")), TypeError, "where .*compare it"),
        (lambda index, q: index.search(q, 1, where=[1.0]), TypeError, "where must be integers"),
        (lambda index, q: index.search(q, 1, where=np.ones((2, 2), dtype=bool)), ValueError, "where must have shape"),
        (lambda index, q: index.search(q, 1, exact=1), TypeError, "exact must be True or False"),
        (lambda index, q: index.get([5]), KeyError, "does not hold the keys 5"),
        (lambda index, q: index.tune(q[None][:0]), ValueError, "queries must be some"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Index(3), np.ones(3))


@pytest.mark.filterwarnings("error")
def test_a_mask_that_marks_no_key_held_is_told(tmp_path: Path) -> None:
    rows = gaussian(20, 4)
    by_row, by_key = np.arange(20) < 5, np.isin(np.arange(130), range(100, 105))
    with Index.open(tmp_path / "durable", 4) as durable:
        for index in (Index(4), durable):
            index.search(rows, 1, where=by_row)  # while nothing is held, that is no surprise
            index.add(range(100, 120), rows)
            for ask in (lambda index=index: index.search(rows, 1, where=torch.from_numpy(by_row)),
                        lambda index=index: index.range_search(rows, 1.0, where=by_row)):  # fmt: skip
                with pytest.warns(UserWarning, match="where marks 5 of 20 keys, of which the index holds none") as told:
                    ask()
                assert [each.filename for each in told] == [__file__]
            assert set(index.search(rows[:5], 1, where=by_key).keys[:, 0].tolist()) == set(range(100, 105))
            for mask in (by_row & False, by_key):
                index.range_search(rows[:1], -1.0, where=mask)


def test_upsert_replaces_and_adds() -> None:
    index, rows = Index(4, "l2sq", "f32"), gaussian(60, 4)
    index.upsert(range(40), rows[:40])
    index.build()
    index.upsert(range(20, 60), rows[20:][::-1].copy())
    expected = np.concatenate([rows[:20], rows[20:][::-1]])
    assert len(index) == 60
    np.testing.assert_array_equal(index.get(range(60)), expected)
    np.testing.assert_array_equal(index.search(expected, 1, exact=True).keys[:, 0], range(60))
    assert sorted(index.keys().tolist()) == list(range(60))
    index.upsert(range(60), rows)  # all of the graph's rows are gone
    np.testing.assert_array_equal(index.get(range(60)), rows)
    index.build()
    np.testing.assert_array_equal(index.get(range(60)), rows)


def test_changes_while_a_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(COUNT + 40, 6)
    index = Index(6, "l2sq", "f32")
    index.add(range(COUNT), rows[:COUNT])
    real = Segment.build
    observed: list[Any] = []

    def build(*arguments: Any) -> Any:
        built = real(*arguments)
        index.remove(range(50))
        index.add(range(COUNT, COUNT + 20), rows[COUNT : COUNT + 20])
        index.upsert(range(100, 110), rows[COUNT + 20 : COUNT + 30])
        index.remove([105, COUNT])
        index.add([0], rows[:1])
        observed.append(index.search(rows, 1, exact=True).keys[:, 0])
        return built

    monkeypatch.setattr(Segment, "build", build)
    for _ in range(2):  # the second time the rows come from both parts
        index.build()
        np.testing.assert_array_equal(index.search(rows, 1, exact=True).keys[:, 0], observed[-1])
        assert len(index) == len(set(index.keys().tolist())) == COUNT - 49 + 19 - 1
        assert index.stats()["tail"] > 0
        index.remove(range(COUNT + 1, COUNT + 20))
        index.add(range(1, 50), rows[1:50])
        index.upsert([COUNT, 105], rows[[COUNT, 105]])
        index.remove([COUNT])


def test_a_tail_that_was_emptied_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gaussian(30, 6)
    index = Index(6, "l2sq", "f32")
    index.add(range(10), rows[:10])
    real = Segment.build

    def build(*arguments: Any) -> Any:
        built = real(*arguments)
        index.remove(range(10))
        index.add(range(5, 15), rows[15:25])
        return built

    monkeypatch.setattr(Segment, "build", build)
    index.build()
    assert sorted(index.keys().tolist()) == list(range(5, 15))
    np.testing.assert_array_equal(index.get(range(5, 15)), rows[15:25])


def test_a_graph_is_built_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 1000)
    index, rows = Index(6), clustered(COUNT + 2000, 6)
    index.add(range(COUNT), rows[:COUNT])
    wait(lambda: index.stats()["tail"] == 0)
    assert index.stats()["graph"] == COUNT
    assert index.stats()["built"] <= time.time()
    index.add(range(COUNT, COUNT + 1500), rows[COUNT : COUNT + 1500])
    wait(lambda: index.stats()["graph"] == COUNT + 1500)
    index.remove(range(COUNT))
    wait(lambda: index.stats()["removed"] == 0)
    assert len(index) == 1500


def wait(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_built_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real, sizes = Segment.build, []

    def build(settings: Any, keys: Any, *others: Any) -> Any:
        sizes.append(len(keys))
        return real(settings, keys, *others)

    monkeypatch.setattr(Segment, "build", build)
    index = Index(6)
    index.build()
    index.add(range(50), gaussian(50, 6))
    index.build()
    index.build()
    index.remove(3)
    index.build()
    assert sizes == [50, 49]


def wait_for_threads() -> None:
    """Wait until all threads that build or measure have ended."""
    for thread in list(folding._threads):
        thread.join(60)
        assert not thread.is_alive()


def test_an_index_that_is_dropped_stops_building(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 100)
    started, dropped = threading.Event(), threading.Event()
    real, counts = Segment.build, []

    def build(settings: Any, keys: Any, stored: Any, threads: int, progress: Any) -> Any:
        def noting(count: int) -> None:
            counts.append(count)
            started.set()
            assert dropped.wait(30)
            progress(count)

        return real(settings, keys, stored, threads, noting)

    monkeypatch.setattr(Segment, "build", build)
    index = Index(6)
    index.add(range(COUNT), gaussian(COUNT, 6))
    assert started.wait(30)
    del index
    gc.collect()
    dropped.set()
    wait_for_threads()
    assert counts == [0]


@pytest.mark.parametrize("moment", ["while it builds", "while it searches", "in a child"])
def test_the_interpreter_ends_cleanly(moment: str) -> None:
    program = """
import os, sys, threading, time, numpy as np, mmfast
from mmfast.search import folding
folding.LEAST_ROWS = 1000
index = mmfast.Index(32)
index.add(range(12_000), np.random.default_rng(0).standard_normal((12_000, 32)))
if sys.argv[1] == "while it searches":
    def search():
        while True:
            index.search(np.ones((300, 32), np.float32), 10, exact=True)
    threading.Thread(target=search, daemon=True).start()
    time.sleep(0.2)
if sys.argv[1] == "in a child":
    child = os.fork()
    if not child:
        index.add(70_000, np.ones(32))
        assert index.search(np.ones((3, 32)), 1).keys[0] == 70_000
        index.remove(range(10_000))
        index.build()
        assert len(index) == 2001 and index.search(np.ones(32), 1).keys[0] == 70_000
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""
    if moment == "in a child" and not hasattr(os, "fork"):
        pytest.skip("no fork")
    done = subprocess.run([sys.executable, "-c", program, moment], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_recall_is_what_was_asked_for() -> None:
    rows = clustered(9000, 24)
    index = Index(24, "cos", "bf16")
    index.add(range(8000), rows[:8000])
    index.build()
    curve = index.recall_curve()
    assert set(curve) == {10, 100}
    recalls = [point.recall for point in curve[10]]
    assert recalls == sorted(recalls) or np.diff(recalls).min() > -0.01
    truth = index.search(rows[8000:], 10, exact=True).keys
    for wanted in (0.8, 0.95):
        found = index.search(rows[8000:], 10, recall=wanted).keys
        recall = (found[:, :, None] == truth[:, None, :]).any(axis=2).mean()
        assert recall > wanted - 0.03  # the standard error of what was measured and of this is below 0.01
    # Queries of another kind.
    odd = gaussian(400, 24, seed=9)
    index.tune(odd)
    truth = index.search(odd, 10, exact=True).keys
    found = index.search(odd, 10, recall=0.9).keys
    assert (found[:, :, None] == truth[:, None, :]).any(axis=2).mean() > 0.87
    assert index.recall_curve() != curve


@pytest.mark.parametrize(("ndim", "clusters", "bits"), [(2, 0, {8}), (32, 0, {4, 8}), (16, 25, {64})])
def test_walks_go_by_the_fewest_bits_that_lead_as_well_as_more(ndim: int, clusters: int, bits: set[int]) -> None:
    index, rows = Index(ndim, "l2sq", "f32"), gaussian(4200, ndim)
    if clusters:
        rows = 1e-3 * rows + gaussian(clusters, ndim, seed=1)[np.arange(4200) % clusters]
    rows, queries = rows[:4000], rows[4000:]
    index.add(np.arange(4000), rows)
    index.build()
    main = index._state.main
    assert main is not None
    assert main.segment.curve is not None
    assert main.segment.curve.bits in bits
    truth = index.search(queries, 10, exact=True).keys
    found = index.search(queries, 10, ef=100).keys
    assert (found[:, :, None] == truth[:, None, :]).any(axis=2).mean() > 0.98


def test_walks_by_rows_are_not_blind_to_small_differences_of_large_products() -> None:
    rows, queries = gaussian(COUNT, 8), gaussian(50, 8, seed=1)
    index = Index(8, "ip", "f32")
    index.add(range(COUNT), rows)
    index.build()
    assert index._state.main is not None
    segment = index._state.main.segment
    assert segment.links is not None
    large = np.hstack([segment.stored, np.full((COUNT, 1), 2e4, np.float32)])
    walked = _C.VectorSet(large, "f32", "ip", *image.encode(large, "f32", "ip", 1), segment.keys)
    walked.set_links(*segment.links)
    before, *_ = segment.rows.graph_search(queries, 10, 60, 64, None, False, 1)
    found, *_ = walked.graph_search(np.hstack([queries, np.full((50, 1), 2e4, np.float32)]), 10, 60, 64, None, False, 1)
    assert np.mean(found == before) > 0.9


def test_a_graph_is_built_from_bytes_where_these_tell_neighbours_apart() -> None:
    plain = gaussian(3000, 24)
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    clusters = np.repeat(plain[:50], 60, axis=0) + 1e-4 * gaussian(3000, 24, seed=3)
    outlier = plain.copy()
    outlier[7] *= 1000
    copies = np.repeat(plain[:100], 30, axis=0)
    for rows, metric, expected in [
        (plain, "l2sq", True),
        (plain, "cos", True),
        (plain, "ip", False),
        (clusters, "l2sq", False),
        (outlier, "l2sq", False),
        (copies, "l2sq", True),  # the graph holds each once
        (np.concatenate([plain[:2880], 1e-4 * plain[2880:]]), "l2sq", False),  # few rows, but all in one place
        (np.concatenate([plain[:2500], np.repeat(plain[:1], 500, axis=0)]), "l2sq", True),
    ]:
        heads, _ = distinct(rows)
        small = as_bytes(rows, heads, Settings(24, metric, "f32", 16, 128), 2, lambda _: None)
        assert (small is not None) is expected
        if small is not None:  # the order of squared distances is that of the rows
            near = [
                np.argsort(((each - each[:1].astype(float)) ** 2).sum(axis=1))[:11]
                for each in (rows[heads], small[heads])
            ]
            assert len(set(near[0]) & set(near[1])) >= 10
    for dtype in ("f32", "f16", "bf16", "i8"):
        stored = encode("rows", plain, "cos", dtype, 2)
        settings = Settings(24, "cos", dtype, 16, 128)
        assert as_bytes(stored, np.arange(3000), settings, 2, lambda _: None) is not None


def test_the_choice_of_an_engine() -> None:
    points = [tuning.Point(10, 0.9, 1e-5, 4e-5), tuning.Point(40, 0.97, 4e-5, 9e-5)]
    curve = tuning.Curve({10: points, 100: [tuning.Point(200, 0.99, 9e-5, 2e-4)]}, 4, 8e-5, 1e-3)
    assert tuning.Curve.from_json(curve.to_json()) == curve
    for (queries, k, recall, share), expected in {
        (1000, 10, 0.89, 1.0): 10,
        (1000, 10, 0.9, 1.0): 13,  # not by the error of what was measured
        (1000, 5, 0.95, 1.0): 34,  # between those that were measured
        (1000, 10, 0.98, 1.0): None,  # never reached
        (1, 10, 0.95, 0.5): 68,  # half of what a walk meets may be found
        (1, 10, 0.95, 0.1): None,  # few rows are faster looked through
        (1000, 100, 0.9, 1.0): None,  # slower than the exact engine
        (1, 100, 0.9, 1.0): 200,
        (1, 200, 0.9, 1.0): 400,
    }.items():
        walk = curve.walk(queries, k, recall)
        assert (walk.candidates(k, share) if share > walk.least_share else None) == expected
        assert curve.walk(queries, k, recall) is walk  # remembered
    assert curve.walk(1, 10, 0.95).recall == pytest.approx(0.956)
    assert curve.walk(1000, 10, 0.98).ef == curve.walk(1, 10, 1).ef == 40  # as far as was measured
    assert curve.walk(1000, 100, 0.9).candidates(100, 1) == 200


def test_a_graph_in_pieces_finds_as_many_as_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(4, "l2sq", "f32")
    rows = gaussian(COUNT, 4)
    index.add(range(COUNT), rows)
    index.build()
    main = index._state.main
    assert main is not None
    assert main.segment.links is not None
    nothing = {name: np.full_like(getattr(main.segment.links, name), -1) for name in ("neighbours", "upper")}
    alone = main.segment.links._replace(**nothing)
    main.segment.rows.set_links(*alone)  # walks end at the first rows
    found = index.search(rows[:50], 300, ef=300)
    np.testing.assert_array_equal(found.keys, index.search(rows[:50], 300, exact=True).keys)


def test_links_are_checked() -> None:
    index = Index(4)
    index.add(range(COUNT), gaussian(COUNT, 4))
    index.build()
    main = index._state.main
    assert main is not None
    neighbours, upper, copies, entries = main.segment.links or (None,) * 4
    assert neighbours is not None
    assert copies is not None
    bad = neighbours.copy()
    bad[3, 1] = COUNT
    loop = copies.copy()
    loop[5] = 5
    for links in ((bad, upper, copies, entries), (neighbours, bad[:5], copies, entries),
                  (neighbours, upper, loop, entries), (neighbours, upper, copies, 0),
                  (neighbours, upper, copies[:-1], entries), (neighbours, upper, copies, COUNT + 1)):  # fmt: skip
        with pytest.raises(ValueError, match=r"link|copy|entries|copies"):
            main.segment.rows.set_links(*links)


@pytest.mark.slow
def test_many_threads_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows that stay are found by whoever looks, whatever the others do meanwhile.
    monkeypatch.setattr(folding, "LEAST_ROWS", 1500)
    steady, ndim = clustered(3000, 8), 8
    index = Index(ndim, "l2sq", "f32")
    index.add(range(3000), steady)
    failures: list[BaseException] = []
    end = time.monotonic() + STRESSED

    def guarded(work: Any, number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            while time.monotonic() < end:
                work(rng, number)
        except BaseException as error:
            failures.append(error)

    def write(rng: Any, number: int) -> None:
        keys = rng.choice(2000, rng.integers(1, 400), replace=False) + 10_000 * (number + 1)
        index.upsert(keys, 50 + rng.standard_normal((len(keys), ndim)))
        index.remove(keys[: len(keys) // 2])

    def read(rng: Any, number: int) -> None:
        chosen = rng.choice(3000, rng.integers(60, 100), replace=False)  # enough to measure a recall by
        found = index.search(steady[chosen], 1, exact=True)
        assert (found.distances == 0).all()
        # Beside rows so far away 8-bit digits tell these apart badly: the index measures that, and walks by the rows.
        found = index.search(steady[chosen], 1)
        assert (found.distances == 0).mean() > 0.8
        where = rng.random(3000) < 0.1
        found = index.search(steady[chosen], 5, where=where)
        assert where[found.keys].all()

    def save(rng: Any, number: int) -> None:
        index.save(tmp_path / f"{number}")
        loaded = Index.load(tmp_path / f"{number}")
        assert (loaded.search(steady[:50], 1, exact=True).distances == 0).all()

    works = [write] * 5 + [read] * 9 + [save] * 2
    threads = [threading.Thread(target=guarded, args=(work, i)) for i, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert index.stats()["built"] is not None
    assert np.isin(np.arange(3000), index.keys()).all()


def test_masks_shorter_than_the_keys() -> None:
    index = Index(2)
    index.add([1, 5], np.eye(2))
    part = index._state.parts()[0]
    assert Filter(mask=np.array([True, True])).rows(part).tolist() == [True, False]
    assert Filter(mask=np.zeros(0, dtype=bool)).rows(part).tolist() == [False, False]


@pytest.mark.parametrize("bits", [4, 64])
def test_walks_ask_a_mask_for_the_keys_they_meet(bits: int) -> None:
    rows, queries = gaussian(COUNT, 8), gaussian(60, 8, seed=1)
    index = Index(8, "cos", "f32")
    index.add(np.arange(COUNT) * 3, rows)
    index.build()
    part = index._state.parts()[0]
    mask = np.random.default_rng(0).random(3 * COUNT - 900) < 0.4  # the last keys are beyond it
    allowed = Allowed(part, Filter(mask=mask))
    assert allowed.key_mask is not None
    assert abs(allowed.share(0.1) - allowed.count / COUNT) < 0.05
    exact = index.search(queries, 10, where=mask, exact=True)
    for options in ({"ef": 10}, {"ef": 80}, {"recall": 0.9}):
        found = index.search(queries, 10, where=mask, **options)
        assert mask[found.keys].all()
        assert (np.diff(found.distances) >= 0).all()
    assert (index.search(queries, 10, where=mask, ef=120).keys == exact.keys).mean() > 0.85
    walked, _, _ = part.segment.rows.graph_search(queries, 10, 120, bits, None, False, 2, mask)
    assert mask[walked[walked >= 0]].all()
    everything, few = np.ones(3 * COUNT, dtype=bool), np.zeros(3 * COUNT, dtype=bool)
    few[[0, 30]] = True
    assert Allowed(part, Filter(mask=few)).key_mask is None
    assert index.search(queries, 3, where=few, ef=50).keys[:, 2].max() == -1
    np.testing.assert_array_equal(
        index.search(queries, 5, where=everything, ef=50).keys, index.search(queries, 5, ef=50).keys
    )


def one_large_feature(rows: int, ndim: int, seed: int = 0) -> Any:
    return gaussian(rows, ndim, seed) + np.eye(1, ndim, dtype=np.float32) * 30


def sparse(rows: int, ndim: int, seed: int = 0) -> Any:
    return np.maximum(gaussian(rows, ndim, seed) - 1, 0) + np.float32(0.01)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("metric", ["cos", "ip", "l2sq"])
@pytest.mark.parametrize("rows", [gaussian, clustered, one_large_feature, sparse])
def test_what_a_walk_does_not_rank_is_not_among_the_nearest(rows: Any, metric: Any, bits: int) -> None:
    index = Index(48, metric, "f32")
    index.add(range(COUNT), rows(COUNT, 48))
    index.build()
    walker = index._state.parts()[0].segment.rows
    queries = rows(200, 48, seed=1)
    everything, *_ = walker.graph_search(queries, 300, 300, bits, None, False, 2)  # as many as were met: all are ranked
    for k in (1, 10, 100):
        found, *_ = walker.graph_search(queries, k, 300, bits, None, False, 2)
        assert (found == everything[:, :k]).mean() > 0.9995


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("spread", [1, 100])  # of keys: too far apart for a mask by key
def test_few_rows_are_told_from_many_without_a_count(spread: int, removed: bool) -> None:
    index = Index(4)
    index.add(np.arange(COUNT) * spread, gaussian(COUNT, 4))
    index.build()
    if removed:
        index.remove(np.arange(0, COUNT, 50) * spread)
    (part,) = index._state.parts()
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.01, 0.04, 0.1, 0.3, 0.8, 1):
        mask = np.repeat(rng.random(COUNT) < share, spread)
        listed = np.flatnonzero(mask[::spread]) * spread
        for filter_ in (Filter(mask=mask), Filter(keys=listed), Filter(keys=np.repeat(listed, 2))):
            known = Allowed(part, filter_).count / COUNT
            assert Allowed(part, filter_).share(0) == pytest.approx(known, abs=0.05)
            for enough in (0.02, 0.2, 0.5, 0.99):
                if abs(known - enough) > 0.05:  # what a sample may be off by
                    assert (Allowed(part, filter_).share(enough) > enough) == (known > enough)
    few = Allowed(part, Filter(keys=listed[:200]))
    assert few.share(0.2) == 0.2
    assert "mask" not in vars(few)  # no row was looked at
    rare = np.zeros(spread * COUNT, dtype=np.bool_)
    rare[:: 100 * spread] = True
    looked = Allowed(part, Filter(mask=rare))
    assert looked.share(0.2) == 0.2
    assert "mask" not in vars(looked)
    assert looked.share(0.05) == looked.count / COUNT


def test_listed_keys_near_and_far() -> None:
    """Looked up in a mask by key, or one by one."""
    index = Index(3)
    index.add([0, 1, 2, 10**12, 2**63 - 2], gaussian(5, 3))
    for where in ([1, 2], [2, 10**12], {2**63 - 2, 1}, [7, 2], [10**12 + 1, 0]):
        found = index.search(np.ones(3), 5, where=where).keys
        assert set(found[found >= 0].tolist()) == set(where) & {0, 1, 2, 10**12, 2**63 - 2}


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32])
def test_a_mask_of_integers_is_not_taken_for_keys(dtype: Any) -> None:
    index = Index(2)
    index.add(range(6), gaussian(6, 2))
    index.remove(5)
    marks = np.array([0, 1, 1, 0, 1], dtype=dtype)
    for where in (marks, torch.from_numpy(marks), marks.tolist(), marks * 0, marks * 0 + 1):
        for ask in (lambda where=where: index.search(np.ones(2), 5, where=where),
                    lambda where=where: index.range_search(np.ones(2), 9.0, where=where)):  # fmt: skip
            with pytest.raises(ValueError, match=r"^where must .* got 5 integers.* pass booleans .* or each key once$"):
                ask()
    for where in (marks[:4], np.append(marks, marks), marks.astype(bool), marks + marks, set(marks.tolist()), [0, 1]):
        index.search(np.ones(2), 5, where=where)
    pair = Index(2)
    pair.add([0, 1], np.eye(2))
    assert pair.search(np.ones(2), 2, where=np.array([0, 1], dtype=dtype)).keys.tolist() == [0, 1]


@pytest.mark.parametrize("scale", [1e-40, 1e-37, 1e-30, 1e18])
def test_the_length_of_a_query_does_not_matter_to_a_cosine(scale: float) -> None:
    index = Index(16, "cos", "f32")
    index.add(range(8000), gaussian(8000, 16))
    index.build()
    queries = gaussian(200, 16, seed=1)
    expected = index.search(queries, 10, exact=True).keys
    found = index.search((queries * scale).astype(np.float32), 10, ef=100).keys
    assert (found[:, :, None] == expected[:, None, :]).any(axis=2).mean() > 0.9


def test_what_numpy_is_told_to_raise_does_not_matter() -> None:
    index = Index(2, "l2sq", "f32")
    index.add(range(6000), gaussian(6000, 2))
    index.build()
    index.add(6000, np.zeros(2))
    with np.errstate(all="raise"):
        found = index.search(np.full(2, 1e-21), 1)
    assert (found.keys.tolist(), found.distances.tolist()) == ([6000], [np.float32(2e-42)])
