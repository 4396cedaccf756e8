"""Vectors, keys and metadata from the columns of a .parquet file, which pyarrow reads."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmfast.cli import UserError
from mmfast.index_files import Batch, Keys, as_keys, distinct, read_keys, rows_named
from mmfast.search.settings import FEATURE_LIMIT

ALL = "*"
_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}


class Parquet:
    """A .parquet file with a column of lists of floats; others of its columns become keys and metadata."""

    def __init__(self, path: Path, keys: str | None, vector: str | None, metadata: Sequence[str]) -> None:
        try:
            import pyarrow.parquet as parquet
        except ModuleNotFoundError as error:
            raise UserError(
                f"reading {path} needs pyarrow, which is not installed: pip install 'mmfast[parquet]'"
            ) from error
        self.path = path
        with _told(path):
            self._file: Any = parquet.ParquetFile(path)
        self._schema: Any = self._file.schema_arrow
        self.rows: int = self._file.metadata.num_rows
        self._vector = vector or self._find_vector()
        self._check_names("--column-vector", [self._vector])
        self.dtype = _FLOATS.get(str(_value_type(self._schema.field(self._vector).type)), "")
        if not self.dtype:
            raise UserError(
                f"column {self._vector!r} of {path} must hold lists of float16, float32 or float64, got "
                f"{self._schema.field(self._vector).type}"
            )
        self.ndim = self._find_ndim()
        self._keys = keys
        if keys is not None and not self._keys_apart():
            self._check_names("--keys", [keys])
        named = [name for name in metadata if name != ALL]
        self._check_names("--metadata", named)
        self.metadata = list(dict.fromkeys([*(self._find_metadata() if ALL in metadata else []), *named]))
        self.left_out = self._find_left_out() if ALL in metadata else ""
        for name in named:
            if not _is_json(self._schema.field(name).type):
                raise UserError(
                    f"column {name!r} of {path} cannot be metadata, which holds what JSON holds, got "
                    f"{self._schema.field(name).type}"
                )

    def keys(self) -> Keys | None:
        """Return the keys, from a column or from a .npy file."""
        if self._keys is None:
            return None
        if self._keys_apart():
            return read_keys(Path(self._keys), self.rows)
        import pyarrow

        source = f"column {self._keys!r} of {self.path}"
        with _told(self.path):
            column: Any = self._file.read(columns=[self._keys]).column(self._keys)
        kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
        if column.null_count:
            at = np.flatnonzero(column.is_null().to_numpy())
            raise UserError(f"{source} must have a key in each row, got null in {rows_named(at)}")
        if str(kind) in ("string", "large_string", "string_view"):
            return distinct(source, list(column.to_pylist()))
        if not pyarrow.types.is_integer(kind):
            raise UserError(f"{source} must hold integers or text as keys, got {column.type}")
        return as_keys(source, column.cast(kind).to_numpy())

    def batches(self, rows: int) -> Iterator[Batch]:
        """Read the file in batches of so many rows."""
        start = 0
        for batch in self._read(rows, [self._vector, *self.metadata]):
            vectors = self._matrix(start, batch.column(self._vector))
            documents = None
            if self.metadata:
                documents = [_document(row) for row in batch.select(self.metadata).to_pylist()]
            yield Batch(start, vectors, documents)
            start += batch.num_rows

    def _read(self, rows: int, columns: list[str]) -> Iterator[Any]:
        with _told(self.path):
            yield from self._file.iter_batches(batch_size=rows, columns=columns)

    def _keys_apart(self) -> bool:
        """Tell whether --keys names a file and not a column."""
        return self._keys is not None and self._keys.endswith(".npy") and self._keys not in self._schema.names

    def _find_vector(self) -> str:
        lists = [field.name for field in self._schema if _is_vectors(field.type)]
        if len(lists) != 1:
            what = f"has several: {', '.join(lists)}" if lists else f"has {_columns(self._schema)}"
            raise UserError(f"name the column of lists of floats with --column-vector; {self.path} {what}")
        return str(lists[0])

    def _find_metadata(self) -> list[str]:
        """Return all columns that can be metadata, but those of vectors and keys."""
        return [field.name for field in self._others() if _is_json(field.type) and not _is_vectors(field.type)]

    def _find_left_out(self) -> str:
        """Say which columns are neither metadata nor vectors nor keys, and why."""
        left = [field for field in self._others() if field.name not in self.metadata]
        vectors = [field for field in left if _is_json(field.type)]
        reasons = (
            ([field for field in left if field not in vectors], "JSON does not hold"),
            (vectors, "may be vectors; name them to keep them"),
        )
        return "; ".join(f"{_columns(fields)}, which {why}" for fields, why in reasons if fields)

    def _others(self) -> list[Any]:
        """Return the columns but those of vectors and keys."""
        return [field for field in self._schema if field.name not in (self._vector, self._keys)]

    def _find_ndim(self) -> int:
        kind = _storage(self._schema.field(self._vector).type)
        ndim = getattr(kind, "list_size", None)
        if ndim is None:  # lists of any length: the first row tells
            first = next(self._read(1, [self._vector]), None)
            value = first.column(self._vector)[0].as_py() if first is not None and first.num_rows else None
            if value is None:
                raise UserError(f"column {self._vector!r} of {self.path} has no vector in its first row")
            ndim = len(value)
        if not 1 <= ndim <= FEATURE_LIMIT:
            raise UserError(
                f"column {self._vector!r} of {self.path} must have 1 to {FEATURE_LIMIT:,} features, got {ndim}"
            )
        return int(ndim)

    def _matrix(self, start: int, column: Any) -> npt.NDArray[Any]:
        """Return the vectors (rows, D) of a batch."""
        import pyarrow.compute as compute

        column = getattr(column, "storage", column)
        self._refuse(start, column.is_null(), "no vector")
        if not hasattr(column.type, "list_size"):
            lengths = compute.list_value_length(column).to_numpy(zero_copy_only=False)
            self._refuse(start, lengths != self.ndim, f"other than {self.ndim} features, which the first row has,")
        flat = column.flatten()
        if flat.null_count:
            holes = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, self.ndim).any(axis=1)
            self._refuse(start, holes, "null among the features")
        values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False).reshape(-1, self.ndim)
        return values

    def _refuse(self, start: int, wrong: Any, what: str) -> None:
        at = np.flatnonzero(np.asarray(wrong)) + start
        if len(at):
            raise UserError(
                f"column {self._vector!r} of {self.path} has {what} in {rows_named(at)}; drop or mend these rows"
            )

    def _check_names(self, option: str, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._schema.names:
                raise UserError(f"{option}: {self.path} has no column {name!r}; it has {_columns(self._schema)}")


def _columns(schema: Iterable[Any]) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns"


def _storage(kind: Any) -> Any:
    return getattr(kind, "storage_type", kind)  # of a tensor of fixed shape, a list


def _value_type(kind: Any) -> Any:
    import pyarrow.types as types

    kind = _storage(kind)
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return kind.value_type if is_list else None


def _is_vectors(kind: Any) -> bool:
    return str(_value_type(kind)) in _FLOATS


def _is_json(kind: Any) -> bool:
    """Tell whether values of a column can be written as JSON."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_json(kind.value_type)
    if types.is_struct(kind):
        return all(_is_json(kind.field(number).type) for number in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_json(kind.value_type)
    known = (
        types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_date,
        types.is_timestamp, types.is_time, types.is_string, types.is_large_string,
    )  # fmt: skip
    return any(is_it(kind) for is_it in known)


def _document(row: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a row, without what is missing."""
    return {name: _json(value) for name, value in row.items() if _json(value) is not None}


def _json(value: Any) -> Any:
    """Return a value as JSON has it: dates and times as ISO 8601 text, which sorts as they do; NaN as null."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {name: _json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner) for inner in value]
    return value


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell what pyarrow cannot read."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # pyarrow's own are among them
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} cannot be read as a Parquet file: {first}") from error
