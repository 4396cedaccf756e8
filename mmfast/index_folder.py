"""Open the folder of a durable index for a command, and tell what goes wrong in a line that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mmfast.cli import UserError
from mmfast.search.database import DATABASE
from mmfast.search.index import Index

if TYPE_CHECKING:
    from mmfast.search.durable import DurableIndex


@contextmanager
def told(before: str = "") -> Iterator[None]:
    """Raise what the index raises about files, settings and arrays as UserError, with words ``before`` it."""
    try:
        yield
    except BlockingIOError as error:
        what = str(error).partition(";")[0]  # what follows is about Python's arguments
        raise UserError(f"{before}{what}; wait until it is done (search, info and verify work meanwhile)") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{before}{where}{error.strerror or error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{before}{error}") from error


def open_existing(folder: Path, *, read_only: bool) -> DurableIndex:
    """Open an index that is there."""
    check_existing(folder)
    with told():
        return Index.open(folder, read_only=read_only)


def check_existing(folder: Path) -> None:
    """Refuse a folder without an index."""
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; make an index with: mmfast index build {folder} VECTORS")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; a durable index is a folder")
    if not (folder / DATABASE).exists():
        with told(), suppress(FileNotFoundError):  # refuses a folder of other things, as build does
            Index.open(folder, read_only=True).close()
        raise UserError(f"{folder} is empty; make an index in it with: mmfast index build {folder} VECTORS")
