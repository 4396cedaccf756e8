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
import secrets
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, folding, storage
from mmfast.search.conditions import Condition
from mmfast.search.interrupts import uninterrupted
from mmfast.search.progress import Bar
from mmfast.search.results import RangeResult, SearchResult
from mmfast.search.settings import Settings, as_int, check_choice
from mmfast.search.snapshot import pack_state, unpack_state
from mmfast.search.state import Part, State
from mmfast.search.tail import Tail
from mmfast.search.truth import Truth
from mmfast.search.tuning import Point

if TYPE_CHECKING:
    from mmfast.search.index import Index

SNAPSHOT = "snapshot.index"
_MISSING = "is missing"
_ATTEMPTS = 10
# What reading something else under the snapshot's name can raise; not all there is, for signal handlers raise as well.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_log = logging.getLogger("mmfast")
_DEFAULTS: dict[str, Any] = {"metric": "cos", "dtype": "bf16", "connectivity": 16, "expansion_add": 128}


class _Start(NamedTuple):
    """What an engine can begin with."""

    state: State
    tail: Tail
    version: int


class DurableIndex:
    """An index in a folder, as :meth:`mmfast.Index.open` returns it: what a call acknowledged survives.

    It has the methods of :class:`mmfast.Index`, under the same names and with the same arguments. Beyond them:

    - keys may be strings (``key_kind="str"``); results then hold them in an array of objects, with None where there are
      fewer than k neighbours, and at the same distance the row that was added first is nearer
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

        self._made_with = {name: truth.settings[name] for name in ("ndim", *_DEFAULTS)}
        self._truth, self._folder, self.read_only, self._progress = truth, folder, read_only, progress
        self._process = os.getpid()
        self._engine: Index = Index(**self._made_with)
        self._engine._folder = _Folder(self)
        self._lock = threading.Lock()  # from before a commit until the engine has it
        self._saving = threading.RLock()  # while a snapshot is written
        self._version = 0  # that the engine is at
        self._behind = False  # a commit did not get as far as the engine
        self._snapshot: tuple[int, ...] | None = None  # the file that was last looked at
        self._names: npt.NDArray[Any] | None = None  # (ids,) where keys are strings; never takes a name back
        self._names_known = self.key_kind == "int"  # those of all ids that a search can find
        if not read_only:
            storage.remove_leftovers(folder)
        # Readers wait for the writer's graph, and search exactly until then.
        if not self._load() and not read_only and len(self._engine) > folding.LEAST_ROWS:
            _log.warning("%s: building the graph of %s rows", folder, f"{len(self._engine):,}")
            self._build_after_loading()

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
        path = Path(os.path.realpath(os.fsdecode(folder)))
        if key_kind is not None:
            check_choice("key_kind", key_kind, ("int", "str"))
        given = {name: value for name, value in given.items() if value is not None}
        if "ndim" in given:  # checks them all
            given |= {name: getattr(Settings(**{**_DEFAULTS, **given}), name) for name in given}
        missing = not (path / "truth.sqlite").exists()
        fresh = missing and "ndim" in given and not read_only
        settings = {**_DEFAULTS, **given} if fresh else given or None
        kind = key_kind or ("int" if fresh else None)
        if missing and not fresh:  # which is an error, of the folder and not of these
            settings = kind = None
        truth = Truth.open(path, settings, key_kind=kind, read_only=read_only, indexed_columns=indexed_columns)
        try:
            return cls(truth, path, read_only=read_only, progress=progress)
        except BaseException:
            truth.close()
            raise

    def _load(self) -> bool:
        """Bring the engine to the truth's version: True if the snapshot was of use, False if all rows were read."""
        path = self._folder / SNAPSHOT
        for _ in range(_ATTEMPTS):  # a writer that compacts forgets what a reader is reading
            while (why := self._take_snapshot()) is not None and _identity(path) != self._snapshot:
                pass  # it was replaced meanwhile
            if why is None:
                return True
            if why != _MISSING:
                _log.warning("%s %s: reading all rows", path, why)
            version, bar = self._truth.version, Bar("reading rows", len(self._truth), self._progress)
            tail, main = Tail(self._engine._settings), None
            with bar:
                for ids, _, stored in self._truth.rows():
                    main = Part(tail.append(ids, stored, torch.get_num_threads()))
                    bar.advance(len(ids))
            if self._catch_up(_Start(State(None, main), tail, version)):  # with what was committed meanwhile
                return False
        raise RuntimeError(f"{self._folder} changes faster than it can be read; open it again")

    def _take_snapshot(self) -> str | None:
        """Take over the snapshot's state and bring it up to date, or say in words why not."""
        path = self._folder / SNAPSHOT
        self._snapshot = _identity(path)
        try:
            meta, sections = storage.unpack(storage.map_file(str(path)), str(path))
            if (meta["identity"], meta["settings"]) != (self._truth.identity, self._described()):
                return "belongs to another index"
            if meta["name"] not in self._truth.snapshots():
                return "is of another past than the index, which was restored from a copy"
            start = _Start(*unpack_state(self._engine._settings, sections), int(meta["version"]))
        except FileNotFoundError:
            return _MISSING
        except _UNREADABLE as error:
            return f"cannot be used ({type(error).__name__}: {error})"
        return None if self._catch_up(start) else "is too old to be brought up to date"

    def _build_after_loading(self) -> None:
        """Build, but open the folder also where the disk is full, or something else is in the snapshot's place."""
        self._fold()
        try:
            self._save_snapshot()
        except OSError as error:
            _log.warning("%s cannot be written (%s): the graph is built anew at the next opening", SNAPSHOT, error)

    def _described(self) -> dict[str, Any]:
        return dataclasses.asdict(self._engine._settings)

    def _catch_up(self, start: _Start | None = None) -> bool:
        """Make in the engine what was committed beyond its version; False where that cannot be told any more.

        With ``start`` that takes the place of what the engine has, once it is up to date.
        """
        from mmfast.search.index import Index

        if start is not None and start.version > self._version and self._names is not None:
            self._read_names()
        changes = self._truth.changes(self._version if start is None else start.version)
        if changes is None:
            return False
        self._name(changes.ids, changes.keys)
        engine = self._engine
        if start is not None:
            engine = Index(**self._made_with)
            engine._state, engine._tail = start.state, start.tail
        with engine._lock:
            if engine._state.tail:  # what an error kept from becoming part of the state is no part of the tail
                engine._tail._count = len(engine._state.tail.segment)
            state = engine._appended(changes.ids, changes.stored, torch.get_num_threads())
            state = state.without(changes.removed_ids)
            if start is None:
                engine._state = state
        if start is not None:
            with self._engine._lock:
                self._engine._tail, self._engine._state = engine._tail, state
        self._version = changes.version
        return True

    def _afterwards(self, version: int, apply: Callable[[], None]) -> None:
        """Make in the engine what was committed as ``version``, by ``apply`` if nothing else is missing.

        It is committed: an error here must not look as if it were not. The next call tries again.
        """
        if version == self._version:
            return
        try:
            if version == self._version + 1:
                apply()
                self._version = version
            else:
                self._follow()
        except Exception:
            self._behind = True
            _log.exception("%s: version %s is committed, but not yet found by searches", self._folder, version)

    def _refresh(self) -> None:
        """See what others have committed; a writer has nobody else to wait for."""
        self._truth.check_usable()
        lags = self._behind
        if self.read_only:
            lags = self._truth.version != self._version or self._has_new_snapshot()
        if lags:
            uninterrupted(self._lock, self._follow)

    def _follow(self) -> None:
        """Bring the engine up to date; the caller holds the lock."""
        if not self._catch_up():
            self._load()
        elif self.read_only and self._has_new_snapshot():
            self._take_snapshot()
        self._behind = False

    def _has_new_snapshot(self) -> bool:
        return folding.is_due(self._engine._state) and _identity(self._folder / SNAPSHOT) != self._snapshot

    def _save_snapshot(self) -> int:
        """Write the engine's present state, unless this is a reader, and return its version."""
        if self.read_only:
            return self._version
        with self._saving:
            self._truth.check_usable()
            state, version = uninterrupted(self._lock, lambda: (self._engine._state, self._version))
            name, (present, before) = secrets.token_hex(16), self._present_snapshot()
            # The database knows its snapshots by name: one restored from a copy has seen other changes since, under
            # the same versions.
            self._truth.note_snapshots([present, name])
            meta = {
                "settings": self._described(), "identity": self._truth.identity, "name": name, "version": version
            }  # fmt: skip
            storage.write_atomically(self._folder / SNAPSHOT, storage.pack(meta, pack_state(state)))
            # Readers may still be at the one before.
            self._truth.trim(min(before, version))
        return version

    def _present_snapshot(self) -> tuple[str, int]:
        """Return name and version of the snapshot in the folder."""
        try:
            meta, _ = storage.unpack(storage.map_file(str(self._folder / SNAPSHOT)), SNAPSHOT)
            return str(meta["name"]), max(int(meta["version"]), 0)
        except _UNREADABLE:
            return "", 0

    # Keys and ids

    def _name(self, ids: npt.NDArray[np.int64], keys: Any) -> None:
        """Remember the keys of new ids, where they are strings: before the engine has them, and for good."""
        if self._names is not None:
            self._names = _with_names(self._names, ids, keys)

    def _read_names(self) -> None:
        """Read the keys of all ids that are held."""
        names = np.full(0, None, dtype=object) if self._names is None else self._names
        for ids, keys in self._truth.names():
            names = _with_names(names, ids, keys)
        self._names = names

    def _know_names(self) -> None:
        """See to it that all ids in the engine have their names, where keys are strings."""

        def work() -> None:
            if not self._names_known:
                self._read_names()
                self._follow()  # what was removed before it was read is to be found no more
                self._names_known = True

        if not self._names_known:
            uninterrupted(self._lock, work)

    def _keys_of(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the keys of ids, where -1 is none."""
        if self._names is None:
            return ids
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
        if getattr(where, "dtype", None) in (np.bool_, torch.bool):
            raise TypeError("where must be a condition or list keys, got a mask, which is for keys that are integers")
        if isinstance(where, (set, frozenset)):
            where = list(where)
        try:
            ids = self._truth.ids(where)
        except (TypeError, ValueError) as error:
            raise (TypeError if isinstance(error, TypeError) else ValueError)(f"where: {error}") from None
        return np.unique(ids[ids >= 0])

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
        self._truth.check_usable()
        if self.read_only:
            raise self._refused()
        checked = self._truth.check_keys(keys)
        matrix, _ = arrays.check_rows("vectors", vectors, self.ndim)
        if len(checked) != len(matrix):
            raise ValueError(f"keys must be one per vector, got {len(checked)} keys for {len(matrix)} vectors")
        threads = torch.get_num_threads()
        stored = arrays.encode("vectors", matrix, self.metric, self.dtype, threads)
        if isinstance(metadata, Mapping) and len(matrix) == 1:
            metadata = [metadata]

        def work() -> None:
            change = self._truth.upsert if replace else self._truth.add

            def apply() -> None:
                ids = self._truth.ids(checked)
                self._name(ids, checked)
                self._engine._put_stored(ids, stored, threads)

            self._afterwards(change(checked, stored, metadata), apply)

        uninterrupted(self._lock, work)
        self._engine._fold_in_background(threads)

    def _refused(self) -> PermissionError:
        return PermissionError(f"{self._folder} was opened with read_only=True; open it without to change it")

    def remove(self, keys: object) -> int:
        """Remove rows and their metadata, as :meth:`mmfast.Index.remove` does; once it returns they stay removed."""
        self._truth.check_usable()
        if self.read_only:
            raise self._refused()
        checked = self._truth.check_keys(keys)

        def work() -> None:
            self._afterwards(self._truth.remove(checked), self._follow)

        uninterrupted(self._lock, work)
        self._engine._fold_in_background(torch.get_num_threads())
        return len(checked)

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
        self._know_names()
        found = self._engine.search(queries, k, recall=recall, exact=exact, ef=ef, where=self._where(where))
        return SearchResult(self._keys_of(found.keys), found.distances)

    def range_search(self, queries: object, radius: float, *, where: object = None) -> RangeResult:
        """Find all rows within a distance of each query, as :meth:`mmfast.Index.range_search` does."""
        self._refresh()
        self._know_names()
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
        self._truth.check_usable()
        if self.read_only:
            raise self._refused()
        given = [metadata] if isinstance(metadata, Mapping) else metadata

        def work() -> None:
            self._afterwards(self._truth.update_metadata(keys, given, replace=replace), lambda: None)

        uninterrupted(self._lock, work)

    def build(self) -> None:
        """Build a graph of all rows now, and write the snapshot; a reader builds one for itself."""
        self._refresh()
        self._fold()
        self._save_snapshot()

    def _fold(self) -> None:
        with Bar("building the graph", len(self._engine), self._progress) as bar, self._engine._folder.turn():
            folding.fold(self._engine, torch.get_num_threads(), bar.reach)

    def compact(self) -> None:
        """Build the graph anew, and give the space of what was removed back to the disk."""
        self._refresh()
        if self.read_only:
            raise self._refused()
        self._fold()
        self._truth.trim(self._save_snapshot())
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
        state, version = uninterrupted(self._lock, lambda: (self._engine._state, self._version))
        seen, wrong = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for ids, _, stored in self._truth.rows():
            same = np.zeros(len(ids), dtype=np.bool_)
            for part in state.parts():
                rows = part.locate(ids)
                here = rows >= 0
                same[here] = (part.segment.stored[rows[here]] == stored[here]).all(axis=1)
            seen.append(ids)
            wrong.append(ids[~same])
        held = np.concatenate([np.zeros(0, np.int64), *(part.keys() for part in state.parts())])
        wrong.append(np.setdiff1d(held, np.concatenate(seen)))
        changes = self._truth.changes(version)  # while rows were read
        if changes is not None:
            differing = np.setdiff1d(np.concatenate(wrong), np.concatenate([changes.ids, changes.removed_ids]))
            if len(differing):
                problems.append(f"the index in memory differs from the database in {arrays.examples(differing)}")
        if len(np.unique(held)) != len(held):
            problems.append("the index in memory holds rows twice")
        return problems

    def tune(self, queries: object) -> None:
        """Measure the graph by queries like those given, as :meth:`mmfast.Index.tune` does, and keep the result."""
        self._refresh()
        self._engine.tune(queries)
        self._save_snapshot()

    def recall_curve(self) -> dict[int, list[Point]]:
        """Return what was measured of the graph, as :meth:`mmfast.Index.recall_curve` does."""
        self._refresh()
        return self._engine.recall_curve()

    def stats(self) -> dict[str, Any]:
        """Return in numbers what the index holds, as :meth:`mmfast.Index.stats` does, and its ``version``."""
        self._refresh()
        return {**self._engine.stats(), "version": self._version}

    def save(self, path: storage.FilePath) -> None:
        """Write what can be searched to one file, for :meth:`mmfast.Index.load`; keys must be integers."""
        if self.key_kind == "str":
            raise TypeError("keys must be integers in a file of one index; copy the folder to keep keys that are str")
        self._refresh()
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
        if self.key_kind == "int":
            try:
                key = as_int(key)
            except TypeError:
                raise TypeError(f"a key is an int, got {key!r} ({type(key).__name__})") from None
            if not 0 <= key < arrays.KEY_LIMIT:
                return False
        return key in self._truth

    def __repr__(self) -> str:
        """Describe the index in one line."""
        return f"Index.open({str(self._folder)!r}: {self._engine!r}, {self.key_kind} keys)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the name of the folder."""
        return _reopen, (str(self._folder),)

    def close(self) -> None:
        """Let others write to the folder; what was added is in it already."""
        if os.getpid() != self._process:  # a fork, in which the locks may be held by threads that are not there
            return
        self._engine._folder.stop()
        with self._saving:
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
        if owner is None or self.is_stopped():
            return
        try:
            owner._save_snapshot()
        except Exception:
            _log.exception("%s cannot be written; the one before stays", owner._folder / SNAPSHOT)


def _reopen(folder: str) -> DurableIndex:
    return DurableIndex.open(folder, {}, key_kind=None, read_only=True, indexed_columns=(), progress=False)


def _with_names(names: npt.NDArray[Any], ids: npt.NDArray[np.int64], keys: Any) -> npt.NDArray[Any]:
    """Write keys at their ids, in place or where there is no room into a larger array."""
    if not len(ids):
        return names
    top = int(ids.max()) + 1
    if top > len(names):
        grown = np.full(max(top, 2 * len(names)), None, dtype=object)
        grown[: len(names)] = names
        names = grown
    names[ids] = keys
    return names


def _identity(path: Path) -> tuple[int, ...] | None:
    """Tell one file of a name from the next."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
