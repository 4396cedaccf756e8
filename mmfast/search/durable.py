"""The durable index: a folder in which SQLite is the truth (:mod:`mmfast.search.truth`), and what searches it.

Every change is committed first, and then made in the index in memory (:mod:`mmfast.search.following`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, misuse, storage
from mmfast.search.conditions import Condition
from mmfast.search.following import Following
from mmfast.search.interrupts import uninterrupted
from mmfast.search.results import RangeResult, SearchResult, too_far, too_many
from mmfast.search.settings import Settings, check_bool, check_choice, check_key
from mmfast.search.truth import Truth
from mmfast.search.tuning import Point
from mmfast.search.verify import Problem

_DEFAULTS: dict[str, Any] = {"metric": "cos", "dtype": "bf16", "connectivity": 16, "expansion_add": 128}


class DurableIndex(Following):
    """An index in a folder, as :meth:`mmfast.Index.open` returns it: what a call acknowledged survives.

    It has the methods of :class:`mmfast.Index`, under the same names and with the same arguments. Beyond them:

    - keys may be strings (``key_kind="str"``); results then hold them in an array of objects, with None where there are
      fewer than k neighbours, and at the same distance the row that was added first is nearer
    - :meth:`add` and :meth:`upsert` take metadata, a dict of what JSON holds for each row; ``where=`` takes conditions
      on it, as ``mmfast.col("year") > 2019``
    - :meth:`metadata`, :meth:`update_metadata`, :meth:`verify`, :meth:`compact`, :meth:`close`, and iteration over keys

    Of the rows in the graph the process keeps little in memory of its own, 8 bytes a row once keys are looked up and
    the keys that are strings: their file is mapped, once a graph was built also by who built it. A row takes 1.1 bytes
    a feature and 4 a link of the system's cache while it is searched, and what its vector takes where that is looked
    at. Rows added since are in memory, as in :class:`mmfast.Index`.

    One process at a time may have the folder open for writing, any number read-only; those see new commits at their
    next call. Pickling gives a read-only view of the folder. In the child of a fork neither the index nor its folder
    can be used: start processes by "spawn" or "forkserver", or fork before the folder is opened.

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
        build_when_due: bool = True,
    ) -> DurableIndex:
        """Open the folder, made first where there is none and ``given`` has ndim.

        Where graphs are not built when they are due, :meth:`build` alone builds them: once, after many changes.
        """
        path = Path(os.path.realpath(storage.as_name("folder", folder)))
        check_bool("read_only", read_only)
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
            return cls(truth, path, read_only=read_only, progress=progress, build_when_due=build_when_due)
        except BaseException:
            truth.close()
            raise

    def _where(self, where: object) -> object:
        """Return what the engine's ``where`` takes."""
        if isinstance(where, Condition):
            allowed = self._truth.filter(where)
            if allowed.is_empty() and len(self) and (why := self._truth.unknown(where)):
                misuse.warn(f"where: {why}")
            return allowed
        misuse.refuse_text(where)
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

    def add(self, keys: object, vectors: object, metadata: object = None) -> None:
        """Add rows as :meth:`mmfast.Index.add` does; once it returns they survive whatever becomes of the process.

        ``metadata`` is a list with a dict or None for each row, or for one row a dict. Errors also as of
        :class:`OSError` where the disk is full, and :class:`PermissionError` where the folder was opened read-only.
        """
        self._put(keys, vectors, metadata, replace=False)

    def upsert(self, keys: object, vectors: object, metadata: object = None) -> None:
        """Add rows, or replace those whose keys are held; theirs stays where no metadata is given, or None."""
        self._put(keys, vectors, metadata, replace=True)

    def _put(self, keys: object, vectors: object, metadata: object, *, replace: bool) -> None:
        self._truth.check_writable()
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
                ids = checked if isinstance(checked, np.ndarray) else self._truth.ids(checked)
                self._name(ids, checked)
                self._engine._put_stored(ids, stored, threads)

            self._afterwards(change(checked, stored, metadata), apply)

        uninterrupted(self._lock, work)
        self._engine._fold_in_background(threads)

    def remove(self, keys: object) -> int:
        """Remove rows and their metadata, as :meth:`mmfast.Index.remove` does; once it returns they stay removed."""
        self._truth.check_writable()
        checked = self._truth.check_keys(keys)

        def work() -> None:
            self._afterwards(self._truth.remove(checked), self._follow)

        self._agreed(checked, lambda: uninterrupted(self._lock, work))
        self._engine._fold_in_background(torch.get_num_threads())
        return len(checked)

    def search(
        self,
        queries: object,
        k: int,
        *,
        recall: float | None = None,
        exact: bool = False,
        ef: int | None = None,
        engine: Literal["exact", "graph"] | None = None,
        where: object = None,
    ) -> SearchResult:
        """Find the ``k`` nearest rows of each query, as :meth:`mmfast.Index.search` does.

        ``where`` may also be a condition on metadata, or list keys that are strings; keys that are not held are not
        found. A warning names the columns of a condition that no row fulfils which no row has, or none with values of
        the kind that they are compared with. Finding the rows that fulfil a condition takes far longer than a search
        among them (about 0.5 µs for each row of the index, or of those that ``indexed_columns`` leaves); for the
        conditions asked last it is done once, until something changes.
        """
        self._refresh()
        self._know_names()
        allowed = self._where(where)
        found = self._engine.search(queries, k, recall=recall, exact=exact, ef=ef, engine=engine, where=allowed)
        try:
            return SearchResult(self._keys_of(found.keys), found.distances)
        except MemoryError as error:
            raise too_many(found.keys.shape[-1], found.keys.size // found.keys.shape[-1]) from error

    def range_search(self, queries: object, radius: float, *, where: object = None) -> RangeResult:
        """Find all rows within a distance of each query, as :meth:`mmfast.Index.range_search` does."""
        self._refresh()
        self._know_names()
        found = self._engine.range_search(queries, radius, where=self._where(where))
        try:
            return RangeResult(found.offsets, self._keys_of(found.keys), found.distances)
        except MemoryError as error:
            raise too_far(radius, len(found.offsets) - 1) from error

    def get(self, keys: object) -> npt.NDArray[np.float32]:
        """Return the vectors of keys, as :meth:`mmfast.Index.get` does."""
        keys = [keys] if isinstance(keys, str) else keys
        return arrays.widen(self._agreed(keys, lambda: self._truth.get(keys)), self.dtype)

    def metadata(self, keys: object) -> list[dict[str, Any] | None]:
        """Return the metadata of keys, None where there is none; KeyError names keys that are not held."""
        keys = [keys] if isinstance(keys, str) else keys
        return self._agreed(keys, lambda: self._truth.metadata(keys))

    def update_metadata(self, keys: object, metadata: object, *, replace: bool = False) -> None:
        """Merge dicts, one for each key, into their metadata, as ``dict.update`` does, or put them in its place."""
        self._truth.check_writable()
        given = [metadata] if isinstance(metadata, Mapping) else metadata

        def work() -> None:
            self._afterwards(self._truth.update_metadata(keys, given, replace=replace), lambda: None)

        self._agreed(keys, lambda: uninterrupted(self._lock, work))

    def build(self) -> None:
        """Build a graph of all rows now, and write the snapshot; a reader builds one for itself."""
        self._refresh()
        self._fold()
        self._save_snapshot()

    def compact(self) -> None:
        """Build the graph anew, and give the space of what was removed back to the disk."""
        self._truth.check_writable()
        self._refresh()
        self._fold()
        self._truth.trim(self._save_snapshot())
        self._truth.compact()

    def verify(self) -> list[Problem]:
        """Read everything and return what is wrong, as str: the database, the snapshot, and what they disagree on."""
        self._refresh()
        problems = self._truth.verify()
        if problems:
            return problems
        if (problem := self._file.problem()) is not None:
            problems.append(Problem(problem))
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
        if changes is None:
            problems.append(
                Problem("the index in memory was not compared: the database forgot meanwhile what changed; try again")
            )
        else:
            differing = np.setdiff1d(np.concatenate(wrong), np.concatenate([changes.ids, changes.removed_ids]))
            if len(differing):
                which = arrays.examples(differing)
                problems.append(Problem(f"the index in memory differs from the database in {which}"))
        if len(np.unique(held)) != len(held):
            problems.append(Problem("the index in memory holds rows twice"))
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
            key = check_key(key)
            if key is None:
                return False
        held = key in self._truth
        if not held and self.key_kind == "int" and key in self._engine:
            self._refuse_hidden(np.array([key], dtype=np.int64))
        return held

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
        self._engine._folding.stop()
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


def _reopen(folder: str) -> DurableIndex:
    return DurableIndex.open(folder, {}, key_kind=None, read_only=True, indexed_columns=(), progress=False)
