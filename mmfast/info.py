"""``mmfast info``: what this installation is made of and what it would run on, for bug reports and first checks."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
from importlib import metadata

import torch

import mmfast
from mmfast import _C, backends
from mmfast.cli import print_facts

_CORE = ("torch", "numpy", "usearch")
_MODULES = {
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "pytest-xdist": "xdist",
}  # distributions whose module has another name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There is nothing to choose."""


def run(args: argparse.Namespace) -> int:
    """Print one line per fact."""
    facts = {
        "mmfast": mmfast.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        **{name: _version(name) for name in _CORE},
        "processor": _processor(),
        "CPU tier": _tiers(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors (torch.set_num_threads changes it)",
        "GPUs": _gpus(),
        "backend": _backends(),
        "triton": _version("triton"),
        **{f"[{extra}]": _extra(extra, needed) for extra, needed in _extras().items() if extra != "triton"},
    }
    print_facts(facts)
    return 0


def _version(distribution: str) -> str:
    if importlib.util.find_spec(_MODULES.get(distribution, distribution.replace("-", "_"))) is None:
        return "not installed"
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "importable, version unknown"


def _tiers() -> str:
    try:
        chosen = _C.cpu_tier()
    except ValueError as error:  # every loss would say the same; here the other facts are still wanted
        return str(error)
    forced = " (MMFAST_CPU_TIER)" if os.environ.get("MMFAST_CPU_TIER") else ""
    return f"{chosen}{forced}, available: {', '.join(_C.cpu_tiers_available())}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _backends() -> str:
    """Say what would compute tensors of the CPU and of a GPU, and why."""

    def chosen(device: str) -> str:
        try:
            return backends.backend(torch.device(device))
        except (ImportError, NotImplementedError, ValueError) as error:
            return f"none ({error})"

    cpu = chosen("cpu")
    gpu = chosen("cuda") if torch.cuda.is_available() or backends.forced else "none (torch sees no GPU)"
    why = f" ({backends.VARIABLE}={backends.forced})" if backends.forced else ""
    if gpu == "triton" and torch.cuda.is_available():
        from mmfast.kernels.configs import architecture

        gpu += f" with the blocks of {architecture(torch.empty(0, device='cuda'))}"
    return f"tensors on the CPU: {cpu}; on a GPU: {gpu}{why}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
            names = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    except OSError:  # not Linux
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _extras() -> dict[str, list[str]]:
    """Read each extra's distributions from the installed metadata, so that pyproject.toml stays the only list."""
    extras: dict[str, list[str]] = {name: [] for name in metadata.metadata("mmfast").get_all("Provides-Extra") or []}
    for requirement in metadata.requires("mmfast") or []:
        found = re.match(r"([A-Za-z0-9._-]+).*extra == ['\"]([A-Za-z0-9_-]+)['\"]", requirement)
        if found and found[1] != "mmfast":
            extras[found[2]].append(found[1])
    return extras


def _extra(extra: str, needed: list[str]) -> str:
    missing = [name for name in needed if _version(name) == "not installed"]
    return f"missing {', '.join(missing)}: pip install 'mmfast[{extra}]'" if missing else "ready"
