"""Who built a graph goes over to its file: the same answers, little memory, and nothing lost that changed meanwhile."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mmfast import Index
from mmfast.search import graph, storage
from mmfast.search.durable import DurableIndex
from mmfast.search.snapshot_file import SnapshotFile
from tests.test_index import gaussian

ROWS = gaussian(1500, 8)
QUERIES = gaussian(40, 8, seed=1)


@pytest.fixture
def index(folder: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[DurableIndex]:
    monkeypatch.setattr(graph, "EXACT_ROWS", 300)
    monkeypatch.setattr(graph, "HELD_BACK", 20)
    with Index.open(folder, 8, "l2sq", "bf16") as made:
        made.add(range(1000), ROWS[:1000])
        yield made


def mapped_arrays(index: DurableIndex) -> list[bool]:
    """Tell of each array of the graph whether it lies in a file."""

    def is_mapped(array: Any) -> bool:
        while isinstance(array, np.ndarray):
            array = array.base
        return isinstance(getattr(array, "obj", None), mmap.mmap)

    main = index._engine._state.main
    assert main is not None
    segment = main.segment
    assert segment.links is not None
    assert segment.walker is segment.rows
    return [is_mapped(each) for each in (segment.keys, segment.stored, *segment.image[:4], *segment.links[:3])]


def answers(index: DurableIndex, below: float) -> list[npt.NDArray[Any]]:
    """Return what searches of every kind find, and rows as they are stored."""
    even = np.arange(2000) % 2 == 0
    return [
        *index.search(QUERIES, 7, exact=True),
        *index.search(QUERIES, 7, ef=20),
        *index.search(QUERIES, 7, ef=20, where=even),
        *index.search(QUERIES[0], 2000, where=range(100, 130)),
        *index.range_search(QUERIES, below),
        index.get(range(100, 1000)),
    ]


def test_the_file_answers_as_the_memory_did(index: DurableIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[Any] = []
    move = SnapshotFile._move

    def moving(*args: Any) -> None:
        assert not any(mapped_arrays(index))
        before.extend(answers(index, 2.0))
        move(*args)

    monkeypatch.setattr(SnapshotFile, "_move", moving)
    index.build()
    assert all(mapped_arrays(index))
    for old, new in zip(before, answers(index, 2.0), strict=True):
        assert old.dtype == new.dtype
        assert old.tobytes() == new.tobytes()
    assert index.verify() == []


def test_what_changes_while_the_file_is_written_stays(
    index: DurableIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write_atomically

    def writing(*args: Any) -> None:
        write(*args)
        monkeypatch.undo()
        index.remove(range(100))
        index.upsert([100, 1000], ROWS[[1100, 1200]])
        index.tune(QUERIES)

    monkeypatch.setattr(storage, "write_atomically", writing)
    index.build()
    for _ in range(2):
        assert all(mapped_arrays(index))
        assert {len(points) for points in index.recall_curve().values()} != {0}
        held = [*range(101, 1000), 100, 1000]
        rows = ROWS[[*range(101, 1000), 1100, 1200]].astype(np.float32)
        assert sorted(index) == sorted(held)
        assert index.search(rows, 1, exact=True).keys[:, 0].tolist() == held
        assert sorted(index.search(QUERIES[0], 2000, exact=True).keys.tolist()) == [-1] * 1099 + sorted(held)
        assert index.verify() == []
        index.close()
        index = Index.open(folder)
    index.close()


def test_what_was_measured_while_the_file_is_written_stays(
    index: DurableIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By queries of the caller, of which the file knows nothing."""
    move = SnapshotFile._move
    told: list[Any] = []

    def moving(*args: Any) -> None:
        if not told:
            told.append(None)
            index._engine.tune(ROWS[:100])
            told.append(index.recall_curve())
        move(*args)

    monkeypatch.setattr(SnapshotFile, "_move", moving)
    index.build()
    assert index.recall_curve() == told[1]


