"""The tables of a durable index, the folder around them, and the settings that they were made with.

    about      name -> JSON: the settings, the kind of keys, an identity drawn at random, the names of its snapshots
    state      one row: version (of the last change), count (of items), next_id, trimmed (see ``removed``), names (the
               sum of the checksums of all ids and keys), documents (their number)
    items      id, key where keys are strings (an int key is its own id), the version that wrote the vector, mark (a
               checksum of id and key, and whether there is a document), checksum, vector (little-endian, in the storage
               dtype)
    documents  id, checksum, metadata (a JSON object), for items that have any: apart from the vectors, since a
               condition reads all of them
    removed    version, id, key (which only older versions read): what left since ``trimmed``, so that a snapshot can be
               caught up
    indexed    path, expression (which only older versions read): which paths into the metadata have an index

A database is made under another name and gets its own once it is whole, so a file of that name is a whole one, and an
empty or cut one is a damaged one.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from mmfast.search.conditions import json_path
from mmfast.search.database import DATABASE, LOCK, Database, connect, damaged, translated
from mmfast.search.records import Codec
from mmfast.search.storage import FilePath
from mmfast.search.writer_lock import WriterLock

FORMAT = 2
_APPLICATION = 0x6D6D6678  # "mmfx", in the header of the file
_CREATING = "truth.creating"
_PAGE_BYTES = 16384  # measured: rows of 768 bytes go in a quarter faster than into pages of 4096

_TABLES = (
    "CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE state (version INTEGER NOT NULL, count INTEGER NOT NULL, next_id INTEGER NOT NULL, "
    "trimmed INTEGER NOT NULL, names INTEGER NOT NULL, documents INTEGER NOT NULL)",
    "INSERT INTO state VALUES (0, 0, 0, 0, 0, 0)",
    "CREATE INDEX items_by_version ON items (version)",
    "CREATE TABLE documents (id INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, metadata TEXT NOT NULL)",
    "CREATE TABLE removed (version INTEGER, id INTEGER, key, PRIMARY KEY (version, id)) WITHOUT ROWID",
    "CREATE TABLE indexed (path TEXT PRIMARY KEY, expression TEXT NOT NULL) WITHOUT ROWID",
)
_ITEMS = {
    "int": "CREATE TABLE items (id INTEGER PRIMARY KEY, version INTEGER NOT NULL, mark INTEGER NOT NULL, "
    "checksum INTEGER NOT NULL, vector BLOB NOT NULL)",
    "str": "CREATE TABLE items (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, version INTEGER NOT NULL, "
    "mark INTEGER NOT NULL, checksum INTEGER NOT NULL, vector BLOB NOT NULL)",
}


class State(NamedTuple):
    """The one row of the table of the state."""

    version: int
    items: int  # their number
    next_id: int
    trimmed: int
    names: int  # the sum of their checksums
    documents: int  # their number


def open_folder(
    folder: FilePath, settings: Mapping[str, object] | None, key_kind: str | None, read_only: bool
) -> tuple[Database, Codec, dict[str, Any]]:
    """Open the database in ``folder``, made first where there is none; return also what is said about it."""
    path = Path(os.fsdecode(os.path.realpath(folder)))
    if key_kind not in (None, *_ITEMS):
        raise ValueError(f"key_kind must be 'int' or 'str', got {key_kind!r}")
    found = _found(path)
    if not found and read_only:
        raise FileNotFoundError(f"{path} holds no mmfast index; make one by opening it without read_only=True")
    if not found and (settings is None or key_kind is None):
        raise FileNotFoundError(f"{path} holds no mmfast index; to make one, give ndim, the features of a vector")
    given = {} if settings is None else dict(settings)
    if key_kind is not None:
        given["key_kind"] = key_kind
    if not found:
        Codec(path, given)  # refuses settings that nothing can be made with, before anything is made
        json.dumps(given)
    lock = None
    if not read_only:
        if not path.exists():
            path.mkdir()
            _sync(path.parent)
        lock = WriterLock(path / LOCK)
        try:
            if not found and not _found(path):  # another process may have been faster
                _create(path, given)
        except BaseException:
            lock.release()
            raise
    database = Database(path, lock)
    try:
        about = _read_about(database)
        _compare(path, about, given)
        return database, Codec(database.path, about["settings"]), about
    except BaseException:
        database.close()
        raise


def read_state(connection: sqlite3.Connection, path: Path) -> State:
    """Return what the table of the state says."""
    state = connection.execute("SELECT version, count, next_id, trimmed, names, documents FROM state").fetchall()
    if len(state) != 1 or not all(isinstance(value, int) and value >= 0 for value in state[0]):
        raise damaged(path, f"its table of the state holds {state}")
    return State(*state[0])


def indexed_paths(columns: object) -> list[str]:
    """Return the paths of the columns that are to have an index."""
    if isinstance(columns, (str, bytes)) or not isinstance(columns, Sequence):
        raise TypeError(f'indexed_columns must be a list of names, as ["year"], got {columns!r}')
    try:
        return [json_path(column) for column in columns]
    except (TypeError, ValueError) as error:
        raise type(error)(f"indexed_columns: {error}") from None


def indexed_expression(path: str) -> str:
    """Return the words of an index, by which a query finds it: it takes no parameters."""
    quoted = path.replace("'", "''")
    return f"json_extract(metadata, '{quoted}')"


def index_columns(connection: sqlite3.Connection, paths: Sequence[str]) -> None:
    """Have SQLite keep an index of each path into the metadata that has none yet."""
    for path in paths:
        expression = indexed_expression(path)
        name = blake2b(path.encode(), digest_size=8).hexdigest()
        connection.execute(f"CREATE INDEX IF NOT EXISTS documents_by_{name} ON documents ({expression})")
        connection.execute("INSERT OR IGNORE INTO indexed VALUES (?, ?)", (path, expression))


def _found(path: Path) -> bool:
    """Tell whether there is a database in the folder ``path``, and refuse a folder of other things."""
    if not path.exists():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"cannot make {path}: the folder {path.parent} does not exist")
        return False
    if not path.is_dir():
        raise NotADirectoryError(
            f"{path} is a file; a durable index is a folder: read what save wrote with mmfast.Index.load"
        )
    names = set(os.listdir(path))
    if DATABASE in names:
        return True
    others = sorted(name for name in names if name != LOCK and not name.startswith(_CREATING))
    if others:
        raise FileExistsError(
            f"{path} is no mmfast index: it has no {DATABASE}, but {', '.join(others[:3])}; name another folder, or "
            f"restore {DATABASE} from a copy"
        )
    return False


def _create(path: Path, settings: dict[str, Any]) -> None:
    """Make the database, under the lock: whole or not at all."""
    about = {"settings": settings, "identity": secrets.token_hex(16)}
    made = path / _CREATING
    for leftover in path.glob(f"{_CREATING}*"):  # of one killed here
        leftover.unlink()
    made.touch()
    with translated(made):
        connection = connect(made, "mode=rw")
        try:
            for pragma in (
                f"page_size = {_PAGE_BYTES}",
                f"application_id = {_APPLICATION}",
                f"user_version = {FORMAT}",
            ):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN")
            for statement in (_ITEMS[settings["key_kind"]], *_TABLES):
                connection.execute(statement)
            connection.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])
            connection.execute("COMMIT")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise OSError(f"cannot make {path}: its file system has no shared memory; use a local disk")
        finally:
            connection.close()
    _sync(made)
    made.rename(path / DATABASE)
    _sync(path)


def _read_about(database: Database) -> dict[str, Any]:
    noted = database.noted_version()  # before the database is read, which may only be newer
    with database.read() as connection:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != _APPLICATION:
            raise ValueError(f"{database.path} is not an mmfast index, but the SQLite database of another program")
        if version != FORMAT:
            raise ValueError(f"{database.path} has format version {version}, but this mmfast reads version {FORMAT}")
        about = dict(connection.execute("SELECT name, value FROM about"))
        database.check_size(connection)
        committed = read_state(connection, database.path).version
    if committed < noted:
        raise ValueError(
            f"{database.path} has lost changes: it is at version {committed}, but version {noted} was committed. Its "
            f"log ({DATABASE}-wal) was removed, or an older copy was put in its place. Restore both files; or, if the "
            f"older version is what you want, delete {LOCK} while nobody has the folder open"
        )
    try:
        return {"settings": dict(json.loads(about["settings"])), "identity": str(json.loads(about["identity"]))}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(database.path, f"its settings cannot be read ({error})") from error


def _compare(path: Path, about: dict[str, Any], given: Mapping[str, object]) -> None:
    stored = about["settings"]
    for name, value in given.items():
        if name not in stored:
            raise ValueError(f"{path} was made without the setting {name}, got {name}={value!r}; leave it out")
        if json.loads(json.dumps(value)) != stored[name]:
            raise ValueError(
                f"{path} was made with {name}={stored[name]!r}, got {name}={value!r}; leave it out to take what the "
                "folder has, or name another folder"
            )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
