"""The command line itself: choosing a command, its help, its errors. The commands have tests of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmfast
from mmfast import _C, cli, info


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("CPU tier", "tier").splitlines())
    assert lines["mmfast"] == mmfast.__version__
    assert lines["torch"] == torch.__version__
    assert lines["tier"].startswith(_C.cpu_tier())
    assert all(tier in lines["tier"] for tier in _C.cpu_tiers_available())
    assert lines["threads"].startswith(f"{torch.get_num_threads()} of ")
    assert {"GPUs", "triton", "usearch", "[demo]", "[bench]", "[dev]"} <= set(lines)
    assert lines["[demo]"] == "ready" or lines["[demo]"].startswith("missing ")


def test_info_says_how_to_install_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(info, "_extras", lambda: {"demo": ["numpy", "no-such-thing"]})
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "missing no-such-thing: pip install 'mmfast[demo]'" in shown


def test_a_forced_tier_is_shown_and_an_unknown_one_refused() -> None:
    def info(tier: str) -> str:
        command, environment = [sys.executable, "-m", "mmfast.cli", "info"], {**os.environ, "MMFAST_CPU_TIER": tier}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert "portable (MMFAST_CPU_TIER), available:" in info("portable")
    assert re.search(r"MMFAST_CPU_TIER must be one of .*portable.*, got 'mmx'", info("mmx"))
    command, environment = [sys.executable, "-m", "mmfast.cli", "demo"], {**os.environ, "MMFAST_CPU_TIER": "mmx"}
    refused = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("mmfast demo: MMFAST_CPU_TIER must be one of")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS)])
def test_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: mmfast")


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["info", "--no-such-option"], ["--vers"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: mmfast" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--epoch", "1"],
        ["train", "m.csv", "--ou", "x"],
        ["search", "x", "y", "--dra", "z.png"],
        ["bench", "x.json", "--ou", "y"],
        ["index", "build", "x", "v.npy", "--batc", "3"],
    ],
)
def test_abbreviations_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert re.search(r"unrecognized arguments: --|the following arguments are required: --out", capsys.readouterr().err)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] in ("rich", "PIL") or "demo" in name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cli.main(["demo"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("mmfast demo needs ")
    assert "pip install 'mmfast[demo]'" in message


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["info"], ["index", "search", "--help"]])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: list[str], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as head does, here before the first line
    command = [sys.executable, "-m", "mmfast.cli", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(command, check=False, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert ended.stderr == ""
    assert ended.returncode in (0, 1)  # argparse itself passes over help that cannot be written


def test_commands_to_copy_begin_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "mmfast"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    for path, typed, expected in (
        (str(tmp_path), str(installed), "mmfast"),  # as the shell finds it
        (str(tmp_path), ".venv/bin/mmfast", ".venv/bin/mmfast"),  # another one
        (os.devnull, ".venv/bin/mmfast", ".venv/bin/mmfast"),
        (os.devnull, "/site-packages/mmfast/cli.py", "mmfast"),
    ):
        monkeypatch.setenv("PATH", path)
        monkeypatch.setattr(sys, "argv", [typed])
        assert cli.program() == expected
