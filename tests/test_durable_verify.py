"""What verify() says of an engine that does not hold what the database does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mmfast import Index
from mmfast.search.durable import DurableIndex
from mmfast.search.state import State
from tests.test_index import gaussian

ROWS = gaussian(30, 6)


@pytest.fixture
def index(folder: Path) -> Iterator[DurableIndex]:
    with Index.open(folder, 6, "l2sq", "f32") as made:
        made.add(range(20), ROWS[:20])
        yield made


def another_vector(engine: Index) -> None:
    engine.upsert([3, 5], ROWS[20:22])


def a_row_too_few(engine: Index) -> None:
    engine.remove([3, 5])


def a_row_too_many(engine: Index) -> None:
    engine.add([33, 35], ROWS[20:22])


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("spoil", "wrong"), [(another_vector, "3, 5"), (a_row_too_few, "3, 5"), (a_row_too_many, "33, 35")]
)
def test_rows_that_differ_are_named(
    spoil: Callable[[Index], None], wrong: str, graph: bool, index: DurableIndex
) -> None:
    if graph:
        index.build()
    assert index.verify() == []
    spoil(index._engine)
    assert index.verify() == [f"the index in memory differs from the database in {wrong}"]


def test_rows_that_are_held_twice_are_told(index: DurableIndex) -> None:
    part = index._engine._state.tail
    index._engine._state = State(part, part)
    assert index.verify() == ["the index in memory holds rows twice"]


def test_what_changes_while_rows_are_read_is_no_difference(
    index: DurableIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = index._truth.rows

    def reading() -> Iterator[object]:
        index.upsert(3, ROWS[20])
        index.remove(5)
        index.add(33, ROWS[21])
        yield from rows()
        index.remove(7)

    monkeypatch.setattr(index._truth, "rows", reading)
    assert index.verify() == []
    assert np.array_equal(np.sort(index.keys()), [n for n in range(20) if n not in (5, 7)] + [33])
