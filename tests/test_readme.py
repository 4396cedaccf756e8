"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmfast
from mmfast import cli
from tests.test_index import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

README = Path(__file__).parents[1] / "README.md"
MMFAST = ".venv/bin/mmfast "


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.M | re.S)


def test_the_api_at_a_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    part = code.index("with mmfast.Index.open")  # that one has two films, the index before it many rows
    embeddings = torch.from_numpy(gaussian(24, 128)).requires_grad_()
    labels = torch.arange(24) % 8
    vectors = gaussian(300, 128)
    names: dict[str, Any] = {"embeddings": embeddings, "labels": labels, "images": embeddings, "image_labels": labels}
    names |= {"texts": embeddings.detach(), "text_labels": labels, "keys": np.arange(300), "vectors": vectors}
    names |= {"queries": vectors[:5] + 0.01, "allowed_keys": {3, 5, 8}}
    exec(code[:part], names)
    torch.testing.assert_close(
        names["criterion"](embeddings, labels),
        mmfast.reference.contrastive_loss(embeddings, labels, reduction="mean"),
    )
    assert names["found"].shape == (5, 10)
    np.testing.assert_array_equal(names["found"][:, 0], range(5))
    assert len(names["index"]) == 0  # its rows were removed before it was saved

    exec(code[part:], {"mmfast": mmfast, "vectors": vectors[:2], "query": vectors[0]})
    with mmfast.Index.open("films") as films:
        assert films.metadata(["Alien", "Up"]) == [{"year": 1979}, {"year": 2009, "genre": "animation"}]


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
