"""Reading what a durable index holds: rows, metadata, conditions, and what changed since a snapshot was made."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from hashlib import blake2b
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mmfast.search.arrays import check_keys
from mmfast.search.conditions import Condition, asked
from mmfast.search.damage import Whole
from mmfast.search.database import Database, damaged
from mmfast.search.filters import Filter, RecentFilters
from mmfast.search.records import Codec, Key, Keys, Record, chunked, refuse_missing
from mmfast.search.schema import State, indexed_expression, read_state
from mmfast.search.values import KINDS
from mmfast.search.verify import Problem, problems

Self = TypeVar("Self", bound="Reading")
_SAMPLED = 1000  # rows whose metadata tells which columns there are


class Changes(NamedTuple):
    """What separates two versions: first take out what was removed, then put in what is new or replaced."""

    version: int
    total: int  # of items at that version
    removed_ids: npt.NDArray[np.int64]
    ids: npt.NDArray[np.int64]
    keys: Keys
    stored: npt.NDArray[Any]  # (N, ndim) in the storage dtype


class Held(NamedTuple):
    """Where a key is held."""

    id: int
    key: Key
    mark: int  # the lowest bit tells whether there is a document


class Reading:
    """What a reader and the writer of a durable index have in common."""

    def __init__(self, database: Database, codec: Codec, about: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = about["settings"]
        self.identity: str = about["identity"]  # tells a snapshot of this index from one of another
        self._database = database
        self._codec = codec
        self._recent = RecentFilters()
        self._whole = Whole(database.path, codec)
        self._key = "key" if self._codec.strings else "id"
        self._record = f"id, {self._key}, checksum, vector"

    def get(self, keys: object) -> npt.NDArray[Any]:
        """Return the stored rows (N, ndim) of ``keys``, in their order; KeyError names those that are not held."""
        wanted = self._codec.keys(keys, distinct=False)
        found: dict[Key, Record] = {}
        with self._database.read() as connection:
            for record in chunked(connection, f"SELECT {self._record} FROM items WHERE {self._key} IN", wanted):
                found[record[1]] = record
            self._refuse_missing(connection, wanted, found, "nothing returned")
        return self._codec.vectors([found[key] for key in wanted])

    def metadata(self, keys: object) -> list[dict[str, Any] | None]:
        """Return the metadata of ``keys``, in their order; KeyError names those that are not held."""
        wanted = self._codec.keys(keys, distinct=False)
        with self._database.read() as connection:
            found = self._documents_of(connection, wanted)
        return [found[key] for key in wanted]

    def held(self, keys: object) -> npt.NDArray[np.bool_]:
        """Tell for each key whether it is held."""
        return self.ids(keys) >= 0

    def ids(self, keys: object) -> npt.NDArray[np.int64]:
        """Return the ids of ``keys``, in their order, -1 for those that are not held."""
        wanted = self._codec.keys(keys, distinct=False)
        with self._database.read() as connection:
            found = self._held(connection, wanted)
            self._make_sure(connection, wanted, found)
        return np.fromiter((found[key].id if key in found else -1 for key in wanted), np.int64, len(wanted))

    def filter(self, condition: Condition) -> Filter:
        """Return what lets the ids, ascending, of the rows pass whose metadata fulfils ``condition``.

        It is remembered for when the same is asked again before anything has changed.
        """
        if not isinstance(condition, Condition):
            raise TypeError(f'condition must be built with mmfast.col, as col("year") > 2019, got {condition!r}')
        with self._database.read() as connection:
            paths = connection.execute("SELECT path FROM indexed").fetchall()
            expressions = {path: indexed_expression(path) for (path,) in paths if isinstance(path, str)}
            state = self._state(connection)
            try:
                text, parameters = condition.sql(expressions)
                wanted = blake2b(repr((text, parameters)).encode()).hexdigest()  # lists of values may be long
                if (known := self._recent.get(wanted, state.version)) is not None:
                    return known
                # Also rows without metadata fulfil what holds for the absence of all columns.
                (absent,) = connection.execute(f"SELECT {text} FROM (SELECT NULL AS metadata)", parameters).fetchone()
                self._whole.check_documents(connection, by_column=not expressions.keys().isdisjoint(asked(condition)))
                query = f"SELECT id FROM documents WHERE {text}"
                ids = np.fromiter((number for (number,) in connection.execute(query, parameters)), np.int64)
            except (sqlite3.OperationalError, RecursionError) as error:
                if not any(sign in str(error) for sign in ("too many", "too large", "overflow", "recursion")):
                    raise
                raise ValueError(f"condition is too large for SQLite ({error}); use is_in for many values") from error
            if absent and state.documents < state.items:
                ids = np.concatenate([ids, self._undocumented(connection)])
        ids.sort()
        ids.flags.writeable = False
        return self._recent.put(wanted, state.version, ids, state.items)

    def unknown(self, condition: Condition) -> str | None:
        """Say which columns of ``condition`` no row has, or has values in that can be compared; None where all are."""
        has = "SELECT EXISTS (SELECT 1 FROM documents WHERE json_type(metadata, ?) IN ({}))"
        types = "SELECT DISTINCT json_type(metadata, ?) FROM documents"
        lacking, odd = [], []
        with self._database.read() as connection:
            for column, kinds in asked(condition).values():
                fitting = ", ".join(KINDS[kind] for kind in kinds or KINDS)
                if connection.execute(has.format(fitting), (column.path,)).fetchone()[0]:
                    continue
                held = {f"'{name}'" for (name,) in connection.execute(types, (column.path,))}
                if there := [kind for kind, of_it in KINDS.items() if held.intersection(of_it.split(", "))]:
                    odd.append(f"{' or '.join(sorted(kinds))} in column {column.name} (it has {' and '.join(there)})")
                else:
                    lacking.append(column)
            if odd and not lacking:
                return f"no row of the index has {', or '.join(odd)}; a comparison holds among values of one kind only"
            if not lacking:
                return None
            texts = connection.execute(f"SELECT metadata FROM documents ORDER BY id LIMIT {_SAMPLED}").fetchall()
        names = list(dict.fromkeys(name for (text,) in texts for name in json.loads(text)))
        close = [near for each in lacking for near in get_close_matches(each.name.strip("'"), names, 1)]
        return (
            f"no row of the index has a column {' or '.join(each.name for each in lacking)}; "
            + (f"it has {', '.join(names)}" if names else "its first rows have no metadata")
            + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
        )

    @property
    def version(self) -> int:
        """Return the number of changes so far."""
        return self._now().version

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._now().items

    def __contains__(self, key: object) -> bool:
        """Tell whether ``key`` is held."""
        return bool(self.held([key])[0])

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys, in the order of their ids."""
        for _, keys in self.names():
            yield from keys if isinstance(keys, list) else keys.tolist()

    def names(self) -> Iterator[tuple[npt.NDArray[np.int64], Keys]]:
        """Yield (ids, keys) in blocks, in the order of their ids."""
        for ids, records in self._blocks(f"id, {self._key}, mark", 10_000):
            self._codec.check_names(records)
            yield ids, self._codec.of_kind([record[1] for record in records])

    def all_names(self) -> Iterator[tuple[npt.NDArray[np.int64], list[str]]]:
        """Yield (ids, keys) of all items in blocks, where keys are strings, in no order of ids and of one version."""
        with self._database.read() as connection:
            yield from self._whole.names(connection)

    def rows(self, block: int = 8192) -> Iterator[tuple[npt.NDArray[np.int64], Keys, npt.NDArray[Any]]]:
        """Yield (ids, keys, stored rows) in blocks, in the order of their ids.

        Each block is of the version at its time. For a snapshot take :attr:`version` first, then all rows, then the
        :meth:`changes` since that version.
        """
        for ids, records in self._blocks(self._record, block):
            yield ids, self._codec.of_kind([record[1] for record in records]), self._codec.vectors(records)

    def changes(self, since: int) -> Changes | None:
        """Return what changed after version ``since``; changed metadata is no change here.

        None where it cannot be told, since the record of removals was trimmed beyond that version or the version is
        yet to come: a snapshot is then to be built anew.
        """
        with self._database.read() as connection:
            state = self._state(connection)
            if not state.trimmed <= since <= state.version:
                return None
            records = connection.execute(
                f"SELECT {self._record} FROM items WHERE version > ? ORDER BY id", (since,)
            ).fetchall()
            gone = connection.execute(
                "SELECT DISTINCT id FROM removed WHERE version > ? AND id NOT IN (SELECT id FROM items)",
                (since,),
            ).fetchall()
        if not all(isinstance(number, int) for (number,) in gone):
            raise damaged(self._database.path, "its table of what was removed holds ids that are no integers")
        return Changes(
            state.version,
            state.items,
            np.fromiter((number for (number,) in gone), np.int64, len(gone)),
            np.fromiter((record[0] for record in records), np.int64, len(records)),
            self._codec.of_kind([record[1] for record in records]),
            self._codec.vectors(records),
        )

    def check_keys(self, keys: object, *, distinct: bool = True) -> Keys:
        """Return keys as an int64 array or a list of str."""
        return self._codec.keys(keys, distinct=distinct) if self._codec.strings else check_keys(keys, distinct=distinct)

    def check_usable(self) -> None:
        """Raise ValueError where the folder is closed, RuntimeError where it was opened before a fork."""
        self._database.check_usable()

    def snapshots(self) -> list[str]:
        """Return the names of the snapshots that were made of this database, which another restored does not know."""
        with self._database.read() as connection:
            found = connection.execute("SELECT value FROM about WHERE name = 'snapshots'").fetchone()
        return [str(name) for name in json.loads(found[0])] if found else []

    def check_count(self) -> None:
        """Raise where there are more or fewer items than the state counts, as damage to either leaves them."""
        with self._database.read() as connection:
            total = self._state(connection).items
            (items,) = connection.execute("SELECT COUNT(*) FROM items").fetchone()
        if items != total:
            raise damaged(self._database.path, f"it holds {items:,} items, and counts {total:,}")

    def verify(self) -> list[Problem]:
        """Read everything and return what is wrong, nothing if all is well."""
        return problems(self._database, self._codec)

    def close(self) -> None:
        """Close the folder, and let others write to it."""
        self._database.close()

    def __enter__(self: Self) -> Self:
        """Close the folder at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the folder."""
        self.close()

    def _now(self) -> State:
        with self._database.read() as connection:
            return self._state(connection)

    def _state(self, connection: sqlite3.Connection) -> State:
        return read_state(connection, self._database.path)

    def _held(self, connection: sqlite3.Connection, keys: list[Any]) -> dict[Key, Held]:
        """Return where those of ``keys`` are that are held."""
        found = list(chunked(connection, f"SELECT id, {self._key}, mark FROM items WHERE {self._key} IN", keys))
        self._codec.check_names(found)
        return {record[1]: Held._make(record) for record in found}

    def _make_sure(self, connection: sqlite3.Connection, keys: list[Any], found: Mapping[Key, object]) -> None:
        """Raise where damage may hide those of ``keys`` that were not found."""
        if not all(key in found for key in keys):
            self._whole.check_names(connection)

    def _refuse_missing(
        self, connection: sqlite3.Connection, keys: list[Any], found: Mapping[Key, object], consequence: str
    ) -> None:
        """Raise KeyError for those of ``keys`` that were not found, unless damage hides them."""
        self._make_sure(connection, keys, found)
        refuse_missing(keys, found, consequence)

    def _undocumented(self, connection: sqlite3.Connection) -> npt.NDArray[np.int64]:
        """Return the ids of the rows without metadata."""
        found = connection.execute(f"SELECT id, {self._key}, mark FROM items NOT INDEXED").fetchall()
        if len(found) != (count := self._state(connection).items):
            raise damaged(self._database.path, f"{len(found):,} items were found of {count:,}")
        self._codec.check_names(found)
        return np.array([number for number, _, mark in found if not mark & 1], dtype=np.int64)

    def _documents_of(self, connection: sqlite3.Connection, keys: list[Any]) -> dict[Key, dict[str, Any] | None]:
        """Return the metadata of each of ``keys``; KeyError names those that are not held."""
        query = (
            f"SELECT items.id, items.{self._key}, mark, documents.id, documents.checksum, metadata "
            f"FROM items LEFT JOIN documents ON documents.id = items.id WHERE items.{self._key} IN"
        )
        found: dict[Key, dict[str, Any] | None] = {}
        records = list(chunked(connection, query, keys))
        self._codec.check_names(records)
        for _, key, mark, number, checksum, text in records:
            if (number is not None) != mark & 1:
                raise damaged(self._database.path, f"the metadata under key {key!r} was lost, or is of another key")
            found[key] = None if number is None else self._codec.document(number, key, checksum, text)
        self._refuse_missing(connection, keys, found, "nothing returned")
        return found

    def _blocks(self, columns: str, block: int) -> Iterator[tuple[npt.NDArray[np.int64], list[Any]]]:
        """Yield ids and rows in their order, each block in a transaction of its own, none left open between.

        A damaged id is refused where it is out of order: from one that is too small all would be read again, for ever.
        """
        last, total, begun = -1, 0, None
        while True:
            with self._database.read() as connection:
                state = self._state(connection)
                query = f"SELECT {columns} FROM items WHERE id > ? ORDER BY id LIMIT ?"
                records = connection.execute(query, (last, block)).fetchall()
            begun = state.version if begun is None else begun
            total += len(records)
            if not records:
                if begun == state.version and total != state.items:
                    raise damaged(self._database.path, f"{total:,} items were found of {state.items:,}")
                return
            ids = np.fromiter((record[0] for record in records), np.int64, len(records))
            if len(at := np.flatnonzero(np.diff(ids, prepend=last) <= 0)):
                raise damaged(self._database.path, f"its items are out of order at id {ids[at[0]]}")
            last = int(ids[-1])
            yield ids, records
