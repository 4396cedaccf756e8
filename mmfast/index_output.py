"""What the commands of ``mmfast index`` print and write: tables, sizes and files of results.

On a terminal tables are drawn by rich where it is installed; elsewhere they are aligned columns of plain text.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmfast.cli import UserError
from mmfast.index_folder import told
from mmfast.search.results import SearchResult
from mmfast.search.storage import write_atomically

ENDINGS = (".npz", ".jsonl")
_NAMES_SAMPLED = 1000  # rows whose metadata is read to tell which columns there are


class Header(NamedTuple):
    """The head of a column of a table."""

    name: str
    right: bool = True  # where numbers align
    fold: bool = True  # what is too wide, instead of cutting it


def table(headers: Sequence[Header], rows: Sequence[Sequence[str]], sections: Sequence[int] = ()) -> None:
    """Print a table; ``sections`` are the numbers of rows after which a line is drawn."""
    if sys.stdout.isatty():
        try:
            _drawn(headers, rows, sections)
        except ModuleNotFoundError:
            pass
        else:
            return
    widths = [max(map(len, column)) for column in zip([header.name for header in headers], *rows, strict=True)]
    for cells in [[header.name for header in headers], *rows]:
        aligned = (
            cell.rjust(width) if header.right else cell.ljust(width)
            for cell, width, header in zip(cells, widths, headers, strict=True)
        )
        print("  ".join(aligned).rstrip())


def _drawn(headers: Sequence[Header], rows: Sequence[Sequence[str]], sections: Sequence[int]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table()
    for header in headers:
        drawn.add_column(header.name, justify="right" if header.right else "left")
    for number, cells in enumerate(rows, start=1):
        # Each text by itself: a column that may not wrap would take its room from the others.
        texts = [
            Text(cell, overflow="fold" if header.fold else "ellipsis", no_wrap=not header.fold)
            for cell, header in zip(cells, headers, strict=True)
        ]
        drawn.add_row(*texts, end_section=number in sections)
    Console().print(drawn)


def size(count: int) -> str:
    """Return a number of bytes in words."""
    for unit, bytes_of_it in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_of_it:
            return f"{count / bytes_of_it:,.1f} {unit}"
    return f"{count} bytes"


def sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file in a folder that has any, the largest first."""
    found = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # SQLite's own come and go
            found[path.name] = path.stat().st_size
    found = {name: count for name, count in found.items() if count and not name.endswith("-shm")}  # of an open database
    return dict(sorted(found.items(), key=lambda entry: (-entry[1], entry[0])))


def columns_of(index: Any) -> list[str]:
    """Return the names in the metadata of the first rows, in the order in which they come."""
    keys = [key for key, _ in zip(index, range(_NAMES_SAMPLED), strict=False)]
    return list(dict.fromkeys(name for document in index.metadata(keys) for name in document or ()))


def check_output(path: Path, force: bool) -> None:
    """Refuse a file that cannot be written, before anything is searched."""
    if path.suffix not in ENDINGS:
        raise UserError(f"--out must end in {' or '.join(ENDINGS)}, got {path}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise UserError(f"{path} exists already; name another file, or overwrite it with --force")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path}: there is no folder {path.parent}")


def metadata_of(index: Any, keys: list[Any]) -> list[dict[str, Any] | None]:
    """Return the metadata of rows that were found."""
    try:
        with told():
            return list(index.metadata(keys))
    except KeyError as error:
        raise UserError("rows that were found were removed meanwhile by another process; search again") from error


def write_results(path: Path, found: SearchResult, index: Any) -> None:
    """Write what was found for every query, in the format that the name ends in."""
    content = _npz(found) if path.suffix == ".npz" else _jsonl(found, index)
    try:
        write_atomically(path, [content])
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _npz(found: SearchResult) -> bytes:
    """Return arrays ``keys`` and ``distances``; keys that are text become str, "" where there is none."""
    keys: Any = found.keys
    if keys.dtype == object:
        keys = np.array(["" if key is None else key for key in keys.reshape(-1)], dtype=np.str_).reshape(keys.shape)
    written = io.BytesIO()
    np.savez(written, keys=keys, distances=found.distances)
    return written.getvalue()


def _jsonl(found: SearchResult, index: Any) -> bytes:
    """Return a line for each query, with what was found only, and the metadata if any of it has some."""
    lines = []
    keys = list(dict.fromkeys(found.keys[np.isfinite(found.distances)].tolist()))
    documents = dict(zip(keys, metadata_of(index, keys), strict=True))
    described = any(documents.values())
    for number, (row, distances) in enumerate(zip(found.keys, found.distances, strict=True)):
        there = np.isfinite(distances)
        nearest = [float(str(distance)) for distance in distances[there]]  # as short as float32 allows
        entry: dict[str, Any] = {"query": number, "keys": row[there].tolist(), "distances": nearest}
        if described:
            entry["metadata"] = [documents[key] for key in entry["keys"]]
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines).encode()
