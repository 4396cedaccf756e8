"""The snapshot beside a durable index: mapped where it is good, and whatever lies in its place, answers are right."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmfast import Index, col
from mmfast.search import folding, storage
from mmfast.search.durable import DurableIndex
from mmfast.search.segment import Segment
from mmfast.search.truth import Truth
from tests.test_index import gaussian

ROWS = gaussian(3000, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an index with a graph, then changes that are not in its snapshot."""
    folder = tmp_path_factory.mktemp("durable") / "index"
    with Index.open(folder, 8, "l2sq", "f32", key_kind="str") as index:
        index.add([f"{n}" for n in range(2800)], ROWS[:2800])
        index.build()
        index.add([f"{n}" for n in range(2800, 3000)], ROWS[2800:], [{"n": n} for n in range(200)])
        index.remove([f"{n}" for n in range(100)])
        index.upsert(["100", "new"], np.stack([ROWS[0], ROWS[1]]))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note when all rows are read, and when a graph is built."""
    done: list[str] = []
    rows, build = Truth.rows, Segment.build

    def reading(*args: Any, **options: Any) -> Any:
        done.append("rows")
        return rows(*args, **options)

    def building(*args: Any, **options: Any) -> Any:
        done.append("build")
        return build(*args, **options)

    monkeypatch.setattr(Truth, "rows", reading)
    monkeypatch.setattr(Segment, "build", building)
    return done


def check(index: DurableIndex) -> None:
    keys = [*(f"{n}" for n in range(100, 3000)), "new"]
    rows = np.concatenate([ROWS[[0]], ROWS[101:], ROWS[[1]]])
    assert sorted(index) == sorted(keys)
    found = index.search(rows, 1, exact=True)
    assert found.keys[:, 0].tolist() == keys
    assert (found.distances == 0).all()
    assert len(index.search(rows[0], 4000, exact=True).keys.nonzero()[0]) == 2901
    assert set(index.search(rows[0], 3, where=col("n") < 3).keys.tolist()) == {"2800", "2801", "2802"}


def test_a_good_snapshot_is_mapped(folder: Path, counted: list[str], caplog: pytest.LogCaptureFixture) -> None:
    for read_only in (False, True):
        with Index.open(folder, read_only=read_only) as index:
            assert index.stats()["graph"] == 2699
            check(index)
            assert counted == []
            assert index.verify() == []
            counted.clear()
    assert caplog.text == ""


def rewritten(path: Path, how: Callable[[dict[str, Any], list[Any]], None]) -> None:
    """Write a snapshot with a right checksum and other content."""
    meta, sections = storage.unpack(path.read_bytes(), "it")
    parts: list[Any] = [bytes(each) for each in sections]
    how(meta, parts)
    storage.write_atomically(path, storage.pack(meta, parts))


def described(name: str, value: Any) -> Callable[[dict[str, Any], list[Any]], None]:
    def change(_: dict[str, Any], sections: list[Any]) -> None:
        told = json.loads(sections[0])
        told["main"][name] = value
        sections[0] = json.dumps(told).encode()

    return change


def spoilt(path: Path) -> dict[str, Callable[[], object]]:
    def place(make: Callable[[Path], object]) -> Callable[[], object]:
        def work() -> None:
            path.unlink()
            make(path)

        return work

    def change(how: Callable[[dict[str, Any], list[Any]], None]) -> Callable[[], object]:
        return lambda: rewritten(path, how)

    return {
        "empty": place(lambda path: path.touch()),
        "text": place(lambda path: path.write_text("hello")),
        "folder": place(lambda path: path.mkdir()),
        "pipe": place(os.mkfifo),
        "loop": place(lambda path: path.symlink_to(path)),
        "device": place(lambda path: path.symlink_to("/dev/zero")),
        "another index": change(lambda meta, _: meta.update(identity="another")),
        "other settings": change(lambda meta, _: meta.update(settings={"ndim": 9})),
        "no version": change(lambda meta, _: meta.pop("version") and None),
        "version is text": change(lambda meta, _: meta.update(version="hello")),
        "version below 0": change(lambda meta, _: meta.update(version=-1)),
        "version infinite": change(lambda meta, _: meta.update(version=float("inf"))),
        "version of the future": change(lambda meta, _: meta.update(version=1000)),
        "no sections": change(lambda _, sections: sections.clear()),
        "a section short": change(lambda _, sections: sections.pop() and None),
        "no JSON": change(lambda _, sections: sections.__setitem__(0, b"{")),
        "JSON of another kind": change(lambda _, sections: sections.__setitem__(0, b"[]")),
        "JSON without end": change(lambda _, sections: sections.__setitem__(0, b"[" * 100_000)),
        "rows is text": change(described("rows", "x")),
        "rows infinite": change(described("rows", float("inf"))),
        "curve is a list": change(described("curve", [1])),
        "unit is none": change(described("unit", None)),
        "entries too many": change(described("entries", 10**6)),
    }


@pytest.mark.parametrize("what", list(spoilt(Path())))
def test_whatever_is_in_its_place(
    what: str, folder: Path, counted: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 2000)
    path = folder / "snapshot.index"
    spoilt(path)[what]()
    with Index.open(folder, read_only=True) as index:
        check(index)
    with Index.open(folder) as index:
        assert counted == ["rows", "rows", "build"]  # a reader builds nothing
        assert index.stats()["graph"] == 2901
        check(index)
        told = [record.getMessage() for record in caplog.records if "reading all rows" in record.getMessage()]
        assert len(told) == 2
        assert all(line.startswith(f"{path} ") for line in told)
    replaced = what not in ("folder", "pipe", "loop", "device")
    counted.clear()
    caplog.clear()
    with Index.open(folder) as index:
        assert (counted == []) == replaced
        check(index)
        index.add(["last"], ROWS[[5]])
    with Index.open(folder, read_only=True) as index:
        assert index.search(ROWS[5], 1).keys.tolist() == ["last"]


@pytest.mark.parametrize("what", ["damaged", "missing"])
def test_without_progress_it_opens_at_once(
    what: str, folder: Path, counted: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And searches exactly until the graph is there, which no change has to ask for."""
    monkeypatch.setattr(folding, "LEAST_ROWS", 2000)
    path, build, opened = folder / "snapshot.index", Segment.build, threading.Event()
    path.write_bytes(path.read_bytes()[:-1]) if what == "damaged" else path.unlink()

    def building(*args: Any) -> Any:
        assert opened.wait(10)
        return build(*args)

    monkeypatch.setattr(Segment, "build", building)
    with Index.open(folder, progress=False) as index:
        assert index.stats()["graph"] == 0
        check(index)
        why = "cannot be used (ValueError: is truncated" if what == "damaged" else "is missing"
        assert caplog.messages[-1].startswith(f"{path} {why}")
        assert caplog.messages[-1].endswith(": building the graph of 2,901 rows in the background")
        opened.set()
        with index._engine._folding._running:
            assert index.stats()["graph"] == 2901
        check(index)
    assert counted == ["rows", "build"]
    with Index.open(folder) as index:
        check(index)
    assert counted == ["rows", "build"]


