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

import numpy as np
import numpy.typing as npt

from mmfast.search import schema
from mmfast.search.reading import Held, Reading
from mmfast.search.records import chunked, metadata_list, some, text_checksum, to_text, to_texts
from mmfast.search.schema import State
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
                return truth._state(connection).version

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
            state = self._begin(connection)
            held = self._held(connection, wanted) if replace else {}
            ids = wanted
            if self._codec.strings:
                fresh = iter(range(state.next_id, state.next_id + len(wanted)))
                ids = [held[key].id if key in held else next(fresh) for key in wanted]
            names = self._codec.name_checksums(ids, wanted)
            count = len(wanted)
            new, had, given = np.ones(count, np.bool_), np.zeros(count, np.bool_), np.zeros(count, np.bool_)
            if held:
                new = np.array([key not in held for key in wanted])
                had[~new] = [held[key].mark & 1 for key in wanted if key in held]
            if documents is not None:
                given = np.array([text is not None for text in documents])
            marks = (names << 1 | (had | given)).tolist()
            try:
                self._write_items(connection, state.version, ids, wanted, marks, vectors, replace=bool(held))
            except sqlite3.IntegrityError:
                query = f"SELECT {self._key} FROM items WHERE version < {state.version} AND {self._key} IN"
                there = [key for (key,) in chunked(connection, query, wanted)]
                if not there:
                    raise
                raise ValueError(
                    f"keys must be new, but the index already holds {some(there)}; remove them first, or upsert"
                ) from None
            if documents is not None:
                _write_documents(connection, (each for each in zip(ids, documents, strict=True) if each[1] is not None))
            added = int(new.sum())
            return _finish(
                connection,
                state._replace(
                    items=state.items + added,
                    next_id=state.next_id + added,
                    names=state.names + int(names[new].sum()),
                    documents=state.documents + int((given & ~had).sum()),
                ),
            )

        return self._database.write(work)

    def _write_items(
        self,
        connection: sqlite3.Connection,
        version: int,
        ids: list[int],
        keys: list[Any],
        marks: list[int],
        vectors: Iterator[memoryview],
        *,
        replace: bool,
    ) -> None:
        checksum = self._codec.checksum
        rows: Iterator[tuple[object, ...]]
        if self._codec.strings:
            columns = "(id, key, version, mark, checksum, vector) VALUES (?, ?, ?, ?, ?, ?)"
            rows = (
                (number, key, version, mark, checksum(number, key, vector), vector)
                for number, key, mark, vector in zip(ids, keys, marks, vectors, strict=True)
            )
        else:
            columns = "(id, version, mark, checksum, vector) VALUES (?, ?, ?, ?, ?)"
            rows = (
                (number, version, mark, checksum(number, number, vector), vector)
                for number, mark, vector in zip(ids, marks, vectors, strict=True)
            )
        conflict = (
            " ON CONFLICT (id) DO UPDATE SET "
            "version = excluded.version, mark = excluded.mark, checksum = excluded.checksum, vector = excluded.vector"
        )
        connection.executemany(f"INSERT INTO items {columns}{conflict if replace else ''}", rows)

    def remove(self, keys: object) -> int:
        """Remove rows, all of them or after an error none; KeyError names keys that are not held."""
        wanted = self._codec.keys(keys, distinct=True)
        if not wanted:
            return self.version

        def work(connection: sqlite3.Connection) -> int:
            state = self._begin(connection)
            held = self._all_held(connection, wanted)
            ids = [each.id for each in held]
            connection.executemany(
                "INSERT INTO removed VALUES (?, ?, ?)",
                ((state.version, number, key) for number, key in zip(ids, wanted, strict=True)),
            )
            for table in ("documents", "items"):
                connection.executemany(f"DELETE FROM {table} WHERE id = ?", ((number,) for number in ids))
            names = self._codec.name_checksums(ids, wanted)
            return _finish(
                connection,
                state._replace(
                    items=state.items - len(ids),
                    names=state.names - int(names.sum()),
                    documents=state.documents - sum(each.mark & 1 for each in held),
                ),
            )

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
            state = self._begin(connection)
            held = self._all_held(connection, wanted)
            if replace:
                changed = list(zip(held, documents, strict=True))
            else:
                old = self._documents_of(connection, wanted)
                changed = [
                    (each, to_text({**(old[key] or {}), **update}, key))
                    for each, key, update in zip(held, wanted, given, strict=True)
                    if update is not None
                ]
            _write_documents(connection, [(each.id, text) for each, text in changed])
            turned = [each for each, text in changed if (each.mark & 1) != (text is not None)]
            connection.executemany(
                "UPDATE items SET mark = mark + ? WHERE id = ?",
                ((-1 if each.mark & 1 else 1, each.id) for each in turned),
            )
            more = sum(-1 if each.mark & 1 else 1 for each in turned)
            return _finish(connection, state._replace(documents=state.documents + more))

        return self._database.write(work)

    def check_writable(self) -> None:
        """Raise as :meth:`check_usable` does, and PermissionError where the folder was opened read-only."""
        self._database.check_writable()

    def note_snapshots(self, names: Sequence[str]) -> None:
        """Keep the names of snapshots made, or about to be made, of this database; others are forgotten."""

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("INSERT OR REPLACE INTO about VALUES ('snapshots', ?)", (json.dumps(list(names)),))
            return self._state(connection).version

        self._database.write(work)

    def trim(self, before: int) -> None:
        """Forget what was removed up to version ``before``, once no snapshot is older than that."""

        def work(connection: sqlite3.Connection) -> int:
            version = self._state(connection).version
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

    def _begin(self, connection: sqlite3.Connection) -> State:
        """Return the state with the version to make."""
        state = self._state(connection)
        return state._replace(version=state.version + 1)

    def _all_held(self, connection: sqlite3.Connection, keys: list[Any]) -> list[Held]:
        """Return where ``keys`` are; KeyError names those that are not held."""
        found = self._held(connection, keys)
        self._refuse_missing(connection, keys, found, "nothing was changed")
        return [found[key] for key in keys]


def _finish(connection: sqlite3.Connection, state: State) -> int:
    connection.execute(
        "UPDATE state SET version = ?, count = ?, next_id = ?, names = ?, documents = ?",
        (state.version, state.items, state.next_id, state.names, state.documents),
    )
    return state.version


def _write_documents(connection: sqlite3.Connection, documents: Iterable[tuple[int, str | None]]) -> None:
    """Set the documents of ids, or remove them where there is None."""
    given = list(documents)
    connection.executemany(
        "INSERT OR REPLACE INTO documents VALUES (?, ?, ?)",
        ((number, text_checksum(number, text), text) for number, text in given if text is not None),
    )
    connection.executemany("DELETE FROM documents WHERE id = ?", ((number,) for number, text in given if text is None))
