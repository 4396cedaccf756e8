"""Files of vectors that ``mmfast index`` reads: .npy, which is mapped, and .parquet, which pyarrow reads in batches.

All that can be told of a file is checked before its first row is added, and errors name the rows of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mmfast.cli import UserError
from mmfast.search.arrays import NORM_LIMIT, examples
from mmfast.search.progress import Bar
from mmfast.search.settings import FEATURE_LIMIT, KEY_LIMIT
from mmfast.search.values import encodable

Keys = npt.NDArray[np.int64] | list[str]


class Batch(NamedTuple):
    """Consecutive rows of a file."""

    start: int  # row of the file that is the first
    vectors: npt.NDArray[Any]  # (rows, D)
    metadata: list[dict[str, Any]] | None


class Vectors(Protocol):
    """An open file of N vectors of D features."""

    path: Path
    rows: int
    ndim: int
    dtype: str
    metadata: list[str]  # the columns that become metadata
    left_out: str  # what '*' means not, and why; in words

    def keys(self) -> Keys | None:
        """Return the key of each row, None where the file has none."""

    def batches(self, rows: int) -> Iterator[Batch]:
        """Read the file in batches of so many rows."""


class Npy:
    """A .npy file of shape (N, D), and the .npy file of its keys."""

    def __init__(self, path: Path, keys: Path | None = None) -> None:
        self.path, self._keys = path, keys
        self.metadata: list[str] = []
        self.left_out = ""
        self._array = load(path)
        if self._array.ndim != 2 or not 1 <= self._array.shape[1] <= FEATURE_LIMIT:
            raise UserError(f"{path} must hold an array of shape (N, D), one vector a row, got {self._array.shape}")
        check_floating(path, self._array)
        self.rows, self.ndim = self._array.shape
        self.dtype = str(self._array.dtype)

    def keys(self) -> Keys | None:
        """Return the keys, one for each row."""
        return None if self._keys is None else read_keys(self._keys, self.rows)

    def batches(self, rows: int) -> Iterator[Batch]:
        """Read the file in batches of so many rows."""
        for start in range(0, self.rows, rows):
            yield Batch(start, np.asarray(self._array[start : start + rows]), None)


def load(path: Path) -> npt.NDArray[Any]:
    """Return the array of a .npy file, mapped."""
    check_regular(path)
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (SyntaxError, TokenError, TypeError, OverflowError) as error:  # NumPy evaluates the header
        raise UserError(f"{path} is damaged: its header cannot be read ({error}); write it anew") from error
    except (ValueError, EOFError) as error:
        what = "is not a .npy array" if "pickle" in str(error) else f"is not a .npy array, or is cut short ({error})"
        if "Python objects" in str(error):
            what = "holds Python objects; save text with numpy.save(file, numpy.array(..., dtype=str))"
        raise UserError(f"{path} {what}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays; save one array with numpy.save")
    return array


def check_regular(path: Path) -> None:
    """Refuse a folder or device, and a pipe, which would be waited for."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no regular file; write the array to one, and name that")


