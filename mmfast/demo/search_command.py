"""``mmfast search``: find pictures by words, and words and pictures by a picture, in what demo or train made."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mmfast.cli import UserError, positive_integer
from mmfast.demo import sheets
from mmfast.demo.gallery import Hit, nearest
from mmfast.demo.models import ProjectionHead
from mmfast.demo.pictures import UnreadableError, read_picture, to_image
from mmfast.demo.run_folder import RunFolder
from mmfast.demo.text import clean


class Query(NamedTuple):
    """A query in the joint space."""

    text: str  # as the user gave it
    embedding: Tensor  # (joint,)
    by_image: bool
    picture: Image.Image | None  # where there is one to show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``mmfast search``."""
    parser.add_argument("run_folder", type=Path, metavar="OUT", help="folder that mmfast demo or mmfast train wrote")
    parser.add_argument(
        "query",
        metavar="QUERY",
        help="words, or the path of a picture; where a side was trained on features, a .npy file with one vector",
    )
    parser.add_argument("-k", type=positive_integer, default=8, help="how many to find (default: 8)")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="contact sheet (default: OUT/search/QUERY.png)")
    parser.add_argument(
        "--as",
        dest="kind",
        choices=("image", "text"),
        help="what QUERY is (default: a picture if there is such a file, otherwise words; required for .npy)",
    )


def run(args: argparse.Namespace) -> int:
    """Search, print tables and draw a contact sheet."""
    folder = RunFolder.open(args.run_folder)
    if args.draw is not None and folder.side is None:
        raise UserError("--draw needs pictures, and this run was trained on features of images")
    query = _read_query(folder, args.query, args.kind)
    console = Console()
    lines = []
    if query.by_image:
        words = nearest(folder.texts, query.embedding, args.k)
        console.print(_table("Words" if folder.captions else "Texts", folder, words, of_images=False))
        if folder.captions is not None:
            lines.append(sheets.Line("words", _cells(folder, words, of_images=False), query.picture))
    pictures = nearest(folder.images, query.embedding, args.k)
    console.print(_table("Pictures" if folder.side else "Images", folder, pictures, of_images=True))
    if folder.side is not None:
        lines.append(sheets.Line("pictures", _cells(folder, pictures, of_images=True)))
        path = _draw(args.draw or folder.root / "search" / f"{_slug(query.text)}.png", query, lines)
        console.print(f"Drawn: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _read_query(folder: RunFolder, text: str, kind: str | None) -> Query:
    """Embed what the user asked for, on the side that it belongs to."""
    if not text.strip():
        raise UserError("the query is empty; give words or the path of a picture")
    path = Path(text)
    if path.suffix.lower() == ".npy":
        if kind is None:
            raise UserError(f"say what {text} holds with --as image or --as text")
        return _read_vector(folder, path, kind)
    is_file = os.path.isfile(text)  # unlike Path.is_file, whatever the text is
    is_picture = is_file or path.suffix.lower() in Image.registered_extensions()
    if kind == "image" or (kind is None and is_picture):
        if folder.side is None:
            raise UserError(
                "this run was trained on features of images, so it cannot read a picture: give a .npy file with the "
                "features of one, and --as image"
            )
        if not is_file:
            raise UserError(f"there is no picture {text}")
        try:
            picture = read_picture(path, folder.side)
        except UnreadableError as error:
            raise UserError(str(error)) from error
        return Query(text, folder.model.encode_images(picture[None])[0], True, to_image(picture))
    if folder.captions is None:
        raise UserError(
            "this run was trained on features of texts, so it cannot read words: give a .npy file with the features of "
            "one text, and --as text"
        )
    if not clean(text):
        raise UserError(f"the query {text!r} has no letters or digits; give words")
    return Query(text, folder.model.encode_texts([text])[0], False, None)


def _read_vector(folder: RunFolder, path: Path, kind: str) -> Query:
    side = folder.model.image_side if kind == "image" else folder.model.text_side
    if not isinstance(side, ProjectionHead):
        instead = "the path of a picture" if kind == "image" else "words"
        raise UserError(f"this run was trained on {kind}s, not on features of {kind}s: give {instead}")
    width = folder.model.image_width if kind == "image" else folder.model.text_width
    try:
        vector: Any = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is not a .npy array of numbers: {error}") from error
    shape = getattr(vector, "shape", "of an archive")
    if shape not in ((width,), (1, width)) or vector.dtype.kind != "f":
        raise UserError(f"{path} must hold one floating-point vector of shape ({width},), got shape {shape}")
    features = torch.from_numpy(vector.astype(np.float32)).reshape(1, width)
    if not features.isfinite().all():
        raise UserError(f"{path} holds NaN, or values that float32 cannot hold")
    encode = folder.model.encode_images if kind == "image" else folder.model.encode_texts
    return Query(str(path), encode(features)[0], kind == "image", None)


def _table(title: str, folder: RunFolder, hits: list[Hit], of_images: bool) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("cosine", justify="right")
    columns: dict[str, Callable[[int], str]] = {}
    if folder.captions is not None:
        columns["caption"] = folder.captions.__getitem__
    if of_images and folder.side is not None:
        columns["file"] = folder.file
    for name in columns:
        table.add_column(name, overflow="fold")
    if not columns:
        columns["row"] = str
        table.add_column("row", justify="right")
    for rank, hit in enumerate(hits, start=1):
        cells = [str(rank), f"{hit.similarity:.3f}", *(value(hit.row) for value in columns.values())]
        table.add_row(*map(Text, cells))
    return table


def _cells(folder: RunFolder, hits: list[Hit], of_images: bool) -> list[sheets.Cell]:
    return [
        sheets.Cell(
            rank=rank,
            similarity=hit.similarity,
            caption=folder.captions[hit.row] if folder.captions is not None else f"row {hit.row}",
            picture=folder.picture(hit.row) if of_images else None,
        )
        for rank, hit in enumerate(hits, start=1)
    ]


def _draw(path: Path, query: Query, lines: list[sheets.Line]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheets.draw(path, f"mmfast search: {Path(query.text).name if query.by_image else query.text}", lines)
    except (OSError, ValueError) as error:  # ValueError: an ending that pillow does not know
        raise UserError(f"cannot draw to {path}: {error}") from error
    return path


def _slug(text: str) -> str:
    """Make a file name of a query: of a path its last part, without its ending."""
    name = Path(text).stem if os.path.isfile(text) else text
    return re.sub(r"\W+", "-", name.lower()).strip("-")[:60] or "query"
