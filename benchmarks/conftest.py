"""Prints and stores the hardware with the results, since a time without its machine says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.machine import command_line, describe


def pytest_report_header(config: pytest.Config) -> str:
    return "machine: " + ", ".join(f"{name} {value}" for name, value in describe().items())


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mmfast"] = {**describe(), "command": command_line()}
