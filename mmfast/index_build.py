"""``mmfast index build``: add the vectors of a file to a durable index, in batches, and build its graph.

Each batch is on the disk once it is added. What is cut short is completed by running it again with ``--upsert``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from mmfast.cli import UserError, program
from mmfast.index_files import Keys, Vectors, check_rows, open_vectors
from mmfast.index_folder import told
from mmfast.index_output import columns_of
from mmfast.search.arrays import examples
from mmfast.search.database import DATABASE
from mmfast.search.durable import DurableIndex
from mmfast.search.index import Index
from mmfast.search.progress import Bar
from mmfast.search.settings import Settings
from mmfast.search.truth import Truth


def run(args: argparse.Namespace) -> int:
    """Check the file, add its rows, build the graph and write the snapshot."""
    folder: Path = args.folder
    vectors = open_vectors(args.vectors, args.keys, args.column_vector, args.metadata)
    if not vectors.rows:
        raise UserError(f"{vectors.path} holds no rows; an index is made of one at least")
    exists = (folder / DATABASE).exists()
    if not exists:
        _check_new(folder, vectors, args)
    keys = _keys(vectors, args)
    _check_indexed(folder if exists else None, vectors, args.index)
    print(f"{vectors.path}: {vectors.rows:,} rows of {vectors.ndim} features, {vectors.dtype}", flush=True)
    if vectors.left_out:
        print(f"--metadata '*' leaves out {vectors.left_out}", flush=True)
    index = _open(folder, args, keys, None) if exists else None
    try:
        if index is not None:
            _check_fits(index, vectors, keys, args)
        metric, dtype = (args.metric or "cos", args.dtype or "bf16") if index is None else (index.metric, index.dtype)
        check_rows(vectors, metric, dtype, args.batch)
        if index is None:
            index = _open(folder, args, keys, vectors.ndim)
        before = len(index)
        _add(index, vectors, keys, args)
        new, replaced = len(index) - before, vectors.rows - (len(index) - before)
        added = f"added {new:,} rows{f', replaced {replaced:,}' if replaced else ''}"
        _build(index, folder, added)
        print(f"{folder} holds {len(index):,} rows; search it with: {program()} index search {folder} QUERIES.npy")
    finally:
        if index is not None:
            index.close()
    return 0


def names(text: str) -> list[str]:
    """Read names of columns with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_new(folder: Path, vectors: Vectors, args: argparse.Namespace) -> None:
    """Refuse a folder that no index can be made in, and settings that none can be made with."""
    with told():
        Settings(vectors.ndim, args.metric or "cos", args.dtype or "bf16", 16, 128)
        try:
            Index.open(folder, read_only=True).close()
        except FileNotFoundError as error:
            if not folder.absolute().parent.is_dir():
                raise UserError(f"cannot make {folder}: there is no folder {folder.absolute().parent}") from error


def _keys(vectors: Vectors, args: argparse.Namespace) -> Keys:
    """Return the key of each row: its number where none are given."""
    keys = vectors.keys()
    if keys is None:
        if args.key_kind == "str":
            raise UserError("--key-kind str needs --keys; without, the keys of rows are their numbers")
        return np.arange(vectors.rows)
    if args.key_kind == "int" and isinstance(keys, list):
        raise UserError(f"--key-kind int needs keys that are integers, but {args.keys} holds text")
    return list(map(str, keys.tolist())) if args.key_kind == "str" and not isinstance(keys, list) else keys


def _check_indexed(folder: Path | None, vectors: Vectors, indexed: list[str]) -> None:
    """Refuse to index columns that neither the file brings nor the index in ``folder`` has."""
    unknown = [name for name in indexed if name.partition(".")[0] not in vectors.metadata]
    there = list(vectors.metadata)
    if unknown and folder is not None:
        with told(), Truth.open(folder, read_only=True) as truth:
            there = list(dict.fromkeys([*there, *columns_of(truth)]))
        unknown = [name for name in unknown if name.partition(".")[0] not in there]
    if unknown:
        has = f"which are {', '.join(there)}" if there else "of which there are none"
        raise UserError(f"--index: {unknown[0]!r} is not among the columns of the metadata, {has}; see --metadata")


def _open(folder: Path, args: argparse.Namespace, keys: Keys, ndim: int | None) -> DurableIndex:
    """Open the index, made first where ``ndim`` is given. One graph is built, in the end."""
    kind = args.key_kind or (None if ndim is None else "str" if isinstance(keys, list) else "int")
    given = {"ndim": ndim, "metric": args.metric, "dtype": args.dtype}
    with told():
        return DurableIndex.open(
            folder,
            given,
            key_kind=kind,
            read_only=False,
            indexed_columns=args.index,
            progress=True,
            build_when_due=False,
        )


def _check_fits(index: DurableIndex, vectors: Vectors, keys: Keys, args: argparse.Namespace) -> None:
    """Refuse what an index that exists cannot take."""
    if vectors.ndim != index.ndim:
        raise UserError(f"{vectors.path} has {vectors.ndim} features a row, but the index has {index.ndim}")
    kind = "str" if isinstance(keys, list) else "int"
    if kind != index.key_kind:
        words = {"int": "integers", "str": "text"}
        how = "; give --keys" if args.keys is None else "; give --key-kind str" if kind == "int" else ""
        raise UserError(f"the keys of {args.folder} are {words[index.key_kind]}, not {words[kind]}{how}")
    if args.upsert or not len(index):
        return
    if isinstance(keys, list):
        given = set(keys)
        held = np.array([key for key in index if key in given], dtype=object)
    else:
        held = np.intersect1d(index.keys(), keys)
    if len(held):
        how = "--upsert replaces them" + ("" if args.keys else ", --keys gives keys other than the numbers of rows")
        raise UserError(f"the index already holds {len(held):,} of the keys: {examples(held)}; {how}")


def _add(index: DurableIndex, vectors: Vectors, keys: Keys, args: argparse.Namespace) -> None:
    """Add all rows; where that is cut short, say what is there and what completes it."""
    put = index.upsert if args.upsert else index.add
    merging = args.upsert and vectors.metadata
    held = set(keys if isinstance(keys, list) else keys.tolist()).intersection(index) if merging else set()
    try:
        with Bar("adding rows", vectors.rows, wanted=True) as bar:
            for start, block, metadata in vectors.batches(args.batch):
                end = start + len(block)
                with told(f"rows {start} to {end - 1} of {vectors.path}: "):
                    if metadata is not None and held:
                        metadata = _merged(index, keys[start:end], metadata, held)
                    put(keys[start:end], block, metadata)
                bar.reach(end)
    except UserError as error:
        raise UserError(f"{error}; {_kept(index)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_kept(index)}") from None


def _merged(
    index: DurableIndex, keys: Keys, metadata: list[dict[str, Any]], held: set[int | str]
) -> list[dict[str, Any]]:
    """Return the metadata of rows, merged into what those have that are held, as ``update_metadata`` does."""
    rows: list[int | str] = list(keys)
    there = [key for key in rows if key in held]
    old = dict(zip(there, index.metadata(there), strict=True))
    return [{**(old.get(key) or {}), **document} for key, document in zip(rows, metadata, strict=True)]


def _kept(index: DurableIndex) -> str:
    return f"the index holds {len(index):,} rows, and running this again with --upsert adds the others"


def _build(index: DurableIndex, folder: Path, added: str) -> None:
    try:
        print(f"{added}; building the graph", flush=True)
        with told():
            index.build()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; all rows are in the index, and {program()} index compact {folder} builds its graph"
        ) from None
