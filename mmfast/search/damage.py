"""Whether nothing is missing: looked at once, before it is first said that something is not there.

A checksum tells of what was found that it is as it was written. That a query finds all there is needs more: a flipped
bit in an index, in an id or in the page above makes SQLite look elsewhere, and what it does not find has no checksum.
So all is read once for each opened folder: the index of the keys when a key is first not found, and the documents when
a condition is first carried out, and their own indexes when it goes by one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search.database import damaged
from mmfast.search.records import Codec
from mmfast.search.schema import read_state
from mmfast.search.settings import KEY_LIMIT

_KEYS = 10_000  # read at once
_DOCUMENTS = 256  # read at once, as one string, of which SQLite allows 1 GB
_LAST = "SELECT id FROM documents NOT INDEXED WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?"
_TEXTS = (
    "SELECT COUNT(*), SUM(checksum), CAST(group_concat(id) AS BLOB), CAST(group_concat(metadata, char(0)) AS BLOB) "
    "FROM documents NOT INDEXED WHERE id > ? AND id <= ?"
)


class Whole:
    """What is known of the file to be whole."""

    def __init__(self, path: Path, codec: Codec) -> None:
        self._path, self._codec = path, codec
        self._names = not codec.strings  # the index in memory knows all keys that are integers
        self._documents = self._columns = False

    def check_names(self, connection: sqlite3.Connection) -> None:
        """Raise unless the index of the keys, where they are strings, has all ids and keys that were written."""
        if not self._names:
            for _ in self.names(connection):
                pass

    def names(self, connection: sqlite3.Connection) -> Iterator[tuple[npt.NDArray[np.int64], list[str]]]:
        """Yield (ids, keys) in blocks from the index of the keys, and raise in the end where it is not as written."""
        state = read_state(connection, self._path)
        wrong = damaged(self._path, "its index of the keys is not what was written")
        query = "SELECT id, key FROM items WHERE key {} ? ORDER BY key LIMIT ?"
        count, names, last, beyond = 0, 0, "", ">="  # the empty string is a key
        while records := connection.execute(query.format(beyond), (last, _KEYS)).fetchall():
            try:
                ids, keys = map(list, zip(*records, strict=True))
                names += int(self._codec.name_checksums(ids, keys).sum())
                if not (min(ids) >= 0 and max(ids) < state.next_id and (keys[-1] > last or beyond == ">=")):
                    raise wrong
            except (TypeError, ValueError, OverflowError):  # of values of another type
                raise wrong from None
            count, last, beyond = count + len(keys), keys[-1], ">"
            yield np.array(ids, dtype=np.int64), keys
        if (count, names) != (state.items, state.names):
            raise wrong
        self._names = True

    def check_documents(self, connection: sqlite3.Connection, *, by_column: bool) -> None:
        """Raise unless all documents are there as they were written, and also their own indexes ``by_column``."""
        if not self._documents:
            self._check_texts(connection)
            self._documents = True
        if by_column and not self._columns:
            (line,) = connection.execute("PRAGMA integrity_check('documents')").fetchone()
            if line != "ok":
                raise damaged(self._path, f"SQLite's integrity check: {line}")
            self._columns = True

    def _check_texts(self, connection: sqlite3.Connection) -> None:
        total, last = 0, -1
        while last < KEY_LIMIT:
            (top,) = connection.execute(_LAST, (last, _DOCUMENTS - 1)).fetchone() or (KEY_LIMIT,)
            count, checksums, ids, texts = connection.execute(_TEXTS, (last, top)).fetchone()
            if count and (not texts or _C.sum_of_texts(ids, texts, last) != (count, checksums)):
                raise damaged(self._path, f"documents after id {last} do not match their checksums")
            if top <= last:
                raise damaged(self._path, f"its documents are out of order at id {top}")
            total, last = total + count, top
        due = read_state(connection, self._path).documents
        if total != due:
            raise damaged(self._path, f"it holds {total:,} documents, and counts {due:,}")
