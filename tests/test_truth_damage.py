"""The durable store when the disk is full, its files are damaged or lost: told, and never a wrong answer."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from mmfast.search.conditions import col
from mmfast.search.truth import Truth
from tests.stores import SETTINGS, ids_where, keys_of, rows


def test_a_full_disk_keeps_nothing_of_the_batch(truth: Truth, kind: str) -> None:
    truth.add(keys_of(kind, range(1000)), rows(1000), [{"n": n} for n in range(1000)])
    writer = truth._database._held.writer
    assert writer is not None
    (pages,) = writer.execute("PRAGMA page_count").fetchone()
    writer.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(OSError, match="no space left") as caught:
        truth.add(keys_of(kind, range(1000, 30_000)), rows(29_000), [{"n": n} for n in range(29_000)])
    assert caught.value.errno == errno.ENOSPC
    assert (len(truth), truth.version, len(list(truth))) == (1000, 1, 1000)
    writer.execute("PRAGMA max_page_count = 1000000")
    truth.add(keys_of(kind, range(1000, 30_000)), rows(29_000))
    assert len(truth) == 30_000
    assert truth.verify() == []


def test_a_limit_on_file_sizes_keeps_nothing_of_the_batch(truth: Truth, kind: str) -> None:
    truth.add(keys_of(kind, range(1000)), rows(1000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"a limit on file sizes was met|no space left"):
            truth.add(keys_of(kind, range(1000, 50_000)), rows(49_000))
        assert (len(truth), truth.version) == (1000, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    truth.add(keys_of(kind, range(1000, 50_000)), rows(49_000))
    assert truth.verify() == []


def make(folder: Path, count: int = 2000) -> None:
    with Truth.open(folder, SETTINGS, key_kind="str", indexed_columns=["n"]) as truth:
        truth.add(keys_of("str", range(count)), rows(count), [{"n": n} for n in range(count)])


def read_everything(folder: Path) -> None:
    """Raise unless what can be read is what was written; an error that names the file is as good."""
    try:
        with Truth.open(folder, read_only=True) as truth:
            problems = truth.verify()
            keys = keys_of("str", range(2000))
            stored, metadata, found = truth.get(keys), truth.metadata(keys), ids_where(truth, col("n") >= 0)
            if not problems:
                assert len(truth) == len(found) == 2000
            assert (stored == rows(2000)).all()
            assert metadata == [{"n": n} for n in range(2000)]
    except (ValueError, OSError) as error:
        told = any(word in str(error) for word in ("damaged", "not an mmfast", "cannot", "lost", "format"))
        if not told or str(folder) not in str(error):
            raise
    except KeyError:  # SQLite no longer finds a key: verify() must have told
        if not problems:
            raise


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_told(seed: int, folder: Path) -> None:
    make(folder)
    path = folder / "truth.sqlite"
    whole = path.read_bytes()
    chosen = np.random.default_rng(seed)
    for count in [1] * 12 + [40] * 3:
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[chosen.integers(0, len(whole), count)] ^= np.uint8(1 << int(chosen.integers(0, 8)))
        path.write_bytes(damaged.tobytes())
        read_everything(folder)


def test_a_flipped_vector_or_document_is_told_by_its_checksum(folder: Path) -> None:
    make(folder)
    path = folder / "truth.sqlite"
    whole = path.read_bytes()
    place = whole.index(rows(2000)[1234].tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    key = keys_of("str", [1234])
    with Truth.open(folder) as truth:
        assert truth.verify() == [f"the vector under key {key[0]!r} does not match its checksum"]
        for read in (lambda: truth.get(key), lambda: list(truth.rows()), lambda: truth.changes(0)):
            with pytest.raises(ValueError, match=r"truth\.sqlite is damaged: the vector under key .*1234"):
                read()
        truth.get(keys_of("str", range(1000)))
        truth.remove(key)
        truth.add(key, rows(2000)[1234:1235])
        truth.update_metadata(key, [{"n": 1234}])
        assert truth.verify() == []
    whole = path.read_bytes()
    place = whole.index(b'{"n":1777}')
    path.write_bytes(whole[:place] + b'{"n":1778}' + whole[place + 10 :])
    with Truth.open(folder) as truth:
        assert any("does not match its checksum" in problem for problem in truth.verify())
        with pytest.raises(ValueError, match=r"metadata under key .*1777.* does not match its checksum"):
            truth.metadata(keys_of("str", [1777]))


@pytest.mark.parametrize("number", [700, 1999])
@pytest.mark.parametrize(
    ("back", "bit", "problem"),
    [
        (9, 1 << 3, "its items are out of order at id"),  # from the last, now a smaller one, all would be read again
        (5, 1, "the key b'key .* is not the one that was added"),  # bytes
    ],
)
def test_a_flipped_id_or_kind_of_key_is_told(number: int, back: int, bit: int, problem: str, folder: Path) -> None:
    make(folder)
    path = folder / "truth.sqlite"
    whole = path.read_bytes()
    (key,) = keys_of("str", [number])
    # Before the key there are 2 bytes of the id, the head's size, and the types of id, key, version, mark, checksum and
    # vector.
    place = whole.rindex(key.encode(), 0, whole.index(rows(2000)[number].tobytes())) - back
    path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
    with Truth.open(folder, read_only=True) as truth:
        assert truth.verify() != []
        for read in (lambda: list(truth), lambda: list(truth.names())):
            with pytest.raises(ValueError, match=rf"truth\.sqlite is damaged: .*{problem}"):
                read()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE state SET count = count - 2", "2 more items than were counted"),
        ("UPDATE state SET count = count + 2", "-2 more items than were counted"),
        ("DELETE FROM items WHERE id < 3; UPDATE state SET count = count - 3", "3 documents without an item"),
        ("UPDATE items SET version = 2 WHERE id < 4", "4 items of versions that are yet to come"),
    ],
)
def test_tables_that_disagree_are_told(statement: str, problem: str, folder: Path) -> None:
    make(folder)
    with sqlite3.connect(folder / "truth.sqlite") as connection:
        connection.executescript(statement)
    connection.close()
    with Truth.open(folder, read_only=True) as truth:
        assert truth.verify() == [problem]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET version = 'one'",
        "UPDATE state SET count = 2000.5",
        "DELETE FROM state",
        "INSERT INTO removed VALUES (2, 'three', NULL); UPDATE state SET version = 2",
        "INSERT INTO removed VALUES (2, 3.5, NULL); UPDATE state SET version = 2",
    ],
)
def test_values_of_another_type_are_told(statement: str, folder: Path) -> None:
    make(folder)
    with sqlite3.connect(folder / "truth.sqlite") as connection:
        connection.executescript(statement)
    connection.close()
    with pytest.raises(ValueError, match=r"truth\.sqlite is damaged: its table of"), Truth.open(folder) as truth:
        truth.changes(1)


@pytest.mark.parametrize("expression", ["!", """json_extract(metadata, '$."m"')"""])
def test_conditions_do_not_go_by_stored_sql(expression: str, folder: Path) -> None:
    make(folder)
    with sqlite3.connect(folder / "truth.sqlite") as connection:
        connection.execute("UPDATE indexed SET expression = ?", (expression,))
    connection.close()
    with Truth.open(folder) as truth:
        assert ids_where(truth, col("n") == 1234).tolist() == [1234]


def test_a_format_that_sqlite_does_not_know_is_told(folder: Path) -> None:
    make(folder)
    path = folder / "truth.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:47] + bytes([whole[47] ^ 2]) + whole[48:])  # the schema's format
    with pytest.raises(ValueError, match=r"truth\.sqlite is damaged: unsupported file format"):
        Truth.open(folder)


def test_a_cut_or_foreign_file_is_told(folder: Path) -> None:
    make(folder)
    path = folder / "truth.sqlite"
    whole = path.read_bytes()
    for length in (0, 1, 50, 100, 5000, len(whole) // 2, len(whole) - 16384, len(whole) - 9000, len(whole) - 1):
        path.write_bytes(whole[:length])
        for read_only in (True, False):
            with pytest.raises((ValueError, OSError), match=r"truth\.sqlite"):
                Truth.open(folder, read_only=read_only)
    path.write_bytes(whole + b"\0" * 5000)  # of a file that grew, and was killed before it was said to have
    with Truth.open(folder) as truth:
        assert truth.verify() == []
    path.write_bytes(b"not a database" * 10_000)
    with pytest.raises(ValueError, match=r"truth\.sqlite is damaged: file is not a database; restore"):
        Truth.open(folder)


def crashed(folder: Path) -> None:
    """Leave a folder as a killed process does, its commits in the log."""
    child = os.fork()
    if child == 0:
        truth = Truth.open(folder, SETTINGS, key_kind="int")
        for number in range(5):
            truth.add([number], rows(1))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (folder / "truth.sqlite-wal").stat().st_size > 0


def test_a_file_may_be_shorter_than_its_log_says(folder: Path) -> None:
    with Truth.open(folder, SETTINGS, key_kind="int") as writer:
        writer.add(range(5000), rows(5000))
        pages, size = writer._database.alone(lambda c: c.execute("PRAGMA page_count").fetchone()[0]), 16384
        assert (folder / "truth.sqlite").stat().st_size < pages * size
        with Truth.open(folder, read_only=True) as reader:
            assert len(reader) == 5000


def test_a_lost_log_is_told(folder: Path) -> None:
    crashed(folder)
    (folder / "truth.sqlite-wal").rename(folder / "elsewhere")
    (folder / "truth.sqlite-shm").unlink()
    for read_only in (True, False):
        with pytest.raises(ValueError, match=r"has lost changes: it is at version 0, but version 5 was committed"):
            Truth.open(folder, read_only=read_only)
    for leftover in ("truth.sqlite-wal", "truth.sqlite-shm"):
        (folder / leftover).unlink(missing_ok=True)
    (folder / "elsewhere").rename(folder / "truth.sqlite-wal")
    with Truth.open(folder) as truth:
        assert list(truth) == list(range(5))


def test_an_older_copy_is_taken_only_on_purpose(folder: Path, tmp_path: Path) -> None:
    make(folder)
    shutil.copy(folder / "truth.sqlite", tmp_path / "copy")
    with Truth.open(folder) as truth:
        truth.remove(keys_of("str", [1]))
    shutil.copy(tmp_path / "copy", folder / "truth.sqlite")
    with pytest.raises(ValueError, match=r"delete writer\.lock while nobody has the folder open"):
        Truth.open(folder)
    (folder / "writer.lock").unlink()
    with Truth.open(folder) as truth:
        assert len(truth) == 2000


def test_a_lost_index_of_the_log_is_made_anew(folder: Path) -> None:
    crashed(folder)
    (folder / "truth.sqlite-shm").unlink()
    with Truth.open(folder, read_only=True) as truth:
        assert list(truth) == list(range(5))


@pytest.mark.parametrize("name", ["truth.sqlite", "truth.sqlite-wal", "truth.sqlite-shm", "writer.lock"])
def test_files_removed_while_open_are_noticed(name: str, folder: Path) -> None:
    with Truth.open(folder, SETTINGS, key_kind="int") as truth:
        truth.add([1], rows(1))
        (folder / name).rename(folder / "elsewhere")
        with pytest.raises(OSError, match="were removed or replaced while it was open") as caught:
            truth.add([2], rows(1))
        assert caught.value.errno == errno.ESTALE
        (folder / "elsewhere").rename(folder / name)
        truth.add([2], rows(1))
        assert len(truth) == 2


def test_the_settings_say_how_it_lasts(truth: Truth) -> None:
    writer = truth._database._held.writer
    assert writer is not None
    pragmas = {name: writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}
