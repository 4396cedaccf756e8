"""One writer at a time in a folder: a lock of the operating system on a small file, which goes with its process.

The file says which process writes, and up to which version that process has seen its changes committed. A database
found at an older version has lost commits, whatever SQLite says: its write-ahead log was removed, or an old copy was
put in its place. The note is written after the commit is on the disk, so that it is never ahead of what must be there.

The lock is ``flock``'s, which belongs to the open file and not to the process: children that ``os.fork`` makes close
their copy at once, or a child would keep the folder locked after its parent was killed.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from mmfast.search.storage import naming

_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """The lock on the file ``path``: ``shared`` keeps writers out without being one; else nobody else may hold it.

    A writer creates the file where it is missing. BlockingIOError tells who holds the lock.
    """

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self._path = path
        while True:
            # Kept as a file object, which is closed, and with it the lock, when this object goes unclosed.
            flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
            self._file = open(os.open(path, flags, 0o666), "rb" if shared else "r+b", buffering=0)  # noqa: SIM115
            try:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise BlockingIOError(f"cannot open {path.parent} for writing: {_holder(path)}") from None
            if _is_named(path, self._file.fileno()):
                break
            self._file.close()  # someone removed the file between the two steps
        self._writes = not shared
        _held.add(self)
        if self._writes:
            self.note(noted_version(path))

    def note(self, version: int) -> None:
        """Note that ``version`` is committed."""
        with naming(self._path):
            os.pwrite(self._file.fileno(), _line(os.getpid(), version), 0)

    def release(self) -> None:
        """Let others write."""
        _held.discard(self)
        if not self._file.closed:
            if self._writes:
                os.pwrite(self._file.fileno(), b"%-10d" % 0, 0)
            fcntl.flock(self._file, fcntl.LOCK_UN)  # also for copies of the descriptor that others may have
            self._file.close()

    def abandon(self) -> None:
        """Close this process's copy only, in a child of the process that holds the lock."""
        self._file.close()


def noted_version(path: Path) -> int:
    """Return the version last noted in the file, 0 where there is none."""
    return _read(path)[1]


def _line(process: int, version: int) -> bytes:
    return b"%-10d %-19d\n" % (process, version)  # of one length, so that it is replaced whole


def _read(path: Path) -> tuple[int, int]:
    try:
        process, version = path.read_bytes().split()
        return int(process), int(version)
    except (OSError, ValueError):  # none, or none of ours: it is no more than a note
        return 0, 0


def _holder(path: Path) -> str:
    process = _read(path)[0]
    if process == os.getpid():
        return f"this process ({process}) has it open for writing already; close that one, or open it read_only=True"
    if process:
        return f"process {process} has it open for writing; wait until it closes, or open it read_only=True"
    return "another process holds its lock, as readers do that may not write in the folder; wait until it closes"


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _abandon_all() -> None:
    for lock in list(_held):
        lock.abandon()
    _held.clear()


os.register_at_fork(after_in_child=_abandon_all)
