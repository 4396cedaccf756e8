"""What a durable index holds, in a folder: keys, vectors and metadata, of which its snapshots are derived.

What a call acknowledged survives ``kill -9`` and a loss of power, and what it did not acknowledge is in whole or not at
all: SQLite's transactions, in a write-ahead log that is synced at every commit (:mod:`mmfast.search.database`). One
process writes, any number read, each what was last committed; all methods may be called from several threads.

Rows carry an id: the key itself where keys are integers, else a number that is never used again. Every change raises
the version, and rows remember which version wrote them, removals apart, so that a snapshot can be caught up instead of
built anew.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from mmfast.search import schema
from mmfast.search.reading import Reading
from mmfast.search.records import metadata_list, refuse_missing, some, text_checksum, to_text, to_texts
from mmfast.search.settings import check_bool
from mmfast.search.storage import FilePath


class Truth(Reading):
    """The rows of one durable index; :meth:`open` makes or opens one."""

    @classmethod
    def open(
        cls,
        folder: FilePath,
        settings: Mapping[str, object] | None = None,
        *,
        key_kind: str | None = None,
        read_only: bool = False,
        indexed_columns: Sequence[str] = (),
    ) -> Truth:
        """Open the index in ``folder``, made first where there is none but its parent folder.

        Parameters
        ----------
        folder : path
        settings : mapping, optional
            What JSON holds, "ndim" and "dtype" among it. Kept when the index is made; those given later must agree.
        key_kind : {"int", "str"}, optional
            As the settings.
        read_only : bool, default False
            One process at a time may write; any number may read meanwhile, and see what it commits.
        indexed_columns : sequence of str, default ()
            Columns of the metadata of which SQLite keeps an index, from now on, for conditions that select few rows.

        Raises
        ------
        FileNotFoundError
            If there is no index and it cannot be made: read only, no parent folder, no settings.
        FileExistsError, NotADirectoryError
            If ``folder`` is something else.
        BlockingIOError
            If another process has the index open for writing.
        ValueError
            If a setting differs, or the database is damaged, older than what was committed, or not ours.
        RuntimeError
            If this process is a fork of one that had the index open.
        """
        paths = schema.indexed_paths(indexed_columns)
        truth = cls(*schema.open_folder(folder, settings, key_kind, read_only))
        if paths and not read_only:

            def work(connection: sqlite3.Connection) -> int:
                schema.index_columns(connection, paths)
                return truth._state(connection)[0]

            try:
                truth._database.write(work)
            except BaseException:
                truth.close()
                raise
        return truth

    def add(self, keys: object, stored: npt.NDArray[Any], metadata: object = None) -> int:
        """Add rows under new keys, all of them or after an error none, and return the version that has them.

        ``stored`` (N, ndim) is what :func:`mmfast.search.arrays.encode` returns; ``metadata`` holds a dict or None for
        each key. ValueError names keys that are held already.
        """
        return self._put(keys, stored, metadata, replace=False)

    def upsert(self, keys: object, stored: npt.NDArray[Any], metadata: object = None) -> int:
        """Add rows, or replace those whose keys are held; theirs stays where ``metadata`` is not given, or None."""
        return self._put(keys, stored, metadata, replace=True)

    def _put(self, keys: object, stored: npt.NDArray[Any], metadata: object, *, replace: bool) -> int:
        wanted = self._codec.keys(keys, distinct=True)
        vectors = self._codec.views(wanted, stored)
        documents = None if metadata is None else to_texts(wanted, metadata_list(metadata, len(wanted)))
        if not wanted:
            return self.version

        def work(connection: sqlite3.Connection) -> int:
            version, count, next_id = self._begin(connection)
            held = self._ids(connection, wanted) if replace else {}
            ids = wanted
            if self._codec.strings:
                fresh = iter(range(next_id, next_id + len(wanted)))
                ids = [held[key] if key in held else next(fresh) for key in wanted]
            try:
                self._write_items(connection, version, ids, wanted, vectors, replace=bool(held))
            except sqlite3.IntegrityError:
                there = self._ids(connection, wanted, before=version)
                if not there:
                    raise
                raise ValueError(
                    f"keys must be new, but the index already holds {some(list(there))}; remove them first, or upsert"
                ) from None
            if documents is not None:
                given = zip(ids, documents, strict=True)
                _write_documents(connection, (each for each in given if each[1] is not None))
            added = len(wanted) - len(held)
            return _finish(connection, version, count + added, next_id + added)

        return self._database.write(work)

    def _write_items(
        self,
        connection: sqlite3.Connection,
        version: int,
        ids: list[int],
        keys: list[Any],
        vectors: Iterator[memoryview],
        *,
        replace: bool,
    ) -> None:
        checksum = self._codec.checksum
        rows: Iterator[tuple[object, ...]]
        if self._codec.strings:
            columns = "(id, key, version, checksum, vector) VALUES (?, ?, ?, ?, ?)"
            rows = (
                (number, key, version, checksum(number, key, vector), vector)
                for number, key, vector in zip(ids, keys, vectors, strict=True)
            )
        else:
            columns = "(id, version, checksum, vector) VALUES (?, ?, ?, ?)"
            rows = (
                (number, version, checksum(number, number, vector), vector)
                for number, vector in zip(ids, vectors, strict=True)
            )
        conflict = (
            " ON CONFLICT (id) DO UPDATE SET "
            "version = excluded.version, checksum = excluded.checksum, vector = excluded.vector"
        )
        connection.executemany(f"INSERT INTO items {columns}{conflict if replace else ''}", rows)

    def remove(self, keys: object) -> int:
        """Remove rows, all of them or after an error none; KeyError names keys that are not held."""
        wanted = self._codec.keys(keys, distinct=True)
        if not wanted:
            return self.version

        def work(connection: sqlite3.Connection) -> int:
            version, count, next_id = self._begin(connection)
            ids = self._held_ids(connection, wanted)
            connection.executemany(
                "INSERT INTO removed VALUES (?, ?, ?)",
                ((version, number, key) for number, key in zip(ids, wanted, strict=True)),
            )
            for table in ("documents", "items"):
                connection.executemany(f"DELETE FROM {table} WHERE id = ?", ((number,) for number in ids))
            return _finish(connection, version, count - len(ids), next_id)

        return self._database.write(work)

    def update_metadata(self, keys: object, metadata: object, *, replace: bool = False) -> int:
        """Merge dicts, one for each key, into their metadata, as ``dict.update`` does, or put them in its place.

        None leaves a row's metadata as it is, or with ``replace`` takes it away. KeyError names keys that are not held.
        """
        check_bool("replace", replace)
        wanted = self._codec.keys(keys, distinct=True)
        given = metadata_list(metadata, len(wanted))
        documents = to_texts(wanted, given)  # checks them before anything waits
        if not wanted:
            return self.version

        def work(connection: sqlite3.Connection) -> int:
            version, count, next_id = self._begin(connection)
            ids = self._held_ids(connection, wanted)
            if replace:
                _write_documents(connection, zip(ids, documents, strict=True))
            else:
                old = self._documents_of(connection, wanted)
                merged = [
                    (number, to_text({**(old[key] or {}), **update}, key))
                    for number, key, update in zip(ids, wanted, given, strict=True)
                    if update is not None
                ]
                _write_documents(connection, merged)
            return _finish(connection, version, count, next_id)

        return self._database.write(work)

    def check_writable(self) -> None:
        """Raise as :meth:`check_usable` does, and PermissionError where the folder was opened read-only."""
        self._database.check_writable()

    def note_snapshots(self, names: Sequence[str]) -> None:
        """Keep the names of snapshots made, or about to be made, of this database; others are forgotten."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("INSERT OR REPLACE INTO about VALUES ('snapshots', ?)", (json.dumps(list(names)),))
            return self._state(connection)[0]

        self._database.write(work)

    def trim(self, before: int) -> None:
        """Forget what was removed up to version ``before``, once no snapshot is older than that."""

        def work(connection: sqlite3.Connection) -> int:
            version = self._state(connection)[0]
            if not 0 <= before <= version:
                raise ValueError(f"before must be from 0 to the version {version}, got {before}")
            connection.execute("DELETE FROM removed WHERE version <= ?", (before,))
            connection.execute("UPDATE state SET trimmed = MAX(trimmed, ?)", (before,))
            return version

        self._database.write(work)

    def compact(self) -> None:
        """Give the space of removed rows back to the disk; takes as much again while it works."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # readers at work can put that off
            return 0

        self._database.alone(work)

    def _begin(self, connection: sqlite3.Connection) -> tuple[int, int, int]:
        """Return the version to make, the number of items and the next id."""
        version, count, next_id, _ = self._state(connection)
        return version + 1, count, next_id

    def _held_ids(self, connection: sqlite3.Connection, keys: list[Any]) -> list[int]:
        """Return the ids of ``keys``; KeyError names those that are not held."""
        found = self._ids(connection, keys)
        refuse_missing(keys, found, "nothing was changed")
        return [found[key] for key in keys]


def _finish(connection: sqlite3.Connection, version: int, count: int, next_id: int) -> int:
    connection.execute("UPDATE state SET version = ?, count = ?, next_id = ?", (version, count, next_id))
    return version


def _write_documents(connection: sqlite3.Connection, documents: Iterable[tuple[int, str | None]]) -> None:
    """Set the documents of ids, or remove them where there is None."""
    given = list(documents)
    connection.executemany(
        "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
        ((number, text_checksum(number, text), text) for number, text in given if text is not None),
    )
    connection.executemany("DELETE FROM documents WHERE id = ?", ((number,) for number, text in given if text is None))
