"""Single bits flipped where SQLite does not notice: in the cells of each tree of the database, one after another."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmfast
from tests.stores import keys_of

_PAGE = 16384
_COUNT = 700  # rows: enough for pages above the leaves
_HEAD = 22  # bytes of a cell that hold its sizes and types, id, key, version and mark, or the beginning of a document
_INTERIOR = (2, 5)  # kinds of pages


def make(folder: Path, kind: str) -> None:
    """Make an index with a graph, a tail, removed rows, and rows without metadata."""
    rows = np.random.default_rng(0).standard_normal((_COUNT, 16)).astype(np.float32)
    keys = keys_of(kind, range(_COUNT))
    metadata = [{"n": n, "t": f"row {n}"} if n % 10 else None for n in range(_COUNT)]
    with mmfast.Index.open(folder, ndim=16, dtype="f32", key_kind=kind, indexed_columns=["n"]) as index:
        index.add(keys[:-50], rows[:-50], metadata[:-50])
        index.remove(keys[100:110])
        index.build()
        index.add(keys[-50:], rows[-50:], metadata[-50:])


def questions(kind: str) -> dict[str, Callable[[Any], object]]:
    """Return what a user can ask, each with an answer that can be compared."""
    keys = keys_of(kind, range(_COUNT + 20))
    held = keys[:100] + keys[110:_COUNT]
    query = np.random.default_rng(1).standard_normal(16).astype(np.float32)

    def where(condition: Any) -> Callable[[Any], object]:
        return lambda index: index.search(query, _COUNT, exact=True, where=condition).keys.tolist()

    return {
        "len": len,
        "keys": lambda index: list(index.keys()),
        "in": lambda index: [key in index for key in keys],
        "get": lambda index: index.get(held).tolist(),
        "metadata": lambda index: index.metadata(held),
        "search": where(None),
        "of keys": where(held[:200]),
        "indexed": where(mmfast.col("n") > 300),
        "not indexed": where(mmfast.col("t").is_in([f"row {n}" for n in range(0, _COUNT, 7)])),
        "null": where(mmfast.col("n").is_null()),
    }


def cells(content: bytes, root: int) -> Iterator[tuple[int, int]]:
    """Yield the kind of page and the place of each cell of a tree (https://www.sqlite.org/fileformat2.html)."""
    pages = [root]
    for page in pages:
        begin = (page - 1) * _PAGE
        kind, count = content[begin], struct.unpack_from(">H", content, begin + 3)[0]
        head = begin + (12 if kind in _INTERIOR else 8)
        for place in struct.unpack_from(f">{count}H", content, head):
            yield kind, begin + place
            if kind in _INTERIOR:
                pages += struct.unpack_from(">I", content, begin + place)
        if kind in _INTERIOR:
            pages += struct.unpack_from(">I", content, begin + 8)


def trees(path: Path) -> dict[str, list[tuple[int, int]]]:
    """Return the cells of the trees that answers depend on."""
    content = path.read_bytes()
    with sqlite3.connect(path) as connection:
        roots = connection.execute(
            "SELECT CASE WHEN name LIKE 'documents_by%' THEN 'by column' ELSE name END, rootpage FROM sqlite_master "
            "WHERE tbl_name IN ('items', 'documents') AND name <> 'items_by_version'"
        ).fetchall()
    connection.close()
    return {name: list(cells(content, root)) for name, root in roots}


def refused(folder: Path, asked: dict[str, Any], expected: dict[str, object], where: str) -> set[str]:
    """Return what is answered by an error that names the folder; all else must be answered as expected."""
    told = set()

    def answer(name: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except (OSError, ValueError) as error:
            if str(folder) not in str(error):
                raise
            told.add(name)

    index = answer("open", lambda: mmfast.Index.open(folder, read_only=True))
    if index is not None:
        with index:
            for name, ask in asked.items():
                found = answer(name, lambda ask=ask: ask(index))  # type: ignore[misc]
                assert name in told or found == expected[name], f"{name}: {where}"
    return told


@pytest.mark.parametrize("kind", ["int", "str"])
def test_a_flipped_bit_in_a_cell_gives_no_wrong_answer(kind: str, folder: Path) -> None:
    make(folder, kind)
    path, asked = folder / "truth.sqlite", questions(kind)
    with mmfast.Index.open(folder, read_only=True) as index:
        expected = {name: ask(index) for name, ask in asked.items()}
    whole, told = path.read_bytes(), set()
    copy = folder.with_name("copy")
    for tree, found in trees(path).items():
        above = [place for page, place in found if page in _INTERIOR]
        leaves = [place for page, place in found if page not in _INTERIOR]
        for begin in (*above[:1], leaves[len(leaves) // 3]):
            for offset in range(_HEAD):
                flipped = bytearray(whole)
                flipped[begin + offset] ^= 1 << (offset * 5 % 8)
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(folder, copy)
                (copy / "truth.sqlite").write_bytes(flipped)
                where = f"{tree}, byte {offset} of the cell at {begin}"
                told |= {(tree, name) for name in refused(copy, asked, expected, where)}
    assert {"documents", "items"} <= {tree for tree, _ in told}