def test_bytes_flipped_or_missing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "snapshot.index"
    content = path.read_bytes()
    chosen = random.Random(1)
    regions = [(0, 24), (24, 300), (300, 4000), (4000, len(content) - 32), (len(content) - 32, len(content))]
    for number in range(30):
        if number % 3:
            place = chosen.randrange(*regions[number % 5])
            spoiled = bytearray(content)
            spoiled[place] ^= 1 << chosen.randrange(8)
        else:
            spoiled = bytearray(content[: chosen.randrange(len(content))])
        path.write_bytes(spoiled)
        caplog.clear()
        with Index.open(folder) as index:
            assert f"{path} cannot be used" in caplog.text
            assert (len(index), index.stats()["rows"]) == (2901, 2901)
            assert index.search(ROWS[2900], 1).keys.tolist() == ["2900"]
            (problem,) = index.verify()
            assert problem == caplog.messages[0].replace(": reading all rows", "")  # the log and verify() say the same
            assert "nothing is lost" in problem
            assert "copy" not in problem
    with Index.open(folder) as index:
        check(index)
        index.build()  # as the problem advises
        assert index.verify() == []


def test_too_old_a_snapshot_is_not_used(folder: Path, counted: list[str], caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "snapshot.index"
    old = path.read_bytes()
    with Index.open(folder) as index:
        index.compact()
    path.write_bytes(old)
    counted.clear()
    with Index.open(folder) as index:
        assert counted == ["rows"]
        assert "is too old to be brought up to date" in caplog.text
        check(index)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE items SET version = 1 WHERE key = '2900'",  # a new row, which the snapshot lacks
        "DELETE FROM removed WHERE key = '50'",
    ],
)
def test_rows_that_damage_would_lose_or_bring_back_are_read_anew(
    statement: str, folder: Path, counted: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(folder / "truth.sqlite") as connection:
        connection.execute(statement)
    connection.close()
    with Index.open(folder, read_only=True) as index:
        assert counted == ["rows"]
        assert "rows where truth.sqlite counts 2,901: reading all rows" in caplog.text
        check(index)


@pytest.mark.parametrize("statement", ["UPDATE state SET count = count + 1", "DELETE FROM items WHERE key = '2900'"])
def test_a_truth_that_counts_other_rows_than_it_has_is_told(statement: str, folder: Path) -> None:
    with sqlite3.connect(folder / "truth.sqlite") as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(
        ValueError, match=r"truth\.sqlite is damaged: it holds 2,90\d items, and counts 2,90\d; restore"
    ):
        Index.open(folder)


def test_an_older_truth_beside_a_newer_snapshot(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Restored from a copy it grows past the snapshot's version by other changes."""
    copy = (folder / "truth.sqlite").read_bytes()
    with Index.open(folder) as index:
        index.remove(["2000", "2001"])
        index.add(["lost"], ROWS[[50]])
        index.build()
    (folder / "truth.sqlite").write_bytes(copy)
    (folder / "writer.lock").unlink()
    with Index.open(folder, read_only=True) as index:
        check(index)
    assert "restored from a copy" in caplog.text
    for number in range(5):
        with Index.open(folder) as index:
            assert index.verify() == [caplog.messages[-1].replace(": reading all rows", "")]
            index.upsert([f"{number + 200}"], ROWS[[number + 200]])
    with Index.open(folder) as index:
        check(index)
        index.build()
        assert index.verify() == []


def test_a_truth_of_the_same_origin_that_went_another_way(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A copy that went on elsewhere, brought back beside the snapshot of the one that stayed."""
    shutil.copytree(folder, folder.parent / "copy")
    with Index.open(folder) as index:
        index.remove(["2000", "2001"])
        index.build()
    with Index.open(folder.parent / "copy") as index:
        for _ in range(9):
            index.upsert(["2500"], ROWS[[2500]])
    shutil.copy(folder.parent / "copy" / "truth.sqlite", folder / "truth.sqlite")
    with Index.open(folder) as index:
        assert "is of another past than the index" in caplog.text
        check(index)
        index.build()
        assert index.verify() == []
    caplog.clear()
    with Index.open(folder) as index:
        check(index)
    assert caplog.text == ""


def test_a_snapshot_of_another_index_is_a_problem(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Index.open(folder.parent / "other", 8, "l2sq", "f32", key_kind="str") as other:
        other.build()
    shutil.copy(folder.parent / "other" / "snapshot.index", folder / "snapshot.index")
    with Index.open(folder) as index:
        (problem,) = index.verify()
        assert f"{folder / 'snapshot.index'} belongs to another index; nothing is lost" in problem
        assert problem == caplog.messages[0].replace(": reading all rows", "")
        check(index)
        index.build()
        assert index.verify() == []


def test_a_snapshot_replaced_while_it_is_verified_is_no_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Index.open(folder) as writer, Index.open(folder, read_only=True) as reader:
        snapshots = Truth.snapshots

        def asking(truth: Truth) -> list[str]:
            monkeypatch.undo()
            for _ in range(2):  # then the one that was read is forgotten
                writer.build()
            return snapshots(truth)

        monkeypatch.setattr(Truth, "snapshots", asking)
        assert reader.verify() == []


def test_what_could_not_be_compared_is_not_called_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer forgets what it removed while a reader verifies."""
    with Index.open(folder) as writer, Index.open(folder, read_only=True) as reader:
        rows = Truth.rows

        def reading(truth: Truth) -> Any:
            writer.remove(["500"])
            writer.compact()
            return rows(truth)

        monkeypatch.setattr(Truth, "rows", reading)
        (problem,) = reader.verify()
        assert "was not compared" in problem
        monkeypatch.undo()
        assert reader.verify() == []


def test_compacting_keeps_the_snapshot_of_use(
    folder: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where something changed between the two steps."""
    with Index.open(folder) as index:
        save = DurableIndex._save_snapshot

        def saving(self: DurableIndex) -> Any:
            version = save(self)
            self.remove(["new"])
            self.add(["new"], ROWS[[1]])
            return version

        monkeypatch.setattr(DurableIndex, "_save_snapshot", saving)
        index.compact()
        check(index)
    counted.clear()
    with Index.open(folder) as index:
        check(index)
    assert counted == []


def test_removals_are_forgotten_two_snapshots_later(folder: Path) -> None:
    """What readers at the snapshot before need is kept."""
    with Index.open(folder) as index:
        before = index.stats()["version"]
        assert index._truth.changes(before - 1) is not None
        index.build()
        index.remove(["500"])
        index.build()
        assert index._truth.changes(before - 1) is None
        changes = index._truth.changes(before)
        assert changes is not None
        assert changes.removed_ids.tolist() == [500]


def test_a_row_removed_before_its_name_was_read_is_not_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Index.open(folder) as writer, Index.open(folder, read_only=True) as reader:
        names = Truth.all_names

        def reading(truth: Truth) -> Any:
            writer.remove(["500"])
            return names(truth)

        monkeypatch.setattr(Truth, "all_names", reading)
        (found,) = reader.search(ROWS[500], 1, exact=True).keys.tolist()
        assert found not in ("500", None)


def test_a_reader_takes_over_the_writers_graph(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing is committed after it was written."""
    monkeypatch.setattr(folding, "LEAST_ROWS", 150)
    with Index.open(folder) as writer, Index.open(folder, read_only=True) as reader:
        check(reader)
        writer.upsert([f"{n}" for n in range(200, 1200)], ROWS[200:1200])
        check(reader)
        writer.build()
        check(reader)
        assert reader.stats()["tail"] == 0
        assert reader.stats()["graph"] == 2901


def test_a_reader_that_builds_meanwhile_is_not_led_astray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LEAST_ROWS", 150)
    build = Segment.build
    with Index.open(folder) as writer, Index.open(folder, read_only=True) as reader:

        def building(*args: Any) -> Any:
            monkeypatch.undo()
            monkeypatch.setattr(folding, "LEAST_ROWS", 150)
            writer.upsert([f"{n}" for n in range(200, 1200)], ROWS[200:1200])
            writer.remove(["300"])
            writer.add(["300"], ROWS[[300]])
            writer.build()
            check(reader)
            return build(*args)

        monkeypatch.setattr(Segment, "build", building)
        reader.build()
        check(reader)
        assert reader.verify() == []
