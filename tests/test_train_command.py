"""Training on one's own data: features, the split, and whole runs; manifests have tests of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfast import Index, cli
from mmfast.cli import UserError
from mmfast.demo import features
from mmfast.demo.train_command import split_by_label

COLOURS = ("red", "green", "blue", "yellow", "black", "orange")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dozen pictures: each colour wide and tall."""
    for colour in COLOURS:
        Image.new("RGB", (40, 20), colour).save(tmp_path / f"{colour}_wide.png")
        Image.new("RGB", (20, 40), colour).save(tmp_path / f"{colour}_tall.png")
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def train(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cli.main(["train", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), printed.err


# Features


def test_all_problems_of_features_come_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.ones((6, 3), dtype=np.float64)
    images[[2, 5], 0] = np.nan, 1e300
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "b.npy", np.ones((5, 2), dtype=np.int32))
    np.save(tmp_path / "y.npy", np.ones((7, 1)))
    status, _, err = train(
        capsys,
        *("--images", tmp_path / "a.npy", "--texts", tmp_path / "b.npy", "--labels", tmp_path / "y.npy"),
        *("--out", tmp_path / "out"),
    )
    assert status == 2
    assert err.startswith("mmfast train: 4 problems in ")
    assert "--images holds NaN, or values that float32 cannot hold, in 2 rows: 2, 5" in err
    assert "--texts must be floating point of shape (N, features), got int32 of shape (5, 2)" in err
    assert "--labels must be integers of shape (N,), got float64 of shape (7, 1)" in err
    assert "one row per pair, got --images 6, --texts 5, --labels 7" in err


def test_only_arrays_of_numbers_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", np.ones((2, 2)))
    with pytest.raises(UserError) as caught:
        features.read_features(tmp_path / "objects.npy", tmp_path / "several.npz", tmp_path / "nowhere.npy")
    assert "objects.npy is not a .npy array of numbers: Object arrays cannot be loaded" in str(caught.value)
    assert "several.npz is an archive of several arrays" in str(caught.value)
    assert "nowhere.npy is not there" in str(caught.value)


# The split


@pytest.mark.parametrize("holdout", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_whole_labels_are_held_out(holdout: float, seed: int) -> None:
    labels = [0, 1, 2, 2, 3, 4, 4, 4, 5, 6, 7, 8, 9, 9]
    train_rows, held_out = split_by_label(labels, holdout, seed)
    assert sorted(train_rows + held_out) == list(range(len(labels)))
    train_labels, held_out_labels = ({labels[row] for row in rows} for rows in (train_rows, held_out))
    assert not train_labels & held_out_labels
    assert min(len(train_labels), len(held_out_labels)) >= 2
    if holdout == 0.3:
        assert len(held_out) in (5, 6, 7)  # 4.2 rows, rounded up to the end of a label of at most three
    assert split_by_label(labels, holdout, seed) == (train_rows, held_out)


def test_the_split_follows_the_seed() -> None:
    assert len({tuple(split_by_label(list(range(50)), 0.1, seed)[1]) for seed in range(5)}) == 5


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(UserError, match=r"4 different labels are needed, .* got 3 among 9 rows"):
        split_by_label([0, 1, 2] * 3, 0.1, 0)


# Whole runs


def test_own_pictures_are_trained_on_and_searched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{colour}_{shape}.png,a {shape} {colour} thing" for colour in COLOURS for shape in ("wide", "tall")]
    path, out = write(folder / "m.csv", "image,caption", *rows), folder / "deep" / "out"
    options = ["--epochs", "12", "--batch-size", "4", "--seed", "1", "--holdout", "0.25"]
    status, printed, _ = train(capsys, path, "--out", out, *options)
    assert status == 0
    assert "Training on 9 pairs, 3 held out, loss: both" in printed
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["splits"] == {"held out": 3}
    assert len(run["history"]) == 12
    assert run["history"][-1]["hinge"] < run["history"][0]["hinge"]
    assert {recall["candidates"] for recall in run["recall"]} == {3}
    assert "held out" in (out / "report.html").read_text(encoding="utf-8")

    # All pictures can be found, the ones trained on too; one that is given finds itself first.
    assert cli.main(["search", str(out), str(folder / "orange_tall.png"), "-k", "12"]) == 0
    words, _, pictures = capsys.readouterr().out.partition("Pictures")
    joined = re.sub(r"[│\s]", "", pictures)  # the table folds long paths
    assert all(f"{colour}_{shape}.png" in joined for colour in COLOURS for shape in ("wide", "tall"))
    assert re.search(r"│ +1 │ +1\.000 │ a tall orange", pictures)
    assert len(re.findall("thing", words)) == 12
    assert (out / "search" / "orange_tall.png").is_file()


def test_an_earlier_run_is_overwritten_which_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{colour}_{shape}.png,a {shape} {colour} thing" for colour in COLOURS for shape in ("wide", "tall")]
    path, out = write(folder / "m.csv", "image,caption", *rows), folder / "out"
    out.mkdir()
    (out / ".hidden").touch()
    words = f"{out} holds an earlier run, which this one overwrites"
    arguments: list[str | Path] = [path, "--out", out, "--epochs", "1", "--batch-size", "4"]
    status, printed, _ = train(capsys, *arguments)
    assert (status, words in printed) == (0, False)
    for lost in ("report.html", "run.json"):  # as where the run before was cut short
        (out / lost).unlink()
        status, printed, _ = train(capsys, *arguments)
        assert (status, words in printed) == (0, True)
        assert (out / lost).is_file()


@pytest.mark.parametrize("what", ["index", "notes", "pictures", "run.json"])
def test_a_folder_of_something_else_is_refused_before_training(
    folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    rows = [f"{colour}_{shape}.png,a {shape} {colour} thing" for colour in COLOURS for shape in ("wide", "tall")]
    path, out = write(folder / "m.csv", "image,caption", *rows), folder / "out"
    if what == "index":
        Index.open(out, 4).close()
    else:
        out.mkdir()
        (out / what).mkdir() if what == "pictures" else write(out / what, '{"format": 2}')
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for command in (["train", str(path)], ["demo", "--data", "digits"]):
        assert cli.main([*command, "--out", str(out)]) == 2
        printed = capsys.readouterr()
        assert "Training" not in printed.out
        assert f"--out {out} is a folder of something else than an earlier run: it holds" in printed.err
        assert ("truth.sqlite" if what == "index" else what) in printed.err
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_own_features_are_trained_on_and_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(60, 6))
    images, texts = hidden @ rng.normal(size=(6, 10)), hidden @ rng.normal(size=(6, 8))
    np.save(tmp_path / "a.npy", images.astype(np.float16))
    np.save(tmp_path / "b.npy", texts)
    np.save(tmp_path / "y.npy", np.arange(60)[::-1])
    files: list[str | Path] = [
        "--images",
        tmp_path / "a.npy",
        "--texts",
        tmp_path / "b.npy",
        "--labels",
        tmp_path / "y.npy",
    ]
    out = tmp_path / "out"
    status, printed, _ = train(capsys, *files, "--out", out, "--epochs", "60", "--loss", "hinge")
    assert status == 0
    assert "Training on 54 pairs, 6 held out, loss: hinge" in printed
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["history"][-1]["infonce"] is None

    np.save(tmp_path / "query.npy", texts[17])
    assert cli.main(["search", str(out), str(tmp_path / "query.npy"), "--as", "text", "-k", "5"]) == 0
    rows = [int(row) for row in re.findall(r"│ +\d │ +\S+ │ +(\d+) │", capsys.readouterr().out)]
    assert len(rows) == 5
    assert 17 in rows  # one of 60, trained on or alike


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give MANIFEST"),
        (["--images", "a.npy"], "give MANIFEST"),
        (["m.csv", "--images", "a.npy"], "not both"),
        (["nowhere.csv"], "cannot read nowhere.csv: No such file or directory"),
        (["m.parquet"], "m.parquet must be a CSV file (.csv) or a JSON-lines file (.jsonl)"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, _, err = train(capsys, *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert message in err


@pytest.mark.parametrize(
    "option", [["--batch-size", "1"], ["--holdout", "0"], ["--holdout", "1"], ["--holdout", "nan"], ["--epochs", "0"]]
)
def test_options_out_of_range(tmp_path: Path, option: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "m.csv", "--out", str(tmp_path), *option])


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = train(capsys, "nowhere.csv", "--out", folder / "red_wide.png" / "out")
    assert status == 2
    assert "cannot write into" in err


def test_problems_end_the_command_before_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(folder / "m.csv", "image,caption", "nowhere.png,gone", "red_wide.png,")
    status, out, err = train(capsys, path, "--out", folder / "out")
    assert status == 2
    assert "Training" not in out
    assert "  line 2: image 'nowhere.png' is not there" in err
    assert "  line 3: caption must have letters or digits, got ''" in err
    assert not list((folder / "out").iterdir())
