"""Connections to one SQLite file: a writer whose commits last, readers beside it, and errors in the user's words.

SQLite itself is what makes a commit whole and lasting, by a write-ahead log that is synced at every commit
(``synchronous=FULL``). Here is what it leaves open:

- Ctrl-C waits until a transaction is committed or rolled back (:mod:`mmfast.search.interrupts`).
- Readers take a connection each from a small pool, and see the last commit, whatever is being written.
- A fork copies connections that only their maker may use, and even closing one in the child can harm the parent. So a
  child never touches them, and refuses to open a file anew that was open at the fork: SQLite, finding its tables of
  locks copied, would take none. Locks of SQLite's own are free in the child (csrc/fork_bindings.cpp).
- Files that were removed or replaced while open are noticed before the next write would go to the removed ones.

Nothing else here may open and close the database file while a connection is open: that drops SQLite's locks.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import errno
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from mmfast import _C
from mmfast.search.interrupts import uninterrupted
from mmfast.search.writer_lock import WriterLock, noted_version

DATABASE, LOCK = "truth.sqlite", "writer.lock"
_IDLE_READERS = 8  # kept open for the next reader; more may be at work
_TIMEOUT = 30.0  # seconds that a reader waits for one that recovers the log after a crash, or closes as the last
_WRITER_PRAGMAS = (
    "synchronous = FULL",
    "cell_size_check = ON",
    "cache_size = -16000",  # KiB; measured: no faster with four times as much
    "journal_size_limit = 67108864",  # after a large batch the log gives its space back
)


class _Connection(sqlite3.Connection):
    """A connection that knows its file, and can be referred to weakly."""

    file: tuple[int, int]

    def close(self) -> None:
        super().close()
        _open.discard(self)


_open: weakref.WeakSet[_Connection] = weakref.WeakSet()
_opening: list[tuple[int, int]] = []  # files
_inherited: set[tuple[int, int]] = set()  # files that were open in the parent when this process was forked


class _Held:
    """What a database keeps open, apart from it, so that it can be closed once the database is gone."""

    def __init__(self, lock: WriterLock | None) -> None:
        self.process = os.getpid()
        self.lock = lock
        self.writer: _Connection | None = None
        self.idle: list[_Connection] = []
        self.closed = False

    def close(self) -> None:
        """Close all, in the process that opened it; readers at work are closed when they are done."""
        if os.getpid() != self.process or self.closed:
            return
        self.closed = True
        while self.idle:
            self.idle.pop().close()
        if self.writer is not None:
            self.writer.close()  # as the last one it folds the log into the database
        if self.lock is not None:
            self.lock.release()


class Database:
    """The database in ``folder``, for reading, or also for writing under ``lock``, which it releases in the end."""

    def __init__(self, folder: Path, lock: WriterLock | None) -> None:
        self.path = folder / DATABASE
        self.read_only = lock is None
        self._held = _Held(lock)
        self._writing = Lock()
        weakref.finalize(self, self._held.close)  # where the user forgets to
        if lock is not None:
            try:
                with translated(self.path):
                    self._held.writer = connect(self.path, "mode=rw")
                    for pragma in _WRITER_PRAGMAS:
                        self._held.writer.execute(f"PRAGMA {pragma}")
                    self._held.writer.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()  # opens the log
            except BaseException:
                self.close()
                raise
        self._files = self._identities()

    def noted_version(self) -> int:
        """Return the version up to which commits must be found."""
        return noted_version(self.path.with_name(LOCK))

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give a connection in a transaction of its own: what it reads is of one version."""
        self.check_usable()
        try:
            connection = self._held.idle.pop()
        except IndexError:
            connection = self._connect_reader()
        try:
            with translated(self.path):
                connection.execute("BEGIN")
                yield connection
        finally:
            # A connection dropped by an interrupt right here, or left in its transaction, would keep the log from
            # beginning anew until the garbage collector finds it, since connections are in cycles of references.
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            finally:
                if self._held.closed or len(self._held.idle) >= _IDLE_READERS or connection.in_transaction:
                    connection.close()
                else:
                    self._held.idle.append(connection)

    def write(self, work: Callable[[sqlite3.Connection], int]) -> int:
        """Have ``work`` change the database, all or nothing, and return the version that it made, once durable."""

        def transaction(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            try:
                version = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the error that brought us here is the one to tell
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise
            assert self._held.lock is not None
            self._held.lock.note(version)
            return version

        return self.alone(transaction)

    def alone(self, work: Callable[[sqlite3.Connection], int]) -> int:
        """Return what ``work`` returns for the writer's connection, outside any transaction."""
        self.check_writable()

        def locked() -> int:
            self.check_usable()
            if self._identities() != self._files:
                raise OSError(
                    errno.ESTALE,
                    f"files of {self.path.parent} were removed or replaced while it was open; close it, put back what "
                    "was removed, and open it again",
                )
            assert self._held.writer is not None
            with translated(self.path):
                return work(self._held.writer)

        return uninterrupted(self._writing, locked)

    def close(self) -> None:
        """Close what is open; readers at work close when they are done."""
        if os.getpid() == self._held.process:  # in a fork the lock may be held by a thread that is not there
            uninterrupted(self._writing, self._held.close)

    def check_usable(self) -> None:
        """Raise where it is closed, or another process's."""
        if os.getpid() != self._held.process:
            raise RuntimeError(
                f"{self.path.parent} was opened by process {self._held.process}, of which this one ({os.getpid()}) is "
                "a fork; start processes with multiprocessing's 'spawn' or 'forkserver', or fork before it is opened"
            )
        if self._held.closed:
            raise ValueError(f"{self.path.parent} is closed; open it again")

    def check_writable(self) -> None:
        """Raise where nothing can be changed."""
        self.check_usable()
        if self.read_only:
            raise PermissionError(f"{self.path.parent} was opened with read_only=True; open it without to change it")

    def check_size(self, connection: sqlite3.Connection) -> None:
        """Raise where the file is cut: SQLite notices whole pages only, and reads what a part lacks as zeros.

        ``connection`` is in a transaction, which keeps the file from being shortened meanwhile. What is in the log may
        be missing in the file by right.
        """
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        logged = self._log().exists() and self._log().stat().st_size > 0
        size = self.path.stat().st_size  # after that of the log, which is emptied once the file has all
        if not logged and size < pages * page_bytes:
            raise damaged(self.path, f"it has {size:,} bytes, and its pages should have {pages * page_bytes:,}")

    def _connect_reader(self) -> _Connection:
        with translated(self.path):
            if self.read_only and self._held.lock is not None:
                return connect(self.path, "mode=ro&immutable=1")
            connection = connect(self.path, "mode=ro")
            try:
                connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                connection.close()
                if os.access(self.path.parent, os.W_OK) or self._log().exists():
                    raise
            else:
                return connection
            # SQLite reads the database only beside an index of its log, which cannot be made in this folder. There is
            # no log, so there is no writer, and the lock sees to it that none comes.
            lock = WriterLock(self.path.with_name(LOCK), shared=True)
            if self._log().exists():  # one came before the lock
                lock.release()
                raise sqlite3.OperationalError("unable to open database file")
            self._held.lock = lock
            return connect(self.path, "mode=ro&immutable=1")

    def _log(self) -> Path:
        return self.path.with_name(f"{DATABASE}-wal")

    def _identities(self) -> list[tuple[int, int] | None]:
        """Tell which files bear the names now, for a writer."""
        if self.read_only:
            return []
        return [_identity(self.path.with_name(name)) for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", LOCK)]


def connect(path: Path, options: str) -> _Connection:
    """Open the database file ``path``, an absolute one, with SQLite's URI ``options``."""
    file = _identity(path) or (0, 0)
    if file in _inherited:
        raise RuntimeError(
            f"{path.parent} was open in the process of which this one ({os.getpid()}) is a fork, so that it cannot be "
            "opened here: start processes with multiprocessing's 'spawn' or 'forkserver', or fork before it is opened"
        )
    _opening.append(file)
    try:
        connection = sqlite3.connect(
            f"{path.as_uri()}?{options}",
            timeout=_TIMEOUT,
            isolation_level=None,  # transactions begin where they are told to
            check_same_thread=False,  # one thread at a time uses it, not always the same
            factory=_Connection,
            uri=True,
        )
        connection.file = file
        _open.add(connection)
    finally:
        _opening.remove(file)
    return connection


_CAUSES: tuple[tuple[str, Callable[[Path, str], Exception]], ...] = (
    (
        "database or disk is full",
        lambda path, _: OSError(errno.ENOSPC, f"no space left for {path}: nothing of this change was kept; free some"),
    ),
    (
        "disk I/O error",
        lambda path, _: OSError(
            errno.EIO,
            f"cannot read or write {path}: the disk failed, is full, or a limit on file sizes was met; a change "
            "under way was not kept",
        ),
    ),
    (
        "database is locked",
        lambda path, _: BlockingIOError(
            f"{path} is locked by another program for more than {_TIMEOUT:.0f} seconds; close that one"
        ),
    ),
    (
        "unable to open database",
        lambda path, _: PermissionError(
            errno.EACCES,
            f"cannot open {path} or the files beside it: check that they are there and may be read, and that the "
            "folder may be written or was closed by its last writer",
        ),
    ),
    (
        "readonly database",
        lambda path, _: PermissionError(errno.EACCES, f"may not write to {path} or its folder; open read_only=True"),
    ),
)
_DAMAGE = (
    "malformed",
    "no such",
    "Could not decode",
    "unsupported file format",
    "JSON cannot hold BLOB values",
)  # signs of it in operational errors, which are mostly others


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise SQLite's errors about the file ``path`` as what they mean to a user."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
        raise
    except UnicodeDecodeError as error:  # even the message of an error may quote what is damaged
        raise damaged(path, str(error)) from error
    except sqlite3.DatabaseError as error:
        text = str(error)
        for cause, made in _CAUSES:
            if cause in text:
                raise made(path, text) from error
        if isinstance(error, sqlite3.OperationalError) and not any(sign in text for sign in _DAMAGE):
            raise
        raise damaged(path, text) from error


def damaged(path: Path, what: str) -> ValueError:
    """Return the error for a file whose content cannot be right."""
    return ValueError(f"{path} is damaged: {what}; restore the folder from a copy, or build it anew")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _leave_to_parent() -> None:
    for connection in list(_open):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # is never closed here, not even at exit
        _inherited.add(connection.file)
    _open.clear()
    _inherited.update(_opening)
    _opening.clear()


def _hold_sqlite_at_forks() -> None:
    """Have SQLite's locks free in children, if its functions can be found: they may be part of the interpreter."""
    names = ("sqlite3_mutex_alloc", "sqlite3_mutex_try", "sqlite3_mutex_leave")
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(_sqlite3.__file__)
        addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]
        _C.hold_sqlite_at_forks(*addresses)


os.register_at_fork(after_in_child=_leave_to_parent)
_hold_sqlite_at_forks()
