"""What a figure needs to mean something: the machine, the model of the work, and the peak memory.

Peak memory is measured in a process of its own, by the kernel: allocators of several libraries are at work, and only
the resident set sees all of them. Called as ``python -m benchmarks.machine PROVIDER DENSITY ROWS FEATURES THREADS``,
this module is that process.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import torch

import mmfast
from benchmarks.data import make_problem
from benchmarks.providers import PROVIDERS, Provider, set_up
from mmfast import _C
from mmfast.search.freed import return_freed_memory

ROOT = Path(__file__).resolve().parent.parent
WARM_UP_ROWS = 64  # loads every library and starts the threads, while its B × B matrices are 16 kB


def dense_flops(rows: int, features: int) -> int:
    """Return the arithmetic of a dense algorithm: one product for the distances, two for the gradient of XXᵀ."""
    return 6 * rows**2 * features


def dense_bytes(rows: int, features: int) -> int:
    """Return the least traffic of a dense fp32 algorithm: X read twice, gradient written, d² and dL/dd² both ways."""
    return 4 * (3 * rows * features + 4 * rows**2)


def describe() -> dict[str, str | int]:
    """Return what the figures depend on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "tier": _C.cpu_tier(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load": f"{os.getloadavg()[0]:.2f}",  # one minute's, before the run: near 0 on an idle machine
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mmfast": mmfast.__version__,
        "commit": _commit(),
    }


def command_line() -> str:
    """Return the command that this process was started with, as one would type it again."""
    program, arguments = sys.argv[0], sys.argv[1:]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(program).name]
    return shlex.join([*words, *arguments])


def peak_extra_memory(provider: Provider, density: str, rows: int, features: int) -> int:
    """Return by how many bytes one step raises the resident set of a fresh process that already holds the inputs."""
    command = [sys.executable, "-m", "benchmarks.machine", provider.name, density, str(rows), str(features)]
    done = subprocess.run(
        [*command, str(torch.get_num_threads())], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def _measure_peak(provider: Provider, density: str, rows: int, features: int) -> int:
    """Measure in this process: libraries loaded and code compiled first, both by set_up and a small warm-up."""
    set_up(provider, make_problem("separated", WARM_UP_ROWS, features))()
    step = set_up(provider, make_problem(density, rows, features))
    gc.collect()
    return_freed_memory()  # or the step uses it unseen
    before = _reset_peak()
    step()
    return _peak() - before


def _reset_peak() -> int:
    """Lower the kernel's high-water mark to the present resident set and return it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
    except OSError:  # elsewhere the mark cannot be lowered: making the inputs counts as held before
        return _peak()
    return status("VmRSS")


def _peak() -> int:
    if Path("/proc/self/status").exists():
        return status("VmHWM")
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(match[1]) * 1024


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _commit() -> str:
    """Return the commit measured, marked where the tree differs from it; empty outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def main(arguments: list[str]) -> None:
    """Print the peak of one step; see the module's docstring for the arguments."""
    name, density, rows, features, threads = arguments
    torch.set_num_threads(int(threads))
    print(_measure_peak(PROVIDERS[name], density, int(rows), int(features)))


if __name__ == "__main__":
    main(sys.argv[1:])