def test_a_file_that_is_replaced_serves_those_who_search_it(index: DurableIndex, folder: Path) -> None:
    index.build()
    main = index._engine._state.main
    assert main is not None
    old = main.segment
    found = old.rows.search(QUERIES, 5, None, False, 1)
    index.remove(range(500))
    index.build()
    (folder / "snapshot.index").unlink()
    for now, before in zip(old.rows.search(QUERIES, 5, None, False, 1), found, strict=True):
        assert now.tobytes() == before.tobytes()
    assert index.verify() == []
    index.build()
    assert (folder / "snapshot.index").exists()


@pytest.mark.parametrize("what", ["a byte flipped", "gone", "another", "no room"])
def test_a_file_that_cannot_be_gone_over_to(
    what: str, index: DurableIndex, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, write = folder / "snapshot.index", storage.write_atomically

    def writing(*args: Any) -> None:
        write(*args)
        content = bytearray(path.read_bytes())
        if what == "gone":
            path.unlink()
        elif what == "a byte flipped":
            content[5000] ^= 1
            path.write_bytes(content)
        elif what == "another":
            meta, sections = storage.unpack(content, "it")
            write(path, storage.pack({**meta, "name": "another"}, sections))

    def failing(*_: Any) -> Any:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(storage, "write_atomically", writing)
    if what == "no room":
        monkeypatch.setattr(storage, "map_file", failing)
    index.build()
    assert f"{path} cannot be" in caplog.text
    assert "the graph stays in memory" in caplog.text
    monkeypatch.undo()
    assert not any(mapped_arrays(index))
    assert index.stats()["graph"] == 1000
    assert index.search(ROWS[:1000], 1, exact=True).keys[:, 0].tolist() == list(range(1000))
    index.build()
    assert all(mapped_arrays(index))
    assert index.verify() == []


NDIM, SLOTS, COUNT = 1024, 16, 6_000
BUILDER = f"""
import sys
import numpy as np, torch
from mmfast import Index
from mmfast.search import database, folding
from mmfast.search.freed import return_freed_memory

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

def search(index):
    for _ in range(3):
        index.search(rows[:500], 10, ef=30), index.search(rows[:500], 10, exact=True)
    return anonymous() - before

torch.set_num_threads(1)
database._WRITER_PRAGMAS += ("cache_size = -1000",)  # SQLite's, up to 16 MB, is no part of the bound
rng = np.random.default_rng(0)
rows = rng.standard_normal(({COUNT + COUNT // 3}, 6), np.float32) @ rng.standard_normal((6, {NDIM}), np.float32)
made = {{"connectivity": {SLOTS // 2}, "expansion_add": 8}}
folding.LEAST_ROWS = 1000
before = 0
index = Index({NDIM}, **made)
index.add(range(2100), rows[:2100])
index.build()
search(index)
del index
return_freed_memory()
before = anonymous()
with Index.open(sys.argv[1], {NDIM}, **made) as index:
    with index._engine._folding._running:  # nothing is built in the background
        index.add(range({COUNT}), rows[:{COUNT}])
        index.build()
    print(search(index))
    index.add(range({COUNT}, len(rows)), rows[{COUNT}:])
    with index._engine._folding._running:
        assert index.stats()["tail"] == 0
    print(search(index))
del index
plain = Index({NDIM}, **made)
with plain._folding._running:
    plain.add(range({COUNT}), rows[:{COUNT}])
    plain.build()
print(search(plain), plain.stats()["bytes"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell")
def test_the_memory_of_who_builds(folder: Path) -> None:
    """After a build that was waited for, one in the background, and one that has no file, which takes what it says.

    In one heap, all of which the allocator gives back when asked.
    """
    command = [sys.executable, "-c", BUILDER, str(folder)]
    one_heap = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_heap)
    assert done.returncode == 0, done.stderr
    waited, background, plain, told = map(int, done.stdout.split())
    bound = 1.3 * NDIM + 4 * SLOTS
    assert waited <= COUNT * bound
    assert background <= (COUNT + COUNT // 3) * bound
    assert told <= plain <= 1.25 * told
