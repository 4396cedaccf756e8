"""Between arrays, dicts and what the tables hold: keys, vectors and metadata, each checked both ways.

SQLite notices damage to its own structure, not to content. So each row carries a CRC-32 of its vector, begun with its
id and key, and each document one of its text, begun with its id: a flipped byte there is an error when a vector or
metadata is returned. The mark of a row says that its id and key are what was written, and whether it has a document:
that is looked at wherever keys are. What a query did not find has no checksum: :mod:`mmfast.search.damage` looks once
whether all is there. Versions and removals have none either; what they lead to is counted
(:mod:`mmfast.search.following`), which tells rows lost or back again, not replaced.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mmfast.search.arrays import check_keys, examples
from mmfast.search.database import damaged
from mmfast.search.settings import DTYPES, FEATURE_LIMIT, STORED, check_choice, check_int
from mmfast.search.values import encodable

Key = int | str
Keys = npt.NDArray[np.int64] | list[str]
Metadata = Mapping[str, object]
# What a table holds of a vector, in the order in which it is read: id, key, checksum, bytes.
Record = tuple[int, Key, int, bytes]

# Values in one query: SQLite before 3.32 takes 999.
_CHUNK = 500
_LOW_BITS = 0xFFFFFFFF
_ALL_BITS = 0xFFFFFFFFFFFFFFFF
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # times an id: each of its bits decides on many of the upper ones


class Codec:
    """How keys and vectors of one index are checked and stored."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        for name in ("ndim", "dtype", "key_kind"):
            if name not in settings:
                raise ValueError(f"the settings of an index must have {name}, got {', '.join(settings)}")
        check_choice("key_kind", settings["key_kind"], ("int", "str"))
        check_choice("dtype", settings["dtype"], DTYPES)
        self._path = path
        self.strings = settings["key_kind"] == "str"
        self._ndim = check_int("ndim", settings["ndim"], 1, FEATURE_LIMIT)
        self._dtype: np.dtype[Any] = np.dtype(STORED[settings["dtype"]])
        self.row_bytes = self._ndim * self._dtype.itemsize

    def keys(self, keys: object, *, distinct: bool) -> list[Any]:
        """Return ``keys`` as a list of int or str."""
        if self.strings:
            return _check_str_keys(keys, distinct)
        return list(check_keys(keys, distinct=distinct).tolist())

    def of_kind(self, keys: list[Any]) -> Keys:
        """Return keys that were read as an int64 array, or a list of str."""
        if not self.strings:
            return np.array(keys, dtype=np.int64)
        if not all(isinstance(key, str) for key in keys):
            raise damaged(self._path, "its items have keys that are no text")
        return keys

    def views(self, keys: Sequence[Key], stored: npt.NDArray[Any]) -> Iterator[memoryview]:
        """Return the bytes of each row of ``stored``, (N, ndim) in the storage dtype, one for each key."""
        if not isinstance(stored, np.ndarray) or stored.dtype != self._dtype or stored.ndim != 2:
            got = f"{stored.dtype} {stored.shape}" if isinstance(stored, np.ndarray) else type(stored).__name__
            raise TypeError(f"stored must be a NumPy array (N, {self._ndim}) of {self._dtype}, got {got}")
        if stored.shape != (len(keys), self._ndim):
            raise ValueError(
                f"stored must have shape ({len(keys)}, {self._ndim}), a row for each key, got {stored.shape}"
            )
        if not len(stored):
            return iter(())  # memoryview casts no empty array
        flat = memoryview(np.ascontiguousarray(stored)).cast("B")  # type: ignore[arg-type]
        size = self.row_bytes
        return (flat[start : start + size] for start in range(0, len(flat), size))

    def checksum(self, number: int, key: Key, vector: bytes | memoryview) -> int:
        """Return the checksum of a row."""
        begun = number & _LOW_BITS
        return crc32(vector, crc32(key.encode(), begun) if isinstance(key, str) else begun)

    def name_checksums(self, ids: Sequence[int], keys: Sequence[Any]) -> npt.NDArray[np.int64]:
        """Return the checksum of each id with its key, 32 bits; TypeError and ValueError for what can be neither."""
        if self.strings:
            return np.fromiter(map(crc32, map(str.encode, keys), ids), np.int64, len(ids))
        numbers = np.fromiter(ids, np.int64, len(ids)).view(np.uint64)
        return (numbers * _SPREAD >> np.uint64(32)).astype(np.int64)

    def check_names(self, records: Sequence[tuple[Any, ...]]) -> None:
        """Raise unless the rows, which begin with id, key and mark, have ids and keys as they were written."""
        if not records:
            return
        ids, keys, marks = list(zip(*records, strict=True))[:3]
        if self._are_named(ids, keys, marks):
            return
        for number, key, mark in zip(ids, keys, marks, strict=True):
            if (problem := self.name_problem(number, key, mark)) is not None:
                raise damaged(self._path, problem)

    def name_problem(self, number: Any, key: Any, mark: Any) -> str | None:
        """Say what is wrong with the key of an item that was read, if anything."""
        try:
            due = crc32(key.encode(), number) if self.strings else (number * int(_SPREAD) & _ALL_BITS) >> 32
            if due == mark >> 1:
                return None
        except (AttributeError, TypeError, ValueError):  # of values of another type
            pass
        return f"the key {key!r} of the item with id {number} is not the one that was added"

    def _are_named(self, ids: Sequence[int], keys: Sequence[Any], marks: Sequence[Any]) -> bool:
        try:
            due = np.array(marks, dtype=np.int64) >> 1
            return bool((self.name_checksums(ids, keys) == due).all())
        except (TypeError, ValueError, OverflowError):  # of values of another type
            return False

    def vectors(self, records: Sequence[Record]) -> npt.NDArray[Any]:
        """Return the vectors (N, ndim) of rows that were read, in the storage dtype."""
        for record in records:
            problem = self.problem(record)
            if problem:
                raise damaged(self._path, f"{problem} (or remove that key and add it anew)")
        joined = bytearray().join(record[3] for record in records)  # a bytearray: the array can be written
        rows: npt.NDArray[Any] = np.frombuffer(joined, dtype=self._dtype).reshape(len(records), self._ndim)
        return rows

    def problem(self, record: Record) -> str | None:
        """Say what is wrong with a row that was read, if anything."""
        number, key, checksum, vector = record
        if not isinstance(vector, bytes) or len(vector) != self.row_bytes:
            size = f"{len(vector)} bytes" if isinstance(vector, bytes) else f"a {type(vector).__name__}"
            return f"the vector under key {key!r} is {size} where {self.row_bytes} bytes are due"
        if self.checksum(number, key, vector) != checksum:
            return f"the vector under key {key!r} does not match its checksum"
        return None

    def document(self, number: int, key: Key, checksum: int, text: str) -> dict[str, Any]:
        """Return the metadata that was read."""
        try:
            if text_checksum(number, text) == checksum:
                return dict(json.loads(text))
        except (TypeError, ValueError, AttributeError):
            pass
        raise damaged(self._path, f"the metadata under key {key!r} does not match its checksum (or set it anew)")


