"""The folder of a run, and the search in it, by words, by pictures and by features."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmfast import cli
from mmfast.demo import sheets
from mmfast.demo.models import JointModel
from mmfast.demo.pairs import Dataset, Pairs
from mmfast.demo.run_folder import RunFolder, picture_path
from mmfast.search.durable import DurableIndex
from mmfast.search.results import SearchResult
from tests.solved_run import HISTORY, TIMINGS, Run, patterns, solved_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run() -> Run:
    return solved_run()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    root = tmp_path_factory.mktemp("run")
    run.write(root)
    return root


@pytest.fixture(scope="module")
def feature_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    pairs = Pairs(torch.randn(20, 6), torch.randn(20, 5), torch.arange(20))
    root = tmp_path_factory.mktemp("features")
    dataset = Dataset("own data", pairs, {"held out": pairs}, credits="")
    RunFolder.write(root, JointModel.for_pairs(pairs), dataset, HISTORY, [], TIMINGS, {})
    np.save(root / "row7.npy", pairs.images[7].numpy())
    np.save(root / "text.npy", pairs.texts[:1].numpy() if isinstance(pairs.texts, Tensor) else pairs.texts)
    return root


def search(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run ``mmfast search`` and return its status, its output with single spaces, and its errors."""
    status = cli.main(["search", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), printed.err


def test_no_room_is_made_for_more_rows_than_there_are(
    run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, search_index = [], DurableIndex.search

    def recorded(index: DurableIndex, queries: object, k: int) -> SearchResult:
        asked.append((k, len(index)))
        return search_index(index, queries, k)

    monkeypatch.setattr(DurableIndex, "search", recorded)
    assert search(capsys, run_folder, "red heart", "-k", "100000", "--draw", tmp_path / "sheet.png")[0] == 0
    assert asked
    assert all(k == rows for k, rows in asked)


@pytest.mark.parametrize(("words", "row"), [("red heart", 0), ("teal star", 23), ("Black HEART!", 5)])
def test_words_find_their_picture(
    run_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, row: int
) -> None:
    status, out, _ = search(capsys, run_folder, words, "-k", "3", "--draw", tmp_path / "sheet.png")
    assert status == 0
    caption = patterns().texts[row]
    first = re.search(r"│ 1 │ (\S+) │ ([\w ]+) │ (\S+)", out)
    assert first is not None
    assert first[2].strip() == caption
    assert len(re.findall(r"│ \d │", out)) == 3
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * sheets.THUMB


def test_a_query_may_be_longer_than_a_file_name(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = search(capsys, str(run_folder), "red heart " * 100)
    assert status == 0
    assert "Pictures" in out
    assert search(capsys, str(run_folder), "red heart " * 100, "--as", "image")[0] == 2


def test_a_picture_finds_itself_and_words(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = search(capsys, run_folder, picture_path(run_folder, 7), "-k", "2")
    assert status == 0
    words, _, pictures = out.partition("Pictures")
    assert re.search(r"│ 1 │ \S+ │ purple heart │", words)
    assert re.search(r"│ 1 │ 1\.000 │ purple heart │", pictures)
    assert (run_folder / "search" / "000007.png").is_file()


def test_a_moved_folder_is_searched_as_before(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.write(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    status, out, _ = search(capsys, tmp_path / "after", "green heart", "-k", "1")
    assert status == 0
    assert "after" in out
    assert "before" not in out
    assert (tmp_path / "after" / "search" / "green-heart.png").is_file()


def test_a_later_run_leaves_no_pictures_of_an_earlier_one(run: Run, tmp_path: Path) -> None:
    pairs = run.dataset.train
    few = Pairs(pairs.images[:3], pairs.texts[:3], pairs.labels[:3])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.png").touch()
    for split in (pairs, few):
        run.write(tmp_path, split=split)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png", "mine.png"]


def test_features_are_searched_by_vector(feature_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = search(capsys, feature_run, feature_run / "row7.npy", "--as", "image", "-k", "1")
    assert status == 0
    assert re.search(r"Texts .*┃ row ┃.* Images .*│ 1 │ 1\.000 │ 7 │", out)
    status, out, _ = search(capsys, feature_run, feature_run / "text.npy", "--as", "text", "-k", "4")
    assert status == 0
    assert len(re.findall(r"│ \d │ \S+ │ \d+ │", out)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}/nowhere", "x"], "there is no folder"),
        (["{run}/pictures", "x"], "is not the folder of a finished run: it has no run.json"),
        (["{run}", "  "], "the query is empty"),
        (["{run}", "?!"], "no letters or digits"),
        (["{run}", "missing.jpg"], "there is no picture missing.jpg"),
        (["{run}", "{run}/run.json"], "cannot be decoded"),
        (["{run}", "words", "--as", "image"], "there is no picture words"),
        (["{run}", "{features}/row7.npy"], "--as image or --as text"),
        (["{run}", "{features}/row7.npy", "--as", "image"], "trained on images, not on features"),
        (["{run}", "red heart", "--draw", "{run}/sheet.nothing"], "cannot draw to"),
        (["{run}", "red heart", "--draw", "{run}/run.json/sheet.png"], "cannot draw to"),
        (["{features}", "red heart"], "trained on features of texts"),
        (["{features}", "{run}/pictures/000000.png"], "trained on features of images"),
        (["{features}", "{features}/text.npy", "--as", "image"], r"shape (6,), got shape (1, 5)"),
        (["{features}", "nowhere.npy", "--as", "image"], "there is no file nowhere.npy"),
        (["{features}", "{features}/report.npy", "--as", "text"], "is not a .npy array"),
        (["{features}", "{features}/text.npy", "--as", "text", "--draw", "a.png"], "--draw needs pictures"),
    ],
)
def test_what_the_user_can_mend_is_said(
    run_folder: Path, feature_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (feature_run / "report.npy").write_text("not an array")
    given = [argument.format(run=run_folder, features=feature_run) for argument in arguments]
    status, _, err = search(capsys, *given)
    assert status == 2
    assert err.startswith("mmfast search: ")
    assert message in err


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
@pytest.mark.parametrize(
    "name", ["run.json", "gallery.json", "images/truth.sqlite", "texts/truth.sqlite", "checkpoint.pt"]
)
def test_damage_is_named(run_folder: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str) -> None:
    content = (run_folder / name).read_bytes()
    damaged = {"empty": b"", "cut": content[: len(content) // 2], "other": b'{"format": 2}'}
    if damage == "missing":
        (run_folder / name).unlink()
    else:
        (run_folder / name).write_bytes(damaged[damage])
    try:
        status, _, err = search(capsys, run_folder, "red heart", "--draw", run_folder / "sheet.png")
    finally:
        (run_folder / name).write_bytes(content)
    if name == "run.json" and damage == "other":
        assert status == 0  # all that a search needs of it
    else:
        assert status == 2
        assert name.partition("/")[0] in err


def test_a_missing_picture_is_named(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = picture_path(run_folder, 0)
    content = path.read_bytes()
    path.unlink()
    status, _, err = search(capsys, run_folder, "red heart")
    path.write_bytes(content)
    assert status == 2
    assert "000000.png cannot be read" in err
