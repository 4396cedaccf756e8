"""Read all of a durable index and say what is wrong with it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from mmfast.search.damage import Whole
from mmfast.search.database import Database
from mmfast.search.records import Codec, text_checksum

_SHOWN = 100  # problems of each check


class Problem(str):
    """What is wrong, in words, and in what: "vectors" and "metadata" can be set anew, for the rest it says itself."""

    def __new__(cls, words: str, place: str = "") -> Problem:
        """Make a str that knows its place."""
        made = super().__new__(cls, words)
        made.place = place
        return made

    place: str


def problems(database: Database, codec: Codec) -> list[Problem]:
    """Return what is wrong; nothing if all is well."""
    found: list[Problem] = []
    noted = database.noted_version()
    for check in (_structure, _items, _documents, _totals):
        try:
            with database.read() as connection:
                for number, problem in enumerate(check(connection, codec)):
                    if number == _SHOWN:
                        found.append(Problem("and more of this kind"))
                        break
                    found.append(problem)
        except ValueError as error:  # so damaged that it cannot be read on
            found.append(Problem(str(error)))
    if not found:  # else what is missing was told already
        try:
            with database.read() as connection:
                Whole(database.path, codec).check_names(connection)
        except ValueError as error:
            found.append(Problem(str(error)))
    with database.read() as connection:
        for (version,) in connection.execute("SELECT version FROM state WHERE version < ?", (noted,)):
            found.append(Problem(f"version {noted} was committed, but the database is at version {version}"))
    return found


def _structure(connection: sqlite3.Connection, codec: Codec) -> Iterator[Problem]:
    for (line,) in connection.execute(f"PRAGMA integrity_check({_SHOWN})"):
        if line != "ok":
            yield Problem(f"SQLite's integrity check: {line}")


def _items(connection: sqlite3.Connection, codec: Codec) -> Iterator[Problem]:
    key = "key" if codec.strings else "id"
    for record in connection.execute(f"SELECT id, {key}, checksum, vector, mark FROM items NOT INDEXED"):
        problem = codec.problem(record[:4])
        if problem:
            yield Problem(problem, "vectors")
        problem = codec.name_problem(record[0], record[1], record[4])
        if problem:
            yield Problem(problem)


def _documents(connection: sqlite3.Connection, codec: Codec) -> Iterator[Problem]:
    for number, checksum, text in connection.execute("SELECT id, checksum, metadata FROM documents NOT INDEXED"):
        if not isinstance(text, str) or text_checksum(number, text) != checksum:
            yield Problem(f"the metadata of id {number} does not match its checksum", "metadata")
        elif not _is_object(text):
            yield Problem(f"the metadata of id {number} is no JSON object", "metadata")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _totals(connection: sqlite3.Connection, codec: Codec) -> Iterator[Problem]:
    for query, message in (
        ("SELECT COUNT(*) - (SELECT count FROM state) FROM items NOT INDEXED", "{} more items than were counted"),
        (
            "SELECT COUNT(*) - (SELECT documents FROM state) FROM documents NOT INDEXED",
            "{} more documents than were counted",
        ),
        (
            "SELECT COUNT(*) FROM documents NOT INDEXED WHERE id NOT IN (SELECT id FROM items)",
            "{} documents without an item",
        ),
        (
            "SELECT COUNT(*) FROM items LEFT JOIN documents ON documents.id = items.id "
            "WHERE mark & 1 AND documents.id IS NULL",
            "{} items without the document that they had",
        ),
        (
            "SELECT COUNT(*) FROM items NOT INDEXED WHERE version > (SELECT version FROM state)",
            "{} items of versions that are yet to come",
        ),
    ):
        (count,) = connection.execute(query).fetchone()
        if count:
            yield Problem(message.format(count))