def check_floating(path: Path, array: npt.NDArray[Any]) -> None:
    """Refuse an array of what no vectors are made of."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise UserError(f"{path} must hold float16, float32 or float64, got {array.dtype}; convert it with .astype")


def read_keys(path: Path, rows: int) -> Keys:
    """Return the keys of a .npy file, one for each of ``rows``."""
    array = load(path)
    if array.shape != (rows,):
        raise UserError(f"{path} must hold a key for each of {rows:,} rows, of shape ({rows},), got {array.shape}")
    return as_keys(str(path), array)


def as_keys(source: str, array: npt.NDArray[Any]) -> Keys:
    """Return an array of integers or of strings as keys, which must be distinct."""
    if array.dtype.kind == "U":
        return distinct(source, list(array.tolist()))
    if array.dtype.kind not in "iu":
        raise UserError(f"{source} must hold integers or text as keys, got {array.dtype}")
    outside = (array < 0) | (array >= KEY_LIMIT)
    if outside.any():
        at = np.flatnonzero(outside)
        raise UserError(f"{source}: keys must be from 0 to 2**63 - 2, got {examples(array[at])} in rows {examples(at)}")
    return distinct(source, array.astype(np.int64))


def distinct(source: str, keys: Keys) -> Keys:
    """Return keys, unless some come more than once, or cannot be held: then say in which rows."""
    if isinstance(keys, list):
        bad = [row for row, key in enumerate(keys) if "\0" in key or not encodable(key)]
        if bad:
            which = f"{keys[bad[0]]!r} in {rows_named(np.array(bad))}"
            raise UserError(f"{source}: keys must have no NUL and no lone surrogates, got {which}")
        if len(set(keys)) == len(keys):
            return keys
        first: dict[str, int] = {}
        row, before = next((row, at) for row, key in enumerate(keys) if (at := first.setdefault(key, row)) != row)
    else:
        order = np.argsort(keys, kind="stable")
        again = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if not len(again):
            return keys
        before, row = (int(order[again[0] + side]) for side in (0, 1))
    raise UserError(f"{source}: keys must be distinct, got {keys[row]!s} in rows {before} and {row}")


def check_rows(vectors: Vectors, metric: str, dtype: str, batch: int) -> None:
    """Read the whole file and refuse rows that the index cannot hold, by their numbers in the file."""
    bad: dict[str, list[npt.NDArray[np.int64]]] = {}
    with Bar("checking", vectors.rows, wanted=True) as bar:
        for start, block, _ in vectors.batches(batch):
            for what, at in unfit(block, metric, dtype):
                bad.setdefault(what, []).append(at + start)
            bar.advance(len(block))
    if bad:
        found = "; ".join(f"{what} in {rows_named(np.concatenate(parts))}" for what, parts in bad.items())
        raise UserError(f"{vectors.path}: {found}; drop or mend these rows")


def rows_named(rows: npt.NDArray[np.int64]) -> str:
    """Return the numbers of rows in words."""
    return f"row{'s' * (len(rows) > 1)} {examples(rows)}"


def unfit(block: npt.NDArray[Any], metric: str, dtype: str) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Yield what is wrong with which rows, as :mod:`mmfast.search.arrays` will see it."""
    finite = np.isfinite(block).all(axis=1)
    checks = [("NaN or infinity", ~finite)]
    if metric == "cos":
        checks.append(("only zeros, which have no direction,", ~block.any(axis=1)))
    else:
        with np.errstate(all="ignore"):
            norms = np.linalg.norm(block.astype(np.float64), axis=1)
            long = finite & (norms > NORM_LIMIT)
            large = finite & ~long & (dtype == "f16") & ~np.isfinite(block.astype(np.float16)).all(axis=1)
        checks += [(f"a norm above {NORM_LIMIT}", long), ("values that f16 cannot hold; use --dtype bf16", large)]
    for what, rows in checks:
        if rows.any():
            yield what, np.flatnonzero(rows)


def open_vectors(path: Path, keys: str | None, vector: str | None, metadata: Sequence[str]) -> Vectors:
    """Open a file by the ending of its name."""
    check_regular(path)
    if path.suffix == ".parquet":
        from mmfast.index_parquet import Parquet

        return Parquet(path, keys, vector, metadata)
    if path.suffix != ".npy":
        raise UserError(f"vectors are read from .npy or .parquet, got {path}")
    for option, given in (("--column-vector", vector), ("--metadata", metadata)):
        if given:
            raise UserError(f"{option} names columns of a .parquet file, but {path} has none")
    if keys is not None and not keys.endswith(".npy"):
        raise UserError(f"--keys must be a .npy file, since {path} has no columns, got {keys}")
    return Npy(path, None if keys is None else Path(keys))
