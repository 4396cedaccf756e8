"""``mmfast bench`` on both kinds of file, and on what is neither."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmfast import bench_command
from mmfast.cli import main

MACHINE = {"cpu": "Example 1", "threads": 2, "torch": "2.13.0", "commit": ""}
PLOTS = {"time_over_rows", "memory_over_rows", "time_over_density"}


pytestmark = pytest.mark.usefixtures("one_thread")


def pytest_benchmark_file(path: Path, providers: tuple[str, ...] = ("mmfast", "eager", "a new library")) -> Path:
    """Write what ``make bench`` would: time ∝ rows², eager ten times as long as ours."""
    benchmarks: list[dict[str, Any]] = []
    cases = [(512, "sparse", 0.001), (1024, "sparse", 0.001), (2048, "sparse", 0.001), (2048, "half", 0.5)]
    for rows, density, active in cases:
        for place, provider in enumerate(providers):
            seconds = 1e-9 * rows**2 * 10**place
            info = {"provider": provider, "rows": rows, "features": 256, "density": density, "active": active}
            info |= {"threads": 2, "loss_error": 2e-8, "gradient_error": 3e-7}
            info |= {"peak_bytes": 1000 * rows * (place + 1)} if density == "sparse" else {}
            benchmarks.append({"name": "x", "extra_info": info, "stats": {"min": seconds, "median": 1.5 * seconds}})
    content = {
        "machine_info": {"mmfast": {**MACHINE, "command": "python -m pytest benchmarks"}},
        "benchmarks": benchmarks,
    }
    path.write_text(json.dumps(content))
    return path


def test_draws_what_make_bench_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pytest_benchmark_file(tmp_path / "bench.json")
    assert main(["bench", str(file)]) == 0
    folder = tmp_path / "bench"
    printed = set(capsys.readouterr().out.split())
    assert printed == {str(path) for path in folder.iterdir()}
    assert {path.stem for path in folder.iterdir()} == {*PLOTS, "results"}
    for name in PLOTS:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width >= 1600
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
        xml.etree.ElementTree.parse(folder / f"{name}.svg")


def test_table_has_the_ratios_the_command_and_the_machine(tmp_path: Path) -> None:
    file = pytest_benchmark_file(tmp_path / "bench.json")
    assert main(["bench", str(file), "--out", str(tmp_path / "deep" / "out")]) == 0
    text = (tmp_path / "deep" / "out" / "results.md").read_text()
    assert "`python -m pytest benchmarks`" in text
    assert "cpu Example 1, threads 2, torch 2.13.0." in text
    assert "| 2,048 × 256 | half | 50% | eager | 41.9 | 62.9 | 10.00 | 2e-08 | 3e-07 |  |" in text
    assert "| 512 × 256 | sparse | 0.10% | **mmfast** | 0.262 | 0.393 | 1.00 | 2e-08 | 3e-07 | 0.5 |" in text
    assert len(re.findall(r"^\| [\d,]+ ×", text, re.MULTILINE)) == 12


def test_lines_hold_the_figures(tmp_path: Path) -> None:
    results = bench_command.read(pytest_benchmark_file(tmp_path / "bench.json"))
    drawn = dict(bench_command.figures(results))
    lines = {str(line.get_label()): line for line in drawn["time_over_rows"].axes[0].get_lines()}
    assert set(lines) == {"mmfast", "eager", "a new library"}
    assert np.asarray(lines["mmfast"].get_xdata()).tolist() == [512, 1024, 2048]
    assert np.asarray(lines["eager"].get_ydata()).tolist() == pytest.approx(
        [1.5e-5 * rows**2 for rows in (512, 1024, 2048)]
    )
    memory = {str(line.get_label()): line for line in drawn["memory_over_rows"].axes[0].get_lines()}
    assert np.asarray(memory["eager"].get_ydata()).tolist() == pytest.approx([1.024, 2.048, 4.096])


def test_one_batch_gives_a_table_and_no_plot(tmp_path: Path) -> None:
    file = pytest_benchmark_file(tmp_path / "bench.json")
    content = json.loads(file.read_text())
    content["benchmarks"] = content["benchmarks"][:3]
    file.write_text(json.dumps(content))
    assert main(["bench", str(file)]) == 0
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["results.md"]


def test_names_of_lines_do_not_overlap() -> None:
    spread = bench_command.spread([0.1, 0.11, 0.12, 0.5, 0.95, 0.96])
    assert all(high - low > 0.98 * bench_command.LABEL_GAP for low, high in itertools.pairwise(spread))
    assert spread[3] == 0.5


def test_interleaved_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import interleaved

    file = tmp_path / "side_by_side.json"
    options = ["--rounds", "2", "--providers", "mmfast,double loop,eager,cdist", "--no-memory", "--json", str(file)]
    assert interleaved.main(["--rows", "16", "130", "--features", "64", "--density", "sparse", "half", *options]) == 0
    printed = capsys.readouterr().out
    assert "left out, double loop: at most 128 rows" in printed
    assert "X @ X.T ÷" in printed
    results = bench_command.read(file)
    assert len(results.measurements) == 2 * (5 + 4)
    for m in results.measurements:
        assert 0 < m.best <= m.median
        assert m.provider == "X @ X.T" or (m.loss_error is not None and m.loss_error < 1e-5)
    assert {m.active for m in results.measurements if m.density == "half"} != {0.5}  # measured, not intended
    assert main(["bench", str(file)]) == 0
    assert {path.stem for path in (tmp_path / "side_by_side").iterdir()} == {*PLOTS - {"memory_over_rows"}, "results"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("{", "is not JSON"),
        ("[1, 2]", "holds neither"),
        ('{"machine_info": {"node": "x"}, "benchmarks": [{"name": "foreign"}]}', "no result of mmfast's benchmarks"),
        ('{"format": "mmfast.interleaved/1", "command": "c", "machine": {}, "results": [{}]}', "is damaged"),
        ('{"format": "mmfast.interleaved/1", "command": "c", "machine": {}, "results": []}', "no measurement"),
    ],
)
def test_bad_file_is_named(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    if content is not None:
        file.write_text(content)
    assert main(["bench", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mmfast bench: {file}")
    assert message in error
    assert "Traceback" not in error


def test_folder_that_cannot_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = pytest_benchmark_file(tmp_path / "bench.json")
    assert main(["bench", str(file), "--out", str(file)]) == 2
    assert f"cannot write to {file}" in capsys.readouterr().err
