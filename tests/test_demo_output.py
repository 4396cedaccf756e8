"""What is made of a run: timing, gallery, report and contact sheets."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import mmfast.reference
from mmfast.demo import evaluation, sheets, timing
from mmfast.demo.gallery import Side, nearest
from tests.solved_run import HISTORY, Run, solved_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run() -> Run:
    return solved_run()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    root = tmp_path_factory.mktemp("run")
    run.write(root)
    return root


# Timing


def test_all_timed_losses_agree_with_the_definition() -> None:
    torch.manual_seed(0)
    x, labels = F.normalize(torch.randn(60, 16), dim=1), torch.arange(60) % 7
    timings = timing.time_losses(x, labels, margin=1.5)
    assert Counter(entry.rows for entry in timings) == {60: 2, timing.LOOP_ROWS: 3}
    for rows in (60, timing.LOOP_ROWS):
        expected = mmfast.reference.contrastive_loss(x[:rows].double(), labels[:rows], margin=1.5).item()
        for entry in timings:
            if entry.rows == rows:
                # Sums of some thousand float32 terms: far below 1e-5, however they are ordered.
                assert entry.loss == pytest.approx(expected, rel=1e-5)
                assert 0 <= entry.relative_difference < 1e-5
                assert 0 < entry.milliseconds < 5000


def test_a_wrong_gradient_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    def detached(x: Tensor, labels: Tensor, margin: float) -> Tensor:
        exact = timing.eager_idiom(x, labels, margin)
        return exact + 0.1 * (x.sum() - x.sum().detach())  # the right value, with another gradient

    monkeypatch.setattr(timing, "fused", detached)
    torch.manual_seed(0)
    ours = timing.time_losses(torch.randn(10, 4), torch.arange(10) % 3)[0]
    assert ours.relative_difference > 1e-3


# Gallery


def test_equal_items_are_found_once() -> None:
    embeddings = torch.eye(4)[[0, 1, 0, 2]]
    side = Side.build(["a", "b", "a", "c"], embeddings)
    assert side.copies == {0: [0, 2], 1: [1], 3: [3]}
    hits = nearest(side.index, torch.tensor([1.0, 0.1, 0.0, 0.0]), 10)
    assert [hit.row for hit in hits] == [0, 1, 3]
    assert hits[0].similarity == pytest.approx(1 / 1.01**0.5, abs=1e-6)
    pictures = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    pictures[1] = 9
    assert Side.build(pictures, embeddings[:3]).copies == {0: [0, 2], 1: [1]}


# Report


class Page(HTMLParser):
    """Collect what the page loads, its text, and each query with the marks beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loads: list[str] = []
        self.text = ""
        self.sections: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {}  # id -> (query, (class, mark or ""))
        self._section = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.loads += [values[name] for name in ("src", "href", "srcset", "data", "poster", "action") if name in values]
        kind = values.get("class", "")
        if tag == "section":
            self._section = values["id"]
            self.sections[self._section] = []
        elif tag == "div" and kind.startswith("query"):
            self.sections[self._section].append(("", []))
        elif kind in ("right", "wrong", "missed"):
            self.sections[self._section][-1][1].append((kind, ""))
        elif kind == "mark":
            found = self.sections[self._section][-1][1]
            found[-1] = (found[-1][0], values["aria-label"])
        elif tag == "img" and "asked" not in kind and self.sections.get(self._section):
            query, found = self.sections[self._section][-1]
            if not query and not found:
                self.sections[self._section][-1] = (values["alt"], found)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.lasttag == "h3" and data.strip() and self.sections.get(self._section):
            self.sections[self._section][-1] = (data, self.sections[self._section][-1][1])


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Page:
    return Page(run_folder / "report.html")


