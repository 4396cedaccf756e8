"""Read a user's own data, and report all that is wrong with it at once, with line numbers, before any training.

Nothing is guessed and nothing is skipped: an unknown column may be a misspelt one, and a picture that cannot be read
would shift what the user believes was trained on. Pictures are decoded here, for only decoding tells a whole file from
a broken one; each file is decoded once, however many captions it has.
"""

from __future__ import annotations

import csv
import io
import json
import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import track
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mmfast.cli import UserError
from mmfast.demo.pairs import Pairs
from mmfast.demo.pictures import UnreadableError, read_picture
from mmfast.demo.text import clean

CAPTION_COLUMNS = ("caption", "text")
COLUMNS = ("image", *CAPTION_COLUMNS, "label")
PROBLEMS_SHOWN = 20
SHORT = reprlib.Repr()  # of values that may be long
SHORT.maxstring = 80


class Record(NamedTuple):
    """One line of a manifest: what its columns hold."""

    line: int
    values: dict[str, Any]


@dataclass
class Problems:
    """What is wrong, where; raised all together."""

    source: Path | str
    found: list[tuple[int, str]] = field(default_factory=list)  # line (0: the file as a whole), what is wrong

    def add(self, line: int, what: str) -> None:
        self.found.append((line, what))

    def raise_if_any(self) -> None:
        """Raise a ``UserError`` with the first problems in the order of their lines, and the number of the others."""
        if not self.found:
            return
        ordered = sorted(self.found, key=lambda problem: problem[0])
        shown = [f"  line {line}: {what}" if line else f"  {what}" for line, what in ordered[:PROBLEMS_SHOWN]]
        if len(ordered) > PROBLEMS_SHOWN:
            shown.append(f"  … and {len(ordered) - PROBLEMS_SHOWN:,} more")
        count = "1 problem" if len(ordered) == 1 else f"{len(ordered):,} problems"
        raise UserError("\n".join([f"{count} in {self.source}; mend and run again:", *shown]))


def read_manifest(path: Path, progress: bool = True) -> tuple[Pairs, list[str]]:
    """Read a CSV or JSON-lines manifest; return the pairs, and the path of each row's picture.

    An image and a text match where their labels are equal. Without a label column they match where they share a line,
    or where their lines share the picture or the caption.
    """
    problems = Problems(path)
    records = list(_records(path, problems))
    rows = [(record.line, *_checked(record, path.parent, problems)) for record in records]
    labels = [_label(record) for record in records]
    if any(labels):
        first = next(record.line for record, label in zip(records, labels, strict=True) if label)
        for record, label in zip(records, labels, strict=True):
            if not label:
                problems.add(record.line, f"no label, though line {first} has one; label all lines or none")
    pictures: dict[Path, Tensor] = {}
    unreadable: dict[Path, str] = {}
    for line, picture, _ in track(rows, "Reading pictures", disable=not progress, transient=True):
        if picture is not None and picture not in pictures and picture not in unreadable:
            try:
                pictures[picture] = read_picture(picture)
            except UnreadableError as error:
                unreadable[picture] = str(error)
        if picture in unreadable:
            problems.add(line, unreadable[picture])
    if not records and not problems.found:
        problems.add(0, "it has no rows")
    problems.raise_if_any()

    files = [str(picture) for _, picture, _ in rows]
    captions = [caption for _, _, caption in rows]
    numbers = dense(labels) if any(labels) else shared_labels(files, captions)
    return Pairs(torch.stack([pictures[Path(file)] for file in files]), captions, numbers), files


def _records(path: Path, problems: Problems) -> Iterator[Record]:
    readers = {".csv": _csv_records, ".jsonl": _json_records, ".ndjson": _json_records}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} must be a CSV file (.csv) or a JSON-lines file (.jsonl), told by its ending")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        problems.add(line, f"not UTF-8 ({error.reason}); save the file in UTF-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    else:
        yield from reader(text, problems)


