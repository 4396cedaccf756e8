"""Opening the durable store: settings kept, foreign folders refused, creations cut short, odd names."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mmfast.search import database, schema
from mmfast.search.conditions import col
from mmfast.search.truth import Truth
from tests.stores import SETTINGS, ids_where, keys_of, rows


def test_settings_are_kept_and_compared(folder: Path) -> None:
    Truth.open(folder, {**SETTINGS, "links": [1, 2]}, key_kind="int").close()
    for same in (None, {}, {"ndim": 4}, {"links": (1, 2)}):
        Truth.open(folder, same, key_kind="int").close()
    for name, value in (("ndim", 5), ("metric", "cos"), ("dtype", "f32"), ("links", [1])):
        with pytest.raises(ValueError, match=rf"was made with {name}=.*, got {name}=.*; leave it out"):
            Truth.open(folder, {**SETTINGS, name: value})
    with pytest.raises(ValueError, match="was made with key_kind='int', got key_kind='str'"):
        Truth.open(folder, key_kind="str", read_only=True)
    with pytest.raises(ValueError, match="was made without the setting other"):
        Truth.open(folder, {"other": 1})
    with Truth.open(folder, SETTINGS) as truth:  # the errors left no lock behind
        assert truth.settings["ndim"] == 4


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"ndim": 4}, ValueError),
        ({"ndim": 0, "dtype": "f32"}, ValueError),
        ({"ndim": "4", "dtype": "f32"}, TypeError),
        ({"ndim": 4, "dtype": "f64"}, ValueError),
        ({"ndim": 4, "dtype": "f32", "what": object()}, TypeError),
    ],
)
def test_nothing_is_made_with_odd_settings(settings: dict[str, object], error: type[Exception], folder: Path) -> None:
    with pytest.raises(error):
        Truth.open(folder, settings, key_kind="int")
    with pytest.raises(ValueError, match="key_kind must be"):
        Truth.open(folder, SETTINGS, key_kind="bytes")
    assert not folder.exists()


def test_no_room_for_the_lock_is_told_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match=rf"No space left on device: '{folder / 'writer.lock'}'"):
        Truth.open(folder, SETTINGS, key_kind="int")
    monkeypatch.undo()
    Truth.open(folder, SETTINGS, key_kind="int").close()


def test_a_lock_removed_while_it_is_taken_is_taken_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next writer would make a file of that name, and lock it too."""
    path, lock = folder / "writer.lock", fcntl.flock
    folder.mkdir()

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Truth.open(folder, SETTINGS, key_kind="int"):
        assert path.exists()
        with pytest.raises(BlockingIOError, match="open for writing already"):
            Truth.open(folder)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folder .*nowhere does not exist"):
        Truth.open(tmp_path / "nowhere" / "index", SETTINGS, key_kind="int")
    with pytest.raises(FileNotFoundError, match="to make one, give ndim"):
        Truth.open(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="holds no mmfast index"):
        Truth.open(tmp_path / "index", SETTINGS, key_kind="int", read_only=True)
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotADirectoryError, match="is a file"):
        Truth.open(tmp_path / "file", SETTINGS, key_kind="int")
    with pytest.raises(FileExistsError, match=r"is no mmfast index: it has no truth\.sqlite, but file"):
        Truth.open(tmp_path, SETTINGS, key_kind="int")
    assert sorted(os.listdir(tmp_path)) == ["file"]
    (tmp_path / "empty").mkdir()
    Truth.open(tmp_path / "empty", SETTINGS, key_kind="int").close()
    other = tmp_path / "other"
    other.mkdir()
    connection = sqlite3.connect(other / database.DATABASE)
    connection.execute("CREATE TABLE items (id)")
    connection.close()
    with pytest.raises(ValueError, match="is not an mmfast index, but the SQLite database of another program"):
        Truth.open(other)
    connection = sqlite3.connect(tmp_path / "empty" / database.DATABASE)
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(ValueError, match="has format version 3, but this mmfast reads version 2"):
        Truth.open(tmp_path / "empty", SETTINGS)


def test_a_creation_cut_short_is_begun_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schema, "_sync", lambda path: killed(path) if path.name == schema._CREATING else None)
        with pytest.raises(KeyboardInterrupt):
            Truth.open(folder, SETTINGS, key_kind="int")
    assert sorted(os.listdir(folder)) == ["truth.creating", "writer.lock"]
    (folder / "truth.creating-wal").write_bytes(b"left over")
    with Truth.open(folder, SETTINGS, key_kind="str") as truth:
        truth.add(["a"], rows(1))
    assert sorted(os.listdir(folder)) == ["truth.sqlite", "writer.lock"]


def test_folder_names_may_be_odd(tmp_path: Path) -> None:
    for name in ("a?mode=memory", "a#b %41", "ü 名", b"\xff"):
        path: Any = os.fsencode(tmp_path) + b"/" + name if isinstance(name, bytes) else tmp_path / name
        with Truth.open(path, SETTINGS, key_kind="int") as truth:
            truth.add([1], rows(1))
        with Truth.open(path, read_only=True) as truth:
            assert 1 in truth
        assert os.listdir(path)


def test_readers_see_commits_and_may_not_write(truth: Truth, kind: str, folder: Path) -> None:
    with Truth.open(folder, read_only=True) as reader, Truth.open(folder, SETTINGS, read_only=True) as other:
        for count in range(1, 20):
            truth.add(keys_of(kind, [count]), rows(1, count), [{"n": count}])
            assert (len(reader), reader.version, len(other)) == (count, count, count)
            assert len(ids_where(reader, col("n") > 0)) == count
        going = reader.rows(block=5)
        next(going)
        truth.remove(keys_of(kind, range(1, 11)))
        assert len(next(going)[0]) == 5
        for change in (lambda: reader.add(keys_of(kind, [99]), rows(1)), reader.compact, lambda: reader.trim(0)):
            with pytest.raises(PermissionError, match="opened with read_only=True"):
                change()
        assert reader.identity == truth.identity


def test_a_closed_index_says_so(truth: Truth, kind: str, folder: Path) -> None:
    truth.add(keys_of(kind, range(10)), rows(10))
    going = truth.rows(block=5)
    next(going)
    truth.close()
    truth.close()
    for use in (lambda: truth.add(keys_of(kind, [99]), rows(1)), lambda: len(truth), lambda: next(going)):
        with pytest.raises(ValueError, match="is closed; open it again"):
            use()
    assert sorted(os.listdir(folder)) == ["truth.sqlite", "writer.lock"]


def test_settings_that_make_no_sense_are_told(folder: Path) -> None:
    Truth.open(folder, SETTINGS, key_kind="int").close()
    for value in ("{", "3", json.dumps({"ndim": 4})):
        connection = sqlite3.connect(folder / "truth.sqlite")
        connection.execute("UPDATE about SET value = ? WHERE name = 'settings'", (value,))
        connection.commit()
        connection.close()
        with pytest.raises(ValueError, match="settings"):
            Truth.open(folder)
