"""The durable index: a folder in which SQLite is the truth, and an index in memory that is derived from it.

Every change is committed first (:mod:`mmfast.search.truth`) and then made in the index that searches; what was
committed but not made, because the process ended in between, is caught up from the log of changes. A file of that
index, ``snapshot.index``, is written to the same folder whenever a graph was built: it is mapped on opening and brought
up to date, and where it is missing, damaged or too old, built anew.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, folding, storage
from mmfast.search.conditions import Condition
from mmfast.search.interrupts import uninterrupted
from mmfast.search.progress import Bar
from mmfast.search.results import RangeResult, SearchResult
from mmfast.search.settings import Settings, check_choice
from mmfast.search.snapshot import pack_state, unpack_state
from mmfast.search.state import Part, State
from mmfast.search.tail import Tail
from mmfast.search.truth import Truth
from mmfast.search.tuning import Point

if TYPE_CHECKING:
    from mmfast.search.index import Index

SNAPSHOT = "snapshot.index"
_log = logging.getLogger("mmfast")
_DEFAULTS: dict[str, Any] = {"metric": "cos", "dtype": "bf16", "connectivity": 16, "expansion_add": 128}


class DurableIndex:
    """An index in a folder, as :meth:`mmfast.Index.open` returns it: what a call acknowledged survives.

    It has the methods of :class:`mmfast.Index`, under the same names and with the same arguments. Beyond them:

    - keys may be strings (``key_kind="str"``); results then hold an array of str, with None where there are fewer than
      k neighbours, and at the same distance the row that was added first is nearer
    - :meth:`add` and :meth:`upsert` take metadata, a dict of what JSON holds for each row; ``where=`` takes conditions
      on it, as ``mmfast.col("year") > 2019``
    - :meth:`metadata`, :meth:`update_metadata`, :meth:`verify`, :meth:`compact`, :meth:`close`, and iteration over keys

    One process at a time may have the folder open for writing, any number read-only; those see new commits at their
    next call. Pickling gives a read-only view of the folder. After a fork the child must open the folder anew.

    Examples
    --------
    >>> import mmfast, numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with mmfast.Index.open(f"{folder}/films", ndim=2, key_kind="str") as films:
    ...         films.add(["Alien", "Up"], np.eye(2), metadata=[{"year": 1979}, {"year": 2009}])
    ...     with mmfast.Index.open(f"{folder}/films") as films:
    ...         films.search(np.array([1.0, 0.1]), 1, where=mmfast.col("year") > 2000).keys.tolist()
    ['Up']
    """

    def __init__(self, truth: Truth, folder: Path, *, read_only: bool, progress: bool) -> None:
        from mmfast.search.index import Index

        kept = {name: truth.settings[name] for name in ("ndim", *_DEFAULTS)}
        self._truth, self._folder, self.read_only, self._progress = truth, folder, read_only, progress
        self._engine: Index = Index(**kept)
        self._engine._folder = _Folder(self)
        self._lock = threading.Lock()  # from before a commit until the engine has it
        self._version = 0  # that the engine is at
        self._snapshot: tuple[int, ...] | None = None  # which file was read
        self._names: npt.NDArray[Any] | None = None  # (ids,) where keys are strings
        self._load()

    @classmethod
    def open(
        cls,
        folder: storage.FilePath,
        given: dict[str, Any],
        *,
        key_kind: str | None,
        read_only: bool,
        indexed_columns: Sequence[str],
        progress: bool,
    ) -> DurableIndex:
        """Open the folder, made first where there is none and ``given`` has ndim."""
        path = Path(os.fsdecode(folder))
        if key_kind is not None:
            check_choice("key_kind", key_kind, ("int", "str"))
        given = {name: value for name, value in given.items() if value is not None}
        if "ndim" in given:  # checks them all
            given |= {name: getattr(Settings(**{**_DEFAULTS, **given}), name) for name in given}
        fresh = not (path / "truth.sqlite").exists() and "ndim" in given and not read_only
        settings = {**_DEFAULTS, **given} if fresh else given or None
        kind = key_kind or ("int" if fresh else None)
        truth = Truth.open(path, settings, key_kind=kind, read_only=read_only, indexed_columns=indexed_columns)
        try:
            return cls(truth, path, read_only=read_only, progress=progress)
        except BaseException:
            truth.close()
            raise

    def _load(self) -> None:
        """Bring the engine to the truth's version, from the snapshot if that is of use."""
        why = self._read_snapshot()
        if why is None and not self._catch_up():
            why = "is too old to be brought up to date"
        if why is None:
            return
        version, bar = self._truth.version, Bar("reading rows", len(self._truth), self._progress)
        tail, main = Tail(self._engine._settings), None
        with bar:
            for ids, _, stored in self._truth.rows():
                main = Part(tail.append(ids, stored, torch.get_num_threads()))
                bar.advance(len(ids))
        self._engine._state, self._engine._tail, self._version = State(None, main), tail, version
        if not self._catch_up():  # of what was committed while rows were read
            raise RuntimeError(f"{self._folder} changes faster than it can be read; open it again")
        if len(self._engine) > folding.LEAST_ROWS:
            _log.warning("%s %s: building the graph of %s rows", self._folder / SNAPSHOT, why, f"{len(self._engine):,}")
            self.build()

    def _read_snapshot(self) -> str | None:
        """Take over the snapshot's state, or say in words why not."""
        path = self._folder / SNAPSHOT
        try:
            meta, sections = storage.unpack(storage.map_file(str(path)), str(path))
            if (meta["identity"], meta["settings"]) != (self._truth.identity, self._described()):
                return "belongs to another index"
            state, tail = unpack_state(self._engine._settings, sections)
            version = int(meta["version"])
        except FileNotFoundError:
            return "is missing"
        except (KeyError, TypeError, ValueError, OSError) as error:
            return f"cannot be used ({error})"
        if version > self._truth.version:
            return "is newer than the index, which was restored from a copy"
        self._engine._state, self._engine._tail, self._version = state, tail, version
        self._names, self._snapshot = None, _identity(path)
        return None

    def _described(self) -> dict[str, Any]:
        return dataclasses.asdict(self._engine._settings)

    def _catch_up(self) -> bool:
        """Make in the engine what was committed beyond its version; False where that cannot be told any more."""
        changes = self._truth.changes(self._version)
        if changes is None:
            return False
        engine = self._engine
        if len(changes.removed_ids):
            engine._state = engine._state.without(changes.removed_ids)
        if len(changes.ids):
            engine._put_stored(changes.ids, changes.stored, torch.get_num_threads())
        self._name(changes.ids, changes.keys)
        self._version = changes.version
        return True

    def _refresh(self) -> None:
        """See what others have committed; a writer has nobody else to wait for."""
        if not self.read_only or self._truth.version == self._version:
            return
        with self._lock:
            if _identity(self._folder / SNAPSHOT) != self._snapshot and folding.is_due(self._engine._state):
                self._read_snapshot()
            if not self._catch_up():
                self._load()

    def _save_snapshot(self) -> None:
        """Write the engine's present state, unless this is a reader."""
        if self.read_only:
            return
        with self._lock:
            state, version = self._engine._state, self._version
        meta = {"settings": self._described(), "identity": self._truth.identity, "version": version}
        before = self._version_of_file()
        storage.write_atomically(self._folder / SNAPSHOT, storage.pack(meta, pack_state(state)))
        # Readers may still be at the one before.
        self._truth.trim(min(before, version))

    def _version_of_file(self) -> int:
        try:
            meta, _ = storage.unpack(storage.map_file(str(self._folder / SNAPSHOT)), SNAPSHOT)
            return int(meta["version"])
        except (OSError, KeyError, TypeError, ValueError):
            return 0

    # Keys and ids

    def _name(self, ids: npt.NDArray[np.int64], keys: Any) -> None:
        """Remember the keys of new ids, where they are strings."""
        if self.key_kind == "int" or self._names is None or not len(ids):
            return
        top = int(ids.max()) + 1
        if top > len(self._names):
            grown = np.full(max(top, 2 * len(self._names)), None, dtype=object)
            grown[: len(self._names)] = self._names
            self._names = grown
        self._names[ids] = keys

    def _keys_of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the keys of ids, where -1 is none."""
        if self.key_kind == "int":
            return ids
        if self._names is None:
            names: dict[int, str] = {}
            for block, keys, _ in self._truth.rows():
                names.update(zip(block.tolist(), keys, strict=True))
            with self._lock:
                self._names = np.full(max(names, default=-1) + 1, None, dtype=object)
                self._names[list(names)] = list(names.values())
        keys = np.full(ids.shape, None, dtype=object)
        found = ids >= 0
        keys[found] = self._names[ids[found]]
        return keys

    def _where(self, where: object) -> object:
        """Return what the engine's ``where`` takes."""
        if isinstance(where, Condition):
            return self._truth.where(where)
        if where is None or self.key_kind == "int":
            return where
        if isinstance(where, (set, frozenset)):
            where = list(where)
        ids = self._truth.ids(where)
        return ids[ids >= 0]

    # What a user calls

    @property
    def key_kind(self) -> str:
        """Return "int" or "str"."""
        return str(self._truth.settings["key_kind"])

    @property
    def ndim(self) -> int:
        """Return the number of features of a vector."""
        return self._engine.ndim

    @property
    def metric(self) -> str:
        """Return "cos", "ip" or "l2sq"."""
        return self._engine.metric

    @property
    def dtype(self) -> str:
        """Return the storage dtype."""
        return self._engine.dtype

    def add(self, keys: object, vectors: object, metadata: object = None) -> None:
        """Add rows as :meth:`mmfast.Index.add` does; once it returns they survive whatever becomes of the process.

        ``metadata`` is a list with a dict or None for each row, or for one row a dict. Errors also as of
        :class:`OSError` where the disk is full, and :class:`PermissionError` where the folder was opened read-only.
        """
        self._put(keys, vectors, metadata, replace=False)

    def upsert(self, keys: object, vectors: object, metadata: object = None) -> None:
        """Add rows, or replace those whose keys are held; where no metadata is given, theirs stays."""
        self._put(keys, vectors, metadata, replace=True)

    def _put(self, keys: object, vectors: object, metadata: object, *, replace: bool) -> None:
        matrix, single = arrays.check_rows("vectors", vectors, self.ndim)
        threads = torch.get_num_threads()
        stored = arrays.encode("vectors", matrix, self.metric, self.dtype, threads)
        if single and isinstance(keys, str):
            keys = [keys]
        if single and isinstance(metadata, dict):
            metadata = [metadata]
        if self.key_kind == "int":
            keys = arrays.check_keys(keys)

        def work() -> None:
            change = self._truth.upsert if replace else self._truth.add
            version = change(keys, stored, metadata)
            if version != self._version + 1:  # nothing to add, or an earlier change did not get this far
                self._catch_up()
                return
            ids = self._truth.ids(keys)
            self._engine._put_stored(ids, stored, threads)
            self._name(ids, keys)
            self._version = version

        uninterrupted(self._lock, work)
        self._engine._fold_in_background(threads)

    def remove(self, keys: object) -> int:
        """Remove rows and their metadata, as :meth:`mmfast.Index.remove` does; once it returns they stay removed."""
        if self.key_kind == "int":
            keys = arrays.check_keys(keys)
        elif isinstance(keys, str):
            keys = [keys]
        removed = []

        def work() -> None:
            before = len(self._truth)
            self._truth.remove(keys)
            self._catch_up()
            removed.append(before - len(self._truth))

        uninterrupted(self._lock, work)
        self._engine._fold_in_background(torch.get_num_threads())
        return removed[0]

    def search(
        self,
        queries: object,
        k: int,
        *,
        recall: float = 0.95,
        exact: bool = False,
        ef: int | None = None,
        where: object = None,
    ) -> SearchResult:
        """Find the ``k`` nearest rows of each query, as :meth:`mmfast.Index.search` does.

        ``where`` may also be a condition on metadata, or list keys that are strings; keys that are not held are not
        found.
        """
        self._refresh()
        found = self._engine.search(queries, k, recall=recall, exact=exact, ef=ef, where=self._where(where))
        return SearchResult(self._keys_of(found.keys), found.distances)

    def range_search(self, queries: object, radius: float, *, where: object = None) -> RangeResult:
        """Find all rows within a distance of each query, as :meth:`mmfast.Index.range_search` does."""
        self._refresh()
        found = self._engine.range_search(queries, radius, where=self._where(where))
        return RangeResult(found.offsets, self._keys_of(found.keys), found.distances)

    def get(self, keys: object) -> npt.NDArray[np.float32]:
        """Return the vectors of keys, as :meth:`mmfast.Index.get` does."""
        return arrays.widen(self._truth.get([keys] if isinstance(keys, str) else keys), self.dtype)

    def metadata(self, keys: object) -> list[dict[str, Any] | None]:
        """Return the metadata of keys, None where there is none; KeyError names keys that are not held."""
        return self._truth.metadata([keys] if isinstance(keys, str) else keys)

    def update_metadata(self, keys: object, metadata: object, *, replace: bool = False) -> None:
        """Merge a dict into the metadata of each key, as ``dict.update`` does, or put it in its place."""
        single = isinstance(metadata, dict)
        keys, metadata = ([keys] if isinstance(keys, str) else keys), ([metadata] if single else metadata)

        def work() -> None:
            version = self._truth.update_metadata(keys, metadata, replace=replace)
            self._version += version == self._version + 1

        uninterrupted(self._lock, work)

    def build(self) -> None:
        """Build a graph of all rows now, and write the snapshot."""
        with Bar("building the graph", len(self._engine), self._progress) as bar, self._engine._folder.turn():
            folding.fold(self._engine, torch.get_num_threads(), bar.reach)
        self._save_snapshot()

    def compact(self) -> None:
        """Build the graph anew, and give the space of what was removed back to the disk."""
        self.build()
        self._truth.trim(self._truth.version)
        self._truth.compact()

    def verify(self) -> list[str]:
        """Read everything and return what is wrong, in words: the database, the snapshot, and what they disagree on."""
        self._refresh()
        problems = self._truth.verify()
        if problems:
            return problems
        path = self._folder / SNAPSHOT
        if path.exists():
            try:
                storage.unpack(storage.map_file(str(path)), str(path))
            except (OSError, ValueError) as error:
                problems.append(f"{error} (it is built anew when the index is opened)")
        state, seen = self._engine._state, 0
        for ids, _, stored in self._truth.rows():
            same = np.zeros(len(ids), dtype=np.bool_)
            for part in state.parts():
                rows = part.locate(ids)
                here = rows >= 0
                same[here] = (part.segment.stored[rows[here]] == stored[here]).all(axis=1)
            seen += len(ids)
            if not same.all():
                problems.append(f"the index in memory differs from the database in {arrays.examples(ids[~same])}")
        if seen != state.size():
            problems.append(f"the index in memory has {state.size():,} rows where the database has {seen:,}")
        return problems

    def tune(self, queries: object) -> None:
        """Measure the graph by queries like those given, as :meth:`mmfast.Index.tune` does, and keep the result."""
        self._engine.tune(queries)
        self._save_snapshot()

    def recall_curve(self) -> dict[int, list[Point]]:
        """Return what was measured of the graph, as :meth:`mmfast.Index.recall_curve` does."""
        return self._engine.recall_curve()

    def stats(self) -> dict[str, Any]:
        """Return in numbers what the index holds, as :meth:`mmfast.Index.stats` does, and its ``version``."""
        self._refresh()
        return {**self._engine.stats(), "version": self._version}

    def save(self, path: storage.FilePath) -> None:
        """Write what can be searched to one file, for :meth:`mmfast.Index.load`; keys must be integers."""
        if self.key_kind == "str":
            raise TypeError("keys must be integers in a file of one index; copy the folder to keep keys that are str")
        self._engine.save(path)

    def keys(self) -> Any:
        """Return all keys, in the order of their ids: an array of int64, or a list of str."""
        listed = list(self._truth)
        return listed if self.key_kind == "str" else np.array(listed, dtype=np.int64)

    def __iter__(self) -> Iterator[int | str]:
        """Iterate over the keys."""
        return iter(self._truth)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._truth)

    def __contains__(self, key: object) -> bool:
        """Tell whether the index holds ``key``."""
        return key in self._truth

    def __repr__(self) -> str:
        """Describe the index in one line."""
        return f"Index.open({str(self._folder)!r}: {self._engine!r}, {self.key_kind} keys)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name of the folder."""
        return _reopen, (str(self._folder.resolve()),)

    def close(self) -> None:
        """Let others write to the folder; what was added is in it already."""
        self._engine._folder.stop()
        self._truth.close()

    def __enter__(self) -> DurableIndex:
        """Close the folder at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the folder."""
        self.close()


class _Folder(folding.Folder):
    """Folds the engine of a durable index and writes its snapshot; readers take the writer's."""

    def __init__(self, owner: DurableIndex) -> None:
        super().__init__()
        self._owner = weakref.ref(owner)

    def start(self, index: Index, threads: int) -> None:
        owner = self._owner()
        if owner is not None and not owner.read_only:
            super().start(index, threads)

    def folded(self) -> None:
        owner = self._owner()
        if owner is not None:
            owner._save_snapshot()


def _reopen(folder: str) -> DurableIndex:
    return DurableIndex.open(folder, {}, key_kind=None, read_only=True, indexed_columns=(), progress=False)


def _identity(path: Path) -> tuple[int, ...] | None:
    """Tell one file of a name from the next."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