def test_the_page_loads_nothing(page: Page, run_folder: Path) -> None:
    assert page.tags["img"] > 2 * 12
    assert all(load.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,")) for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "video", "chance", "of"} & page.tags.keys()
    assert not re.search(r"url\(|@import|https?://", (run_folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_shows_the_numbers(page: Page, run: Run) -> None:
    for recall in run.recalls:
        for k in evaluation.AT:
            assert f"{recall.at[k]:.3f}" in page.text
            assert f"chance {recall.chance[k]:.3f}" in page.text
    for number in (
        "0.4321 in the last epoch",
        "2.1234 in the last epoch",
        "12.34568",
        "0.500",
        "4.000",
        "8.0 times as long",
        "2.0e-07",
    ):
        assert number in page.text
    for words in ("all <of> them", "Drawn by <chance> & colleagues", "batch size", "in 2 seconds"):
        assert words in page.text


@pytest.mark.parametrize(("section", "shown"), [("words_to_pictures", 8), ("pictures_to_words", 5)])
def test_marks_say_what_is_right(page: Page, run: Run, section: str, shown: int) -> None:
    images, texts = run.model.encode(run.dataset.train)
    captions = run.dataset.train.texts
    assert isinstance(captions, list)
    asked, searched = (texts, images) if section == "words_to_pictures" else (images, texts)
    queries = page.sections[section]
    assert len({query for query, _ in queries}) == len(queries) == 12
    right_answers = 0
    for query, found in queries:
        row = captions.index(query)
        order = (searched @ asked[row]).argsort(descending=True).tolist()
        expected = [("right", "right") if other == row else ("wrong", "wrong") for other in order[:shown]]
        if row not in order[:shown]:
            if section == "words_to_pictures":
                expected.append(("missed", ""))
            rank = order.index(row) + 1
            assert re.search(rf"nearest right one(, at rank |\s*#){rank}\D", page.text)
        right_answers += row in order[:shown]
        assert found == expected
    assert 0 < right_answers < 12
    assert f"{right_answers} of the\n12 have a right answer" in page.text


def test_another_run_shows_the_same_queries(tmp_path: Path, run_folder: Path, run: Run) -> None:
    run.write(tmp_path)
    first, second = ((root / "report.html").read_text(encoding="utf-8") for root in (run_folder, tmp_path))
    assert first.replace(str(run_folder), "") == second.replace(str(tmp_path), "")


def test_a_loss_that_is_not_used_has_no_curve(tmp_path: Path, run: Run) -> None:
    run.write(tmp_path, [replace(epoch, infonce=math.nan) for epoch in HISTORY])
    assert (tmp_path / "loss_hinge.png").is_file()
    assert not (tmp_path / "loss_infonce.png").exists()
    assert "InfoNCE" not in Page(tmp_path / "report.html").text
    content = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads(content, parse_constant=pytest.fail)["history"][1]["infonce"] is None


# Contact sheets


def test_sheets_frame_right_and_wrong_pictures(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "#0000ff")
    cells = [sheets.Cell(rank, 0.5, "caption", picture, right) for rank, right in enumerate((True, False, None), 1)]
    sheets.draw(tmp_path / "sheet.png", "Title", [sheets.Line("query", cells)])
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))

    def tiles_with(colour: str) -> set[int]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        columns = np.flatnonzero((pixels == rgb).all(axis=2).any(axis=0))
        return {(int(column) - sheets.MARGIN) // (sheets.THUMB + sheets.GAP) for column in columns}

    assert tiles_with("#0000ff") == {0, 1, 2}
    assert tiles_with(sheets.RIGHT) == {0}
    assert tiles_with(sheets.WRONG) == {1}
    assert tiles_with(sheets.PALE) == {2}


def test_lists_of_words_are_not_cut_beside_a_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 64), "#0000ff")
    words = sheets.Line("query", [sheets.Cell(1, 0.5, "words " * 60, right=True)], picture)
    wide = sheets.Line("query", [sheets.Cell(rank, 0.5, "", picture) for rank in range(9)])
    sheets.draw(tmp_path / "narrow.png", "Title", [words])
    sheets.draw(tmp_path / "wide.png", "Title", [words, wide])
    narrow, roomy = (np.asarray(Image.open(tmp_path / name)) for name in ("narrow.png", "wide.png"))
    first_line = slice(sheets.MARGIN + 2 * sheets.GAP + sheets.TITLE, sheets.MARGIN + sheets.TITLE + sheets.THUMB)
    inked = [np.flatnonzero((sheet[first_line] != 255).any(axis=(0, 2))).max() for sheet in (narrow, roomy)]
    assert inked[0] == inked[1] < narrow.shape[1] - sheets.MARGIN


@pytest.mark.parametrize("text", ["", "short", "a few words that need several lines to fit", "x" * 300, "word " * 100])
def test_text_is_wrapped_within_its_width(text: str) -> None:
    font = sheets._font(sheets.SMALL, False)
    lines = sheets._wrap(text, font, 100, 3)
    assert len(lines) <= 3
    assert all(font.getlength(line) <= 100 for line in lines)
    whole = " ".join(text.split())
    if lines and lines[-1].endswith("…"):
        assert whole.replace(" ", "").startswith("".join(lines).replace(" ", "")[:-1])
        assert font.getlength(whole) > 200
    else:
        assert "".join(lines).replace(" ", "") == whole.replace(" ", "")


def test_a_cosine_is_never_minus_zero() -> None:
    assert [sheets.Cell(1, value, "").cosine for value in (-0.001, 0.999, -0.5)] == ["0.00", "1.00", "-0.50"]
