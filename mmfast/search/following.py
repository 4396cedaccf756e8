"""An index in memory that follows a database: what was committed is made in it, or caught up from the log of changes.

A file of that index, ``snapshot.index``, is written to the database's folder whenever a graph was built: it is mapped
on opening and brought up to date, and where it is missing, damaged or too old, all rows are read. A writer makes each
of its commits at once, a reader looks for those of others at each call.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import folding, storage
from mmfast.search.arrays import examples
from mmfast.search.database import DATABASE, damaged
from mmfast.search.interrupts import uninterrupted
from mmfast.search.progress import Bar
from mmfast.search.settings import Made, Settings
from mmfast.search.snapshot_file import ANEW, MISSING, SNAPSHOT, SnapshotFile, Start
from mmfast.search.state import Part, State
from mmfast.search.tail import appended, with_rows
from mmfast.search.truth import Truth

if TYPE_CHECKING:
    from mmfast.search.index import Index

_TOO_OLD = "is too old to be brought up to date"
_ATTEMPTS = 10
_PATIENCE = 0.05  # seconds between two looks at whether to go on waiting
_log = logging.getLogger("mmfast")


_Answer = TypeVar("_Answer")


class Following(Made):
    """The engine that searches, at the version of the truth."""

    def __init__(self, truth: Truth, folder: Path, *, read_only: bool, progress: bool, build_when_due: bool) -> None:
        from mmfast.search.index import Index

        self._settings = Settings(**{field.name: truth.settings[field.name] for field in dataclasses.fields(Settings)})
        self._truth, self._folder, self.read_only, self._progress = truth, folder, read_only, progress
        self._process = os.getpid()
        self._engine: Index = Index(**dataclasses.asdict(self._settings))
        self._engine._folding = _Folding(self)
        self._lock = threading.Lock()  # from before a commit until the engine has it
        self._saving = threading.RLock()  # while a snapshot is written
        self._version = 0  # that the engine is at
        self._behind = False  # a commit did not get as far as the engine
        self._file = SnapshotFile(folder, self._settings, truth)
        self._names: npt.NDArray[Any] | None = None  # (ids,) where keys are strings; never takes a name back
        self._names_known = self.key_kind == "int"  # those of all ids that a search can find
        if not read_only:
            storage.remove_leftovers(folder)
        if not build_when_due:
            self._engine._folding.stop()
        truth.check_count()
        why = self._load()
        # Readers wait for the writer's graph, and search exactly until then.
        if why is not None and build_when_due and not read_only and folding.is_due(self._engine._state):
            self._build_after_loading(why)

    @property
    def key_kind(self) -> str:
        """Return "int" or "str"."""
        return str(self._truth.settings["key_kind"])

    def _load(self) -> str | None:
        """Bring the engine to the truth's version; where all rows were read for that, say in words why."""
        for _ in range(_ATTEMPTS):  # a writer that compacts forgets what a reader is reading
            while (why := self._take_snapshot()) is not None and self._file.is_another():
                pass  # it was replaced meanwhile
            if why is None:
                return None
            if why != MISSING:
                _log.warning("%s %s: reading all rows; %s", self._file.path, why, ANEW)
            version, bar = self._truth.version, Bar("reading rows", len(self._truth), self._progress)
            rows: Part | None = None
            with bar:
                for ids, _, stored in self._truth.rows():
                    rows = appended(rows, self._settings, ids, stored, torch.get_num_threads())
                    bar.advance(len(ids))
            wrong = self._catch_up(Start(State(None, rows), version))  # with what was committed meanwhile
            if wrong is None:
                return why
            if wrong != _TOO_OLD:
                raise damaged(self._folder / DATABASE, f"reading all rows {wrong}")
        raise RuntimeError(f"{self._folder} changes faster than it can be read; open it again")

    def _take_snapshot(self) -> str | None:
        """Take over the snapshot's state and bring it up to date, or say in words why not."""
        read = self._file.read()
        return read if isinstance(read, str) else self._catch_up(read)

    def _build_after_loading(self, why: str) -> None:
        """Build while the caller watches the progress, or else in the background, where all rows are searched exactly.

        The folder opens also where the disk is full, or something else is in the snapshot's place.
        """
        where = "" if self._progress else " in the background"
        _log.warning("%s %s: building the graph of %s rows%s", self._file.path, why, f"{len(self._engine):,}", where)
        if not self._progress:
            self._engine._fold_in_background(torch.get_num_threads())
            return
        self._fold()
        try:
            self._save_snapshot()
        except OSError as error:
            _log.warning("%s cannot be written (%s): the graph is built anew at the next opening", SNAPSHOT, error)

    def _catch_up(self, start: Start | None = None) -> str | None:
        """Make in the engine what was committed beyond its version, or say in words why that cannot be.

        With ``start`` that takes the place of what the engine has, once it is up to date. The number of rows tells of
        damage to what no checksum covers: which version wrote a row, and what was removed.
        """
        if start is not None and start.version > self._version and self._names is not None:
            self._read_names()
        changes = self._truth.changes(self._version if start is None else start.version)
        if changes is None:
            return _TOO_OLD
        self._name(changes.ids, changes.keys)
        engine = self._engine
        with engine._lock:
            before = engine._state if start is None else start.state
            state = with_rows(before, self._settings, changes.ids, changes.stored, torch.get_num_threads())
            state = state.without(changes.removed_ids)
            if state.size() != changes.total:
                return f"leads to {state.size():,} rows where {DATABASE} counts {changes.total:,}"
            engine._state = state
        self._version = changes.version
        return None

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
        if self._catch_up() is not None:
            self._load()
        elif self.read_only and self._has_new_snapshot():
            self._take_snapshot()
        self._behind = False

    def _has_new_snapshot(self) -> bool:
        return folding.is_due(self._engine._state) and self._file.is_another()

    def _save_snapshot(self) -> int:
        """Write the engine's present state, unless this is a reader, and return its version."""
        if self.read_only:
            return self._version
        with self._saving:
            self._truth.check_usable()
            state, version = uninterrupted(self._lock, lambda: (self._engine._state, self._version))
            before = self._file.write(state, version)
            # Readers may still be at the one before.
            self._truth.trim(min(before, version))
        return version

    # Keys and ids

    def _agreed(self, keys: object, read: Callable[[], _Answer]) -> _Answer:
        """Return what ``read`` returns or raises of ``keys``, once it is sure which of them are held.

        A key that is an integer is its own id: where damage hides its row, the index in memory has it still.
        """
        try:
            return read()
        except KeyError:
            checked = self._truth.check_keys(keys, distinct=False)
            if isinstance(checked, np.ndarray):
                self._refuse_hidden(checked)
            raise

    def _refuse_hidden(self, ids: npt.NDArray[np.int64]) -> None:
        """Raise where the database holds others of ``ids`` than the index in memory."""
        if (self._engine._state.held(ids) == self._truth.held(ids)).all():
            return

        def differing() -> npt.NDArray[np.int64]:
            while True:
                self._follow()
                found: npt.NDArray[np.int64] = ids[self._engine._state.held(ids) != self._truth.held(ids)]
                if self._truth.version == self._version:
                    return found

        if len(found := uninterrupted(self._lock, differing)):
            raise damaged(self._folder / DATABASE, f"it does not find {examples(found)}, which it holds")

    def _name(self, ids: npt.NDArray[np.int64], keys: Any) -> None:
        """Remember the keys of new ids, where they are strings: before the engine has them, and for good."""
        if self._names is not None:
            self._names = _with_names(self._names, ids, keys)

    def _read_names(self) -> None:
        """Read the keys of all ids that are held."""
        names = np.full(0, None, dtype=object) if self._names is None else self._names
        for ids, keys in self._truth.all_names():
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

    def _fold(self) -> None:
        with Bar("building the graph", len(self._engine), self._progress) as bar:
            folding.fold(self._engine, torch.get_num_threads(), bar.reach)


class _Folding(folding.Folding):
    """The same of a durable index, whose snapshot is then written; readers take the writer's."""

    def __init__(self, owner: Following) -> None:
        super().__init__()
        self._owner = weakref.ref(owner)

    def start(self, index: Index, threads: int) -> None:
        owner = self._owner()
        if owner is not None and not owner.read_only:
            super().start(index, threads)

    def folded(self) -> None:
        owner = self._owner()
        if owner is None:
            return
        # Who holds it may be in a signal handler that closes the index, and waits until this has ended.
        while not owner._saving.acquire(timeout=_PATIENCE):
            if self.is_stopped():
                return
        try:
            if not self.is_stopped():
                owner._save_snapshot()
        except Exception:
            _log.exception("%s cannot be written; the one before stays", owner._file.path)
        finally:
            owner._saving.release()


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
