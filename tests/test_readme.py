"""What the README shows runs as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmfast
from mmfast import cli
from mmfast.demo.run_folder import picture_path
from tests.test_index import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

README = Path(__file__).parents[1] / "README.md"
MMFAST = ".venv/bin/mmfast "


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.M | re.S)


def run_whole(code: str) -> dict[str, Any]:
    """Run a block as it stands, as if it were pasted, and return what it leaves."""
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_every_block_of_python_is_run_here() -> None:
    assert len(blocks("python")) == 2
    assert README.read_text().count("```python") == 2


@pytest.mark.parametrize("times", [1, 2])
def test_the_api_at_a_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(times):
        left = run_whole(blocks("python")[0])
    embeddings, labels = left["embeddings"], left["labels"]
    assert embeddings.shape == (3000, 128)
    torch.testing.assert_close(
        left["criterion"](embeddings[:200], labels[:200]),
        mmfast.reference.contrastive_loss(embeddings[:200], labels[:200], reduction="mean"),
    )
    torch.testing.assert_close(left["loss"], mmfast.contrastive_loss(embeddings, labels, reduction="mean_nonzero"))
    assert left["found"].shape == (5, 10)
    np.testing.assert_array_equal(left["found"][:, 0], range(5))
    assert set(left["near"]) >= set(range(5))
    assert sorted(left["index"].keys()) == list(range(3000 - 9))  # what was saved and read again
    assert left["newer"].keys.tolist() == ["Up"]
    with mmfast.Index.open("films") as films:
        assert films.metadata(["Alien", "Up"]) == [{"year": 1979}, {"year": 2009, "genre": "animation"}]


def test_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    left = run_whole(blocks("python")[1])
    losses = [float(line.partition(": ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < 0.8 * losses[0]
    features, labels = left["features"], left["labels"]
    torch.manual_seed(1)
    scores = []
    for encoder in (left["encoder"], torch.nn.Linear(128, 32)):
        embeddings = torch.nn.functional.normalize(encoder(features))
        scores.append(mmfast.contrastive_loss(embeddings, labels, reduction="mean_nonzero").item())
    assert scores[0] < 0.8 * scores[1]


def test_what_the_means_divide_by() -> None:
    rows, labels = torch.from_numpy(gaussian(12, 4)) / 3, torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, -100, -100])
    total = mmfast.contrastive_loss(rows, labels)
    torch.testing.assert_close(mmfast.contrastive_loss(rows, labels, reduction="mean"), total / 10**2)
    total = mmfast.contrastive_loss(rows, labels, rows[:5], labels[:5])
    torch.testing.assert_close(
        mmfast.contrastive_loss(rows, labels, rows[:5], labels[:5], reduction="mean"), total / (10 * 5)
    )
    inside = torch.cdist(rows[:10], rows[:10]).square()
    same = labels[:10, None] == labels[:10]
    matching, others = inside[same], (1 - inside[~same]).relu()
    torch.testing.assert_close(
        mmfast.contrastive_loss(rows, labels, reduction="mean_nonzero"),
        matching.sum() / (matching > 0).sum() + others.sum() / (others > 0).sum(),
    )


def test_a_durable_index_is_closed_before_it_is_opened_again(tmp_path: Path) -> None:
    films = mmfast.Index.open(tmp_path / "films", ndim=2)
    with pytest.raises(BlockingIOError):
        mmfast.Index.open(tmp_path / "films")
    mmfast.Index.open(tmp_path / "films", read_only=True).close()
    films.close()
    mmfast.Index.open(tmp_path / "films").close()


def test_the_picture_that_is_searched_with_is_one_of_the_demo() -> None:
    (commands,) = (block for block in blocks("sh") if "search out/demo" in block)
    (name,) = re.findall(r"search out/demo (out/demo\S+)", commands)
    row = int(Path(name).stem)
    assert picture_path(Path("out/demo"), row) == Path(name)
    run = json.loads((README.parent / "benchmarks/results/demo.json").read_text())
    assert row < next(iter(run["splits"].values()))  # whose pictures the demo writes


def test_an_index_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    vectors, genres = gaussian(60, 8), ["noir", "drama", "western"]
    table = {
        "vector": list(vectors),
        "id": [f"film {row}" for row in range(60)],
        "year": [1990 + row for row in range(60)],
        "genre": [genres[row % 3] for row in range(60)],
    }
    parquet.write_table(pyarrow.table(table), "vectors.parquet")
    np.save("queries.npy", vectors[40:43])
    (commands,) = (block for block in blocks("sh") if "index build" in block)
    printed = []
    for line in commands.splitlines():
        arguments = shlex.split(line.removeprefix(MMFAST), comments=True)
        assert line.startswith(MMFAST)
        assert cli.main(arguments) == 0, line
        printed.append(capsys.readouterr().out)
    found = [int(row) for row in re.findall(r"film (\d+)", printed[1])]
    assert found[0] == 40
    assert all(row >= 30 and genres[row % 3] in ("noir", "drama") for row in found)
