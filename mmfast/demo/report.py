"""The report of a run: one HTML page that holds all it shows, and its sheets and curves as PNG files beside it.

The page needs no script and loads nothing, so it can be mailed, archived and opened offline. The queries that it shows
are drawn by a fixed seed from the scored split and not picked, so successes and failures appear as they come.
"""

from __future__ import annotations

import base64
import importlib.resources
import io
import math
import platform
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

import mmfast
from mmfast.demo.evaluation import AT, Recall
from mmfast.demo.gallery import Gallery, Side, nearest
from mmfast.demo.pairs import Dataset
from mmfast.demo.pictures import to_image
from mmfast.demo.sheets import Cell, Line, draw
from mmfast.demo.timing import Timing
from mmfast.demo.training import Epoch

QUERIES, QUERY_SEED = 12, 0
PICTURES_SHOWN, WORDS_SHOWN = 8, 5
LOSS_NAMES = {"hinge": "Pairwise hinge loss", "infonce": "Cross-entropy (InfoNCE)"}


@dataclass(frozen=True)
class Sheet:
    """A contact sheet on the page, and the file that shows the same."""

    title: str
    file: str
    lines: list[Line]
    candidates: int

    @property
    def answered(self) -> int:
        """Count the queries with a right answer among those shown."""
        return sum(any(cell.right for cell in line.found) for line in self.lines)


def write(
    root: Path,
    dataset: Dataset,
    scored: Gallery,  # the first split
    history: list[Epoch],
    recalls: list[Recall],
    timings: list[Timing],
    options: dict[str, object],
) -> Path:
    """Write the page and its pictures into ``root`` and return the path of the page."""
    sheets = _sheets(scored)
    for sheet in sheets:
        draw(root / sheet.file, sheet.title, sheet.lines)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = _picture_uri
    template = importlib.resources.files("mmfast.demo").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        dataset=dataset,
        split=next(iter(dataset.splits)),
        recalls=recalls,
        at=AT,
        curves=_curves(root, history),
        seconds=sum(epoch.seconds for epoch in history),
        sheets=sheets,
        timings=_timing_rows(timings),
        options={**options, **_circumstances()},
        root=root,
    )
    path = root / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


# Contact sheets


def _sheets(scored: Gallery) -> list[Sheet]:
    """Query by words and by picture, where there are pictures and words to show."""
    pairs = scored.pairs
    if pairs.images.ndim != 4 or isinstance(pairs.texts, Tensor):
        return []
    captions, pictures = pairs.texts, pairs.images
    return [
        Sheet(
            title="Queries in words, and the pictures found",
            file="words_to_pictures.png",
            lines=_lines(
                scored.texts, scored.images, pairs.labels, PICTURES_SHOWN,
                query=lambda row: (captions[row], None), answer=lambda row: (captions[row], to_image(pictures[row])),
            ),
            candidates=len(scored.images.copies),
        ),
        Sheet(
            title="Queries by picture, and the captions found",
            file="pictures_to_words.png",
            lines=_lines(
                scored.images, scored.texts, pairs.labels, WORDS_SHOWN,
                query=lambda row: (captions[row], to_image(pictures[row])), answer=lambda row: (captions[row], None),
            ),
            candidates=len(scored.texts.copies),
        ),
    ]  # fmt: skip


def _lines(
    asked: Side,
    searched: Side,
    labels: Tensor,
    shown: int,
    query: Callable[[int], tuple[str, Image.Image | None]],
    answer: Callable[[int], tuple[str, Image.Image | None]],
) -> list[Line]:
    """Search some rows of one side among the other, and mark what has a label of the query."""
    distinct = list(asked.copies)
    rows = random.Random(QUERY_SEED).sample(distinct, min(QUERIES, len(distinct)))
    candidates = list(searched.copies)

    def labels_of(side: Side, row: int) -> set[int]:
        return set(labels[side.copies[row]].tolist())

    lines = []
    for row in rows:
        wanted = labels_of(asked, row)
        found = [
            Cell(rank, hit.similarity, *answer(hit.row), right=bool(wanted & labels_of(searched, hit.row)))
            for rank, hit in enumerate(nearest(searched.index, asked.embeddings[row], shown), start=1)
        ]
        missed = None
        if not any(cell.right for cell in found):
            similarity = searched.embeddings[candidates] @ asked.embeddings[row]
            right = [place for place, other in enumerate(candidates) if wanted & labels_of(searched, other)]
            best = max(right, key=lambda place: similarity[place].item())
            rank = int((similarity > similarity[best]).sum()) + 1
            missed = Cell(rank, similarity[best].item(), *answer(candidates[best]), right=True)
        text, picture = query(row)
        lines.append(Line(text, found, picture, missed))
    return lines


def _picture_uri(picture: Image.Image) -> str:
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


# Loss curves


def _curves(root: Path, history: list[Epoch]) -> list[tuple[str, str, float]]:
    """Draw the losses that were used; return the title, the drawing and the last value of each."""
    curves = []
    for field, title in LOSS_NAMES.items():
        values = [getattr(epoch, field) for epoch in history]
        if history and not math.isnan(values[-1]):
            svg = _curve([epoch.number for epoch in history], values, title, root / f"loss_{field}.png")
            curves.append((title, f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", values[-1]))
    return curves


def _curve(epochs: list[int], values: list[float], title: str, png: Path) -> bytes:
    """Draw one curve to a PNG file, and return it as SVG without a background, in colours for light and dark pages."""
    grey = "#7d8590"
    with rc_context({"font.size": 11, "svg.hashsalt": "mmfast", "text.color": grey, "axes.labelcolor": grey}):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(epochs, values, color="#3b82f6", linewidth=2, marker="o" if len(epochs) < 15 else "", markersize=4)
        axes.set_xlabel("epoch")
        axes.set_title(title, fontsize=11)
        axes.set_ylim(bottom=0, top=1.05 * max(values) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(colors=grey)
        axes.grid(color=grey, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(grey)
        figure.savefig(png, dpi=160)
        svg = io.BytesIO()
        axes.set_title("")  # the page has its own
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()


# Timings and options


def _timing_rows(timings: list[Timing]) -> list[tuple[int, list[tuple[Timing, float]]]]:
    """Group by the number of rows; each timing with how many times as long as ours it took."""
    groups: dict[int, list[Timing]] = {}
    for timing in timings:
        groups.setdefault(timing.rows, []).append(timing)
    return [
        (rows, [(timing, timing.milliseconds / group[0].milliseconds) for timing in group])
        for rows, group in groups.items()
    ]


def _circumstances() -> dict[str, object]:
    return {
        "mmfast": mmfast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