def _csv_records(text: str, problems: Problems) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # where the next record begins, which may span several lines
        try:
            values = next(reader, None)
        except csv.Error as error:
            problems.add(line, f"not CSV: {error}")
            return
        if values is None:
            return
        if not any(value.strip() for value in values):
            continue
        if header is None:
            header = [value.strip() for value in values]
            _check_columns(line, header, problems)
        elif len(values) != len(header):
            problems.add(
                line, f"{len(values)} fields where the header has {len(header)}; quote fields that hold commas"
            )
        else:
            yield Record(line, dict(zip(header, values, strict=True)))


def _json_records(text: str, problems: Problems) -> Iterator[Record]:
    known: set[str] = set()
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except ValueError as error:
            problems.add(line, f"not JSON: {error}")
            continue
        if not isinstance(values, dict):
            problems.add(line, f"must be a JSON object, got {type(values).__name__}")
            continue
        for name in values.keys() - known - {*COLUMNS}:
            problems.add(line, _unknown(name))  # once: all lines are likely to have it
            known.add(name)
        given = [name for name in CAPTION_COLUMNS if name in values]
        if "image" not in values:
            problems.add(line, "no image")
        if len(given) != 1:
            problems.add(line, "both a caption and a text; give one" if given else "no caption")
        yield Record(line, values)


def _check_columns(line: int, header: list[str], problems: Problems) -> None:
    for name in dict.fromkeys(header):
        if header.count(name) > 1:
            problems.add(line, f"column {name!r} comes {header.count(name)} times")
        if name not in COLUMNS:
            problems.add(line, _unknown(name))
    if "image" not in header:
        problems.add(line, "column 'image' is missing from the header")
    given = [name for name in CAPTION_COLUMNS if name in header]
    if len(given) != 1:
        problems.add(line, f"the header must have one of 'caption' and 'text', got {'both' if given else 'neither'}")


def _unknown(name: str) -> str:
    return f"unknown column {name!r}; the columns are image, caption (or text) and label"


def _checked(record: Record, folder: Path, problems: Problems) -> tuple[Path | None, str]:
    """Return the picture's path and the caption of a record; whatever is wrong with them goes to the problems."""
    values = record.values
    picture = None
    if "image" in values:
        image = values["image"]
        if not isinstance(image, str) or not image.strip():
            problems.add(record.line, f"image must be a path, got {SHORT.repr(image)}")
        elif not os.path.isfile(folder / image.strip()):  # unlike Path.is_file, whatever the name is
            problems.add(record.line, f"image {SHORT.repr(image)} is not there (looked in {folder})")
        else:
            picture = folder / image.strip()
    given = [name for name in CAPTION_COLUMNS if name in values]
    caption = values[given[0]] if given else None
    if given and (not isinstance(caption, str) or not clean(caption)):
        problems.add(record.line, f"{given[0]} must have letters or digits, got {SHORT.repr(caption)}")
    label = values.get("label")
    if label is not None and not isinstance(label, (str, int)):
        problems.add(record.line, f"label must be a string or an integer, got {SHORT.repr(label)}")
    return picture, caption.strip() if isinstance(caption, str) else ""


def _label(record: Record) -> str:
    """Return the label as text, so that 1 in one line is "1" in another; "" where there is none."""
    label = record.values.get("label")
    return "" if label is None else str(label).strip()


# Labels


def dense(values: list[Any]) -> Tensor:
    """Number distinct values from 0 in the order of their first appearance."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(value, len(numbers)) for value in values])


def shared_labels(files: list[str], captions: list[str]) -> Tensor:
    """Give one label to the rows that a chain of equal pictures or equal captions connects."""
    pictures, texts = dense(files).numpy(), dense(captions).numpy()
    nodes = pictures.max() + 1 + texts.max() + 1
    edges = coo_array((np.ones(len(files)), (pictures, pictures.max() + 1 + texts)), shape=(nodes, nodes))
    _, component = connected_components(edges, directed=False)
    return dense(component[pictures].tolist())
