"""Contact sheets: what was asked beside what was found, framed green with a tick where right, red with a cross if not.

The shapes of the marks differ as well as their colours, for those who do not tell red from green. Text is set in
DejaVu Sans, which comes with matplotlib and so is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

THUMB, GAP, MARGIN = 136, 16, 32  # pixels
FRAME, THIN = 5, 2  # of a known and of another picture, pixels
PER_ROW, MIN_COLUMNS = 9, 5
LIST_COLUMNS = 4  # the width, in thumbnails, of a list of words beside a picture
INDENT = THUMB + 2 * GAP  # of what stands beside a picture
CAPTION_LINES, HEADING_LINES = 3, 3
TITLE, HEADING, TEXT, SMALL = 26, 18, 15, 13  # pixels
INK, GREY, PALE, PAPER = "#1d2430", "#6b7280", "#d5d9e0", "#ffffff"
RIGHT, WRONG = "#1a7f4b", "#c8372d"
MISSED = "nearest right one"


class Cell(NamedTuple):
    """One thing found: a picture with its caption, or a caption alone."""

    rank: int
    similarity: float
    caption: str
    picture: Image.Image | None = None
    right: bool | None = None  # None where nobody knows

    @property
    def cosine(self) -> str:
        """Write the similarity with two digits, and never as -0.00."""
        return f"{round(self.similarity, 2) + 0.0:.2f}"


class Line(NamedTuple):
    """One query and what was found for it, nearest first."""

    query: str
    found: list[Cell]
    picture: Image.Image | None = None  # where the query is a picture
    missed: Cell | None = None  # the nearest right one, where none of those found is right


def draw(path: Path, title: str, lines: Sequence[Line]) -> None:
    """Draw one line below the other and save the sheet in the format that the ending of ``path`` names."""
    columns = max((_columns(line) for line in lines), default=0)
    width = max(MIN_COLUMNS, columns) * (THUMB + GAP) - GAP
    parts = [_text_block([(title, TITLE, INK, True)], width), *(_draw_line(line, width) for line in lines)]
    space = 2 * GAP
    sheet = Image.new(
        "RGB", (width + 2 * MARGIN, sum(part.height + space for part in parts) - space + 2 * MARGIN), PAPER
    )
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height + space
    sheet.save(path)


def _columns(line: Line) -> int:
    """Count the thumbnails that a line is wide."""
    if not line.found or line.found[0].picture is None:
        return LIST_COLUMNS + 1
    return min(PER_ROW, len(line.found) + bool(line.missed)) + bool(line.picture)


def _draw_line(line: Line, width: int) -> Image.Image:
    """Draw a query in words above what was found, a query in pictures to the left of it."""
    indent = 0 if line.picture is None else INDENT
    heading = _text_block([(line.query, HEADING, INK, True)], width - indent, HEADING_LINES)
    cells = [*line.found, *([line.missed] if line.missed else [])]
    tiles = _stack([_tile(cell, cell is line.missed) for cell in cells], width - indent)
    height = heading.height + GAP // 2 + tiles.height
    canvas = Image.new("RGB", (width, max(height, THUMB if line.picture else 0)), PAPER)
    if line.picture is not None:
        canvas.paste(_framed(line.picture, INK, THIN), (0, 0))
    canvas.paste(heading, (indent, 0))
    canvas.paste(tiles, (indent, heading.height + GAP // 2))
    return canvas


def _tile(cell: Cell, missed: bool) -> Image.Image:
    """Draw a thumbnail with its caption below, or a caption alone as one entry of a list."""
    return _entry(cell, missed) if cell.picture is None else _thumbnail(cell, cell.picture, missed)


def _thumbnail(cell: Cell, picture: Image.Image, missed: bool) -> Image.Image:
    paragraphs = [
        (MISSED if missed else "", SMALL, RIGHT, True),
        (f"#{cell.rank:,} · {cell.cosine}", SMALL, GREY, False),
        (cell.caption, SMALL, INK, False),
    ]
    text = _text_block(paragraphs, THUMB)
    tile = Image.new("RGB", (THUMB, THUMB + 6 + text.height), PAPER)
    colour = {True: RIGHT, False: WRONG, None: PALE}[cell.right]
    tile.paste(_framed(picture, colour, THIN if missed or cell.right is None else FRAME), (0, 0))
    if not missed:
        _mark(tile, cell.right, (THUMB - 16, 16))
    tile.paste(text, (0, THUMB + 6))
    return tile


def _entry(cell: Cell, missed: bool) -> Image.Image:
    text_left = 80
    caption = _text_block(
        [(f"{MISSED}, at rank {cell.rank:,}" if missed else "", SMALL, RIGHT, True), (cell.caption, TEXT, INK, False)],
        (LIST_COLUMNS + 1) * (THUMB + GAP) - GAP - INDENT - text_left,
    )
    tile = Image.new("RGB", (text_left + caption.width, caption.height), PAPER)
    if not missed:
        _mark(tile, cell.right, (11, 10))
    tile.paste(_text_block([(cell.cosine, TEXT, GREY, False)], text_left - 34), (34, 0))
    tile.paste(caption, (text_left, 0))
    return tile


def _stack(tiles: list[Image.Image], width: int) -> Image.Image:
    """Set tiles side by side, and in further rows where they do not fit."""
    if not tiles:
        return _text_block([("nothing found", TEXT, GREY, False)], width)
    per_row = max(1, (width + GAP) // (tiles[0].width + GAP))
    rows = [tiles[start : start + per_row] for start in range(0, len(tiles), per_row)]
    heights = [max(tile.height for tile in row) for row in rows]
    between = GAP if per_row > 1 else GAP // 2
    canvas = Image.new("RGB", (width, sum(heights) + between * (len(rows) - 1)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            canvas.paste(tile, (column * (tile.width + GAP), top))
        top += height + between
    return canvas


def _framed(picture: Image.Image, colour: str, thickness: int) -> Image.Image:
    """Scale a picture to a thumbnail inside a frame."""
    framed = Image.new("RGB", (THUMB, THUMB), colour)
    inner = THUMB - 2 * thickness
    framed.paste(picture.convert("RGB").resize((inner, inner), Image.Resampling.BICUBIC), (thickness, thickness))
    return framed


def _mark(tile: Image.Image, right: bool | None, centre: tuple[int, int]) -> None:
    """Draw a white tick on a green disc or a white cross on a red one, four times too large and reduced."""
    if right is None:
        return
    badge = Image.new("RGBA", (96, 96), (255, 255, 255, 0))
    pen = ImageDraw.Draw(badge)
    pen.ellipse((0, 0, 95, 95), fill=RIGHT if right else WRONG, outline="white", width=7)
    strokes = [[(28, 50), (42, 64), (68, 34)]] if right else [[(33, 33), (63, 63)], [(63, 33), (33, 63)]]
    for stroke in strokes:
        pen.line(stroke, fill="white", width=10, joint="curve")
    badge = badge.resize((24, 24), Image.Resampling.LANCZOS)
    tile.paste(badge, (centre[0] - 12, centre[1] - 12), badge)


def _text_block(
    paragraphs: Sequence[tuple[str, int, str, bool]],  # text, size, colour, bold
    width: int,
    max_lines: int = CAPTION_LINES,
) -> Image.Image:
    """Set paragraphs below each other, each wrapped to ``width``; empty ones take no room."""
    lines = [
        (line, size, colour, bold)
        for text, size, colour, bold in paragraphs
        for line in _wrap(text, _font(size, bold), width, max_lines)
    ]
    block = Image.new("RGB", (width, max(1, sum(_line_height(size) for _, size, _, _ in lines))), PAPER)
    pen, top = ImageDraw.Draw(block), 0
    for line, size, colour, bold in lines:
        pen.text((0, top), line, fill=colour, font=_font(size, bold))
        top += _line_height(size)
    return block


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Break at spaces, within a word only where it is wider than a line; what is too long ends with an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < max_lines:
        last = len(lines) == max_lines - 1
        fitting = _fitting(rest, font, width)
        if fitting == len(rest):
            return [*lines, rest]
        if last:
            return [*lines, rest[: _fitting(rest, font, width - font.getlength("…"))].rstrip(" ,") + "…"]
        space = rest.rfind(" ", 0, fitting + 1)
        cut = space if space > 0 else fitting
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    return lines


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: float) -> int:
    """Count the leading characters that fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _line_height(size: int) -> int:
    return round(size * 1.35)


@lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
