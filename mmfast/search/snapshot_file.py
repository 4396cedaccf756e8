"""The file of a durable index's state, ``snapshot.index``: derived from the database, and checked before it is used.

Who writes it goes over to it: the arrays that a graph was built in are given up for those of the file, mapped, which
the system keeps in memory once for all processes, as far as they are used. A file that is replaced stays what it was to
those who have it mapped.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
from pathlib import Path
from typing import Any, NamedTuple

from mmfast.search import storage
from mmfast.search.database import DATABASE
from mmfast.search.freed import return_freed_memory
from mmfast.search.interrupts import uninterrupted
from mmfast.search.settings import Settings
from mmfast.search.snapshot import Sections, pack_state, unpack_main, unpack_state
from mmfast.search.state import State
from mmfast.search.truth import Truth

SNAPSHOT = "snapshot.index"
MISSING = "is missing"
ANEW = f"nothing is lost, since {DATABASE} has all rows; build() or mmfast index compact writes it anew"
# What reading something else under the snapshot's name can raise; not all there is, for signal handlers raise as well.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_log = logging.getLogger("mmfast")


class Start(NamedTuple):
    """What an engine can begin with."""

    state: State
    version: int


class SnapshotFile:
    """The snapshot in a folder, which a writer replaces as a whole."""

    def __init__(self, folder: Path, settings: Settings, truth: Truth) -> None:
        self.path, self._settings, self._truth = folder / SNAPSHOT, settings, truth
        self._seen: tuple[int, ...] | None = None  # the file that was last read
        # Under it files are used apart from the main thread: what a signal handler raises there is no error of theirs.
        self._using = threading.Lock()
        self._named = "", 0  # name and version of the snapshot in the folder, if it is of this database

    def is_another(self) -> bool:
        """Tell whether the file is another than the one last read."""
        return self._identity() != self._seen

    def read(self) -> Start | str:
        """Return what the file holds, mapped, or say in words why it is of no use."""
        return uninterrupted(self._using, self._read)

    def _read(self) -> Start | str:
        self._seen = self._identity()
        try:
            meta, sections = self._unpack()
            if (why := self._foreign(meta)) is not None:
                return why
            self._named = str(meta["name"]), max(int(meta["version"]), 0)
            return Start(unpack_state(self._settings, sections), int(meta["version"]))
        except FileNotFoundError:
            return MISSING
        except _UNREADABLE as error:
            return self._unusable(error)

    def write(self, state: State, version: int) -> int:
        """Put a state in the place of what was there, and return the version of that."""
        name, (present, before) = secrets.token_hex(16), self._named
        # The database knows its snapshots by name: one restored from a copy has seen other changes since, under the
        # same versions.
        self._truth.note_snapshots([present, name])
        described = dataclasses.asdict(self._settings)
        meta = {"settings": described, "identity": self._truth.identity, "name": name, "version": version}
        storage.write_atomically(self.path, storage.pack(meta, pack_state(state)))
        self._named = name, version
        uninterrupted(self._using, lambda: self._move(state, name))
        return before

    def _move(self, state: State, name: str) -> None:
        """Have the main part lie in the file just written under a name; where that fails it stays where it is."""
        if state.main is None or state.main.segment.native:  # USearch's own index cannot lie in a part of a file
            return
        try:
            meta, sections = self._unpack()
            main = unpack_main(self._settings, Sections(sections))
            if main is None or meta["name"] != name:
                raise ValueError("it is another than was written")
            state.main.segment.move_to(main.segment)
            return_freed_memory()
        except (*_UNREADABLE, MemoryError) as error:
            _log.warning("%s %s: the graph stays in memory; %s", self.path, self._unusable(error), ANEW)

    def problem(self) -> str | None:
        """Say in words what is wrong with the file, if anything."""
        seen = self._identity()
        try:
            why = self._foreign(self._unpack()[0])
        except FileNotFoundError:
            return None
        except _UNREADABLE as error:
            why = self._unusable(error)
        if why is not None and self._identity() != seen:  # it was replaced meanwhile
            return self.problem()
        return None if why is None else f"{self.path} {why}; {ANEW}"

    def _unpack(self) -> tuple[dict[str, Any], list[memoryview]]:
        return storage.unpack(storage.map_file(str(self.path)), str(self.path))

    def _foreign(self, meta: dict[str, Any]) -> str | None:
        """Say in words why a snapshot is not one of this index, if it is none."""
        if (meta["identity"], meta["settings"]) != (self._truth.identity, dataclasses.asdict(self._settings)):
            return "belongs to another index"
        if meta["name"] not in self._truth.snapshots():
            return "is of another past than the index, which was restored from a copy"
        return None

    def _unusable(self, error: Exception) -> str:
        """Say what is wrong with the file, without what is to be done where a file is all there is."""
        what = str(error).removeprefix(f"{self.path} ").partition(";")[0]
        return f"cannot be used ({type(error).__name__}: {what})"

    def _identity(self) -> tuple[int, ...] | None:
        """Tell one file of a name from the next."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns
