"""Copies of a vector, of which the graph holds one: the others are found, counted and removed all the same."""

from __future__ import annotations

import copy
import time

import numpy as np
import pytest

from mmfast import Index
from mmfast.search.graph import EXACT_ROWS, distinct
from mmfast.search.tuning import Point
from tests.test_index import gaussian


@pytest.mark.parametrize("dtype", ["bf16", "i8"])
def test_copies_of_a_vector_do_not_hide_others(dtype: str) -> None:
    # In a graph that holds the copies, of the distinct rows about half or fewer find themselves.
    distinct = gaussian(EXACT_ROWS + 50, 8)
    copies = np.repeat(gaussian(1, 8, seed=1), 3000, axis=0)
    index = Index(8, "cos", dtype)
    index.add(range(3000), copies)
    index.add(np.arange(len(distinct)) + 3000, distinct)
    assert len(index) == 3000 + len(distinct)
    index.build()
    own = index.search(distinct, 5, ef=64).keys == np.arange(len(distinct))[:, None] + 3000
    assert own.any(axis=1).mean() > 0.97
    found = index.search(copies[0], 3050, ef=64)
    assert sorted(found.keys[:3000].tolist()) == list(range(3000))
    assert found.keys[3000:].min() >= 3000
    assert found.distances[:3000].max() == found.distances[:3000].min() < found.distances[3000:].min()
    # The copy in the graph goes first, and another is found in its place.
    index.remove(range(2998))
    assert sorted(index.search(copies[0], 3, ef=64).keys[:2].tolist()) == [2998, 2999]
    index.remove(2999)
    assert index.search(copies[0], 1, ef=64).keys.tolist() == [2998]
    index.remove(2998)
    assert index.search(copies[0], 1, ef=64).keys[0] >= 3000
    index.add(0, copies[0])
    assert index.search(copies[0], 1, ef=64).keys.tolist() == [0]


def test_removing_copies_takes_time_in_proportion() -> None:
    count = 10_000
    index = Index(4)
    index.add(range(count), np.ones((count, 4)))
    begin = time.perf_counter()
    assert index.remove(range(count - 10)) == count - 10
    assert time.perf_counter() - begin < 3  # listing all that are left for each takes a minute
    assert sorted(index.search(np.ones(4), 11).keys.tolist()) == [-1, *range(count - 10, count)]


def test_a_search_lists_no_more_copies_than_it_returns() -> None:
    count = 20_000
    index = Index(4)
    index.add(range(count), np.ones((count, 4)))
    index.add(range(count, count + EXACT_ROWS + 50), gaussian(EXACT_ROWS + 50, 4))
    index.build()
    assert index.search(np.ones((500, 4)), 2, ef=64).keys.tolist() == [[0, 1]] * 500


def test_copies_are_ranked_by_key() -> None:
    index = Index(2)
    index.add([5, 3, 9, 1, 7], np.ones((5, 2)))
    index.remove([5, 9])
    for each in (index, copy.copy(index)):  # a copy is made of a file's bytes
        assert each.search(np.ones(2), 4).keys.tolist() == [1, 3, 7, -1]


def test_equal_hashes_do_not_make_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gaussian(40, 3)[[*range(40), 7, 7, 3]]
    monkeypatch.setattr("mmfast._C.hash_rows", lambda rows: np.arange(len(rows), dtype=np.uint64) % 2)
    heads, copied = distinct(rows)
    assert heads.tolist() == list(range(43))  # nothing is equal to the first of its hash
    monkeypatch.undo()
    heads, copied = distinct(rows)
    assert heads.tolist() == list(range(40))
    assert (copied.rows.tolist(), copied.heads.tolist()) == ([40, 41, 42], [7, 7, 3])


def test_a_graph_of_rows_that_all_have_copies_is_measured() -> None:
    index = Index(16, "l2sq", "f32")
    rows = gaussian(6000, 16)
    index.add(range(12_000), np.concatenate([rows, rows]))
    index.build()
    measured = index.recall_curve()[10]
    assert measured[-1].recall > 0.9
    queries = gaussian(300, 16, seed=1)
    found, exact = index.search(queries, 10, ef=measured[-1].ef).keys, index.search(queries, 10, exact=True).keys
    assert abs((found[:, :, None] == exact[:, None, :]).any(2).mean() - measured[-1].recall) < 0.05


def test_recall_of_one_is_exact() -> None:
    # The walk found all neighbours of the rows that it was measured by, and misses some of those of other queries.
    index = Index(2, "l2sq", "f32")
    index.add(range(20_000), gaussian(20_000, 2))
    index.build()
    queries = 2 * gaussian(5000, 2, seed=1)
    assert (index.search(queries, 10, ef=10).keys != index.search(queries, 10, exact=True).keys).any()
    main = index._state.main
    assert main is not None
    assert main.segment.curve is not None
    main.segment.curve.points[10][:] = [Point(10, 1.0, 0.0, 0.0)]
    np.testing.assert_array_equal(index.search(queries, 10, recall=1).keys, index.search(queries, 10, exact=True).keys)