def text_checksum(number: int, text: str) -> int:
    """Return the checksum of a document."""
    return crc32(text.encode(), number & _LOW_BITS)


def metadata_list(metadata: object, count: int) -> list[Metadata | None]:
    """Return ``metadata`` as a list of ``count`` mappings or None."""
    if isinstance(metadata, (str, bytes, Mapping, Tensor)) or not isinstance(metadata, Iterable):
        raise TypeError(f"metadata must be a sequence with a dict or None for each key, got {type(metadata).__name__}")
    documents = list(metadata)
    if len(documents) != count:
        raise ValueError(f"metadata must be one dict or None for each key, got {len(documents)} for {count} keys")
    return documents


def to_text(document: Metadata, key: Key) -> str:
    """Return a JSON object as it is stored."""
    if not isinstance(document, Mapping):
        raise TypeError(
            f"metadata must be a dict or None for each key, got {document!r} ({type(document).__name__}) under {key!r}"
        )
    try:
        return _as_json(document)
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"metadata must be what JSON holds (dict with str keys, list, str, int, finite float, bool, None), got "
            f"under key {key!r}: {error}"
        ) from error


def _as_json(document: Metadata) -> str:
    _refuse_other_names(document)
    text = json.dumps(dict(document), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    text.encode()
    if "\\u0000" in text.replace("\\\\", ""):
        raise ValueError("text with NUL, of which SQLite sees only what is before it; drop it")
    return text


def to_texts(keys: Sequence[Key], documents: Sequence[Metadata | None]) -> list[str | None]:
    """Return the metadata of ``keys`` as it is stored."""
    return [None if document is None else to_text(document, key) for key, document in zip(keys, documents, strict=True)]


def _plain(value: object) -> bool | int | float:
    """Return a NumPy scalar as Python's own; those of text and of float64 are such already."""
    if isinstance(value, (np.bool_, np.integer, np.floating)) and isinstance(value.item(), (bool, int, float)):
        return value.item()
    hint = "; convert it with .tolist()" if hasattr(value, "tolist") else ""
    raise TypeError(f"an object of type {type(value).__name__}{hint}")


def _refuse_other_names(value: object) -> None:
    """Refuse names that are no strings: JSON would turn 1 and None into "1" and "null"."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise TypeError(f"names must be strings, got {name!r}")
            if isinstance(inner, (Mapping, list, tuple)):
                _refuse_other_names(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _refuse_other_names(inner)


def _check_str_keys(keys: object, distinct: bool) -> list[str]:
    if isinstance(keys, str):
        keys = [keys]
    if isinstance(keys, np.ndarray):
        keys = keys.reshape(1).tolist() if keys.ndim == 0 else keys.tolist()
    if not isinstance(keys, Sequence) or isinstance(keys, (bytes, bytearray)):
        raise TypeError(f"keys must be a string or a sequence of strings, got {type(keys).__name__}")
    for position, key in enumerate(keys):
        if not isinstance(key, str):
            raise TypeError(f"keys must be strings, got {key!r} ({type(key).__name__}) at position {position}")
        if "\0" in key or not encodable(key):
            raise ValueError(f"keys must have no NUL and no lone surrogates, got {key!r} at position {position}")
    if distinct and len(set(keys)) < len(keys):
        seen: set[str] = set()
        repeated = [key for key in keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise ValueError(f"keys must be distinct; repeated: {some(repeated)}")
    return list(keys)


def refuse_missing(keys: Sequence[Key], found: Mapping[Key, object], consequence: str) -> None:
    """Raise KeyError for those of ``keys`` that were not found."""
    missing = [key for key in keys if key not in found]
    if missing:
        raise KeyError(f"the index does not hold {some(missing)}; {consequence}")


def chunked(connection: sqlite3.Connection, query: str, values: Sequence[Key]) -> Iterator[Any]:
    """Yield what ``query``, which ends in IN, finds for however many values."""
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        yield from connection.execute(f"{query} ({', '.join('?' * len(chunk))})", chunk)


def some(keys: Sequence[Key]) -> str:
    """Return the first few of ``keys`` in words."""
    if any(isinstance(key, str) for key in keys):
        keys = [repr(key) for key in keys]
    return examples(np.array(keys, dtype=object))
