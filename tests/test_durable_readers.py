"""Readers of a durable index in processes of their own, beside a writer that folds, trims, compacts and reopens."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast import Index, col
from mmfast.search import folding, graph
from tests.test_index import gaussian

ROWS = gaussian(20_000, 6)
STEADY = 300


@pytest.fixture(autouse=True)
def _early_graphs(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 80)
    monkeypatch.setattr(graph, "EXACT_ROWS", 300)
    monkeypatch.setattr(graph, "HELD_BACK", 20)


def forked(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(1)
    return child


def named(kind: str, number: int) -> int | str:
    return number if kind == "int" else f"key {number}"


def watch(folder: Path, kind: str, pipe: int, patience: int) -> None:
    """Look until the writer is done: rows that stay are found, others only whole, and nothing older than before."""
    os.set_blocking(pipe, False)
    chosen = random.Random(patience)
    steady = [named(kind, number) for number in range(STEADY)]
    none = -1 if kind == "int" else None
    done = False
    while not done:
        with Index.open(folder, read_only=True) as index:
            version = 0
            for _ in range(patience):
                with suppress(BlockingIOError):
                    done = done or os.read(pipe, 1) == b""
                some = [chosen.randrange(STEADY) for _ in range(10)]
                found = index.search(ROWS[some], 1, exact=True)
                assert found.keys[:, 0].tolist() == [steady[n] for n in some]
                found = index.search(ROWS[some[0]], 2 * len(index) + 200, exact=True)
                keys = [key for key in found.keys.tolist() if key != none]
                assert len(keys) == len(set(keys)) == np.isfinite(found.distances).sum()
                # Batches are numbered, of 20 rows each, and there for as long as they are there whole.
                numbers = [int(str(key).split()[-1]) for key in keys]
                batches = np.bincount([(number - STEADY) // 20 for number in numbers if number >= STEADY], minlength=1)
                assert set(batches.tolist()) <= {0, 20}
                now = index.stats()["version"]
                assert version <= now
                version = now
                first = index.search(ROWS[some[0]], 1, where=col("steady") == True)  # noqa: E712
                assert first.keys.tolist() == [steady[some[0]]]
            assert index.verify() == []


@pytest.mark.parametrize("steps", [150, pytest.param(900, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["int", "str"])
def test_readers_see_whole_commits_only(kind: str, steps: int, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with Index.open(folder, 6, "l2sq", "f32", key_kind=kind) as index:
        keys = [named(kind, number) for number in range(STEADY)]
        index.add(keys, ROWS[:STEADY], [{"steady": True}] * STEADY)
    read, write = os.pipe()

    def look(patience: int) -> Callable[[], None]:
        def work() -> None:
            os.close(write)
            watch(folder, kind, read, patience)

        return work

    children = [forked(look(patience)) for patience in (1, 30)]
    os.close(read)
    chosen = random.Random(0)
    held: list[int] = []
    step = 0
    while step < steps:
        with Index.open(folder) as index:
            for _ in range(50):
                step += 1
                if held and chosen.random() < 0.45:
                    batch = held.pop(chosen.randrange(len(held)))
                    index.remove([named(kind, STEADY + batch * 20 + n) for n in range(20)])
                else:
                    batch = step
                    held.append(batch)
                    index.add(
                        [named(kind, STEADY + batch * 20 + n) for n in range(20)],
                        ROWS[STEADY + batch * 20 : STEADY + batch * 20 + 20],
                    )
                if step % 40 == 0:
                    index.upsert(keys[:20], ROWS[:20])
                if step % 45 == 0:
                    index.compact()
                if step % 33 == 0:
                    index.build()
    os.close(write)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_readers_write_nothing(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with Index.open(folder, 6, "l2sq", "f32", key_kind=kind) as index:
        index.add([named(kind, number) for number in range(500)], ROWS[:500])
        index.build()
        index.add([named(kind, number) for number in range(500, 700)], ROWS[500:700])

    def contents() -> dict[str, str]:
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

    before = contents()
    for spoil in (False, True):
        if spoil:
            (folder / "snapshot.index").write_bytes(b"spoilt")
            before = contents()
        with Index.open(folder, read_only=True) as index:
            index.search(ROWS[:9], 3)
            index.build()
            index.tune(ROWS[:50])
            index.verify()
            during = contents()
            assert {name: during[name] for name in before} == before
            # SQLite's own stay behind, empty, where there were none: only a writer may remove them.
            assert set(during) - set(before) <= {"truth.sqlite-wal", "truth.sqlite-shm"}
        if (folder / "truth.sqlite-wal").exists():
            assert (folder / "truth.sqlite-wal").stat().st_size == 0
    Index.open(folder).close()
    assert sorted(os.listdir(folder)) == ["snapshot.index", "truth.sqlite", "writer.lock"]


@pytest.mark.parametrize("kind", ["int", "str"])
def test_readers_follow_through_folds_and_compactions(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "index"
    index = Index.open(folder, 6, "l2sq", "f32", key_kind=kind)
    monkeypatch.setattr(folding, "LEAST_ROWS", 30)
    rng = np.random.default_rng(0)
    held: dict[Any, Any] = {}
    near, far = Index.open(folder, read_only=True), Index.open(folder, read_only=True)
    for step in range(60):
        keys = [named(kind, n) for n in rng.choice(300, 25, replace=False).tolist()]
        rows = rng.standard_normal((25, 6)).astype(np.float32)
        index.upsert(keys, rows)
        held.update(zip(keys, rows, strict=True))
        gone = [list(held)[n] for n in rng.choice(len(held), 10, replace=False)]
        index.remove(gone)
        for key in gone:
            del held[key]
        if step % 9 == 5:
            index.build()
        if step % 20 == 19:
            index.compact()
        for reader in (near, far) if step % 20 == 19 else (near,):
            found = reader.search(np.array(list(held.values())), 1, exact=True)
            assert found.keys[:, 0].tolist() == list(held)
            assert reader.stats()["rows"] == len(reader) == len(held)
            assert reader.verify() == []
    assert index.verify() == []
    for each in (near, far, index):
        each.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_one_who_may_only_read_reads() -> None:
    top = Path(tempfile.mkdtemp())  # tmp_path lies where only its owner may look
    top.chmod(0o755)
    folder = top / "index"
    try:
        with Index.open(folder, 6, key_kind="str") as index:
            index.add([named("str", n) for n in range(10)], ROWS[:10])
            index.build()
            index.add(["later"], ROWS[[20]])
        (folder / "snapshot.index").chmod(0o600)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                with pytest.raises(PermissionError):
                    Index.open(folder)
                with Index.open(folder, read_only=True) as index:
                    assert index.search(ROWS[20], 1).keys.tolist() == ["later"]
                    assert len(index) == 11
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        shutil.rmtree(top)
