"""The loss on a GPU beside everything a user would pick there: time and peak memory, by B, D, density and dtype.

As in :mod:`benchmarks.interleaved`, every provider computes the result once, which is compared with float64 before any
is timed; then all of them run in turn, in one process. Times are those of the device, synchronised at either end.

    python -m benchmarks.gpu --json out/gpu.json
    python -m benchmarks.gpu --rows 16384 --features 512 --density sparse half --dtype bfloat16
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.data import DENSITIES, Problem, exact, make_problem
from benchmarks.interleaved import Contestant, make_console, measure_all, run_rounds, write
from benchmarks.machine import describe
from benchmarks.providers import (
    PROVIDERS,
    Loss,
    Provider,
    Result,
    Step,
    UnavailableError,
    WrongResultError,
    check,
    set_up,
)

FORMAT = "mmfast.gpu/1"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUND_SECONDS = 0.05
SLOW_SECONDS = 5.0  # what one provider may take of one case
CHUNK_ROWS = 2048


class Case(NamedTuple):
    rows: int
    features: int
    density: str
    dtype: str


CASES = [
    *(Case(rows, 512, "sparse", dtype) for rows in (16384, 131072) for dtype in DTYPES),
    *(Case(16384, 512, density, dtype) for density in ("half", "tenth", "separated") for dtype in DTYPES),
    *(Case(rows, 512, "sparse", dtype) for rows in (4096, 1024) for dtype in DTYPES),
    *(Case(16384, features, "sparse", "float32") for features in (128, 2048)),
]


class _Chunked(torch.autograd.Function):
    """Products by the vendor's library for some rows at a time, and PyTorch's element-wise operations between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, labels: Tensor, margin: float) -> Tensor:
        squares = x.float().square().sum(dim=1)
        gradient = torch.empty_like(x)
        loss = squares.new_zeros(())
        for rows in torch.arange(len(x), device="cpu").split(CHUNK_ROWS):
            chunk = slice(int(rows[0]), int(rows[-1]) + 1)
            d2 = (squares[chunk, None] + squares[None, :] - 2 * (x[chunk] @ x.T)).clamp(min=0)
            same = labels[chunk, None] == labels[None, :]
            loss += torch.where(same, d2, (margin - d2).relu()).sum()
            weight = same.to(x.dtype) - (~same & (d2 < margin)).to(x.dtype)
            gradient[chunk] = 4 * (weight.float().sum(dim=1, keepdim=True).to(x.dtype) * x[chunk] - weight @ x)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return (loss_gradient * gradient).to(gradient.dtype), None, None


def _chunked(problem: Problem) -> Loss:
    return lambda x: _Chunked.apply(x, problem.labels, problem.margin)


CAPTURED = "mmfast, CUDA graph"
CHUNKED = Provider("chunked", _chunked, 1 << 18, "a million rows take minutes")
OURS = ("mmfast", CAPTURED)
CONTESTANTS = [PROVIDERS["mmfast"], PROVIDERS["mmfast"]._replace(name=CAPTURED)]
CONTESTANTS += [*(PROVIDERS[name] for name in ("eager", "cdist", "torch.compile")), CHUNKED]
CONTESTANTS += [PROVIDERS[name]._replace(max_rows=1 << 17) for name in ("pytorch-metric-learning", "keops")]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_device(step: Step, device: torch.device) -> Callable[[], Any]:
    """Return the step as one that ends when the device is done."""

    def run() -> Any:
        result = step()
        synchronise(device)
        return result

    return run


def capture(step: Step, device: torch.device) -> Step:
    """Return the step as the replay of a CUDA graph, which takes no time of the host for each of its kernels."""
    if device.type != "cuda":
        raise UnavailableError(f"{CAPTURED}: there is none on {device}")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def measure(case: Case, device: torch.device, rounds: int, console: Console) -> list[dict[str, Any]]:
    """Check and time every provider that can run; one record each."""
    made = make_problem(case.density, case.rows, case.features)
    rows = made.embeddings.to(device, DTYPES[case.dtype])
    problem = made._replace(embeddings=rows, labels=made.labels.to(device))
    truth = exact(problem)
    contestants: list[Contestant] = []
    peaks: dict[str, int | None] = {}
    for provider in CONTESTANTS:
        if provider.name == "keops" and rows.dtype == torch.bfloat16:
            console.print("left out, keops: it has no bfloat16", style="dim", highlight=False)
            continue
        try:
            step = set_up(provider, problem)
            step = on_device(capture(step, device) if provider.name == CAPTURED else step, device)
            start = time.perf_counter()
            errors = check(provider.name, step(), truth, exact_dtype=case.dtype == "float32")
            # A graph holds its memory from when it was captured.
            peaks[provider.name] = None if provider.name == CAPTURED else _peak(step, device)
            start = time.perf_counter()
            step()
        except (UnavailableError, WrongResultError, torch.OutOfMemoryError) as reason:
            if isinstance(reason, WrongResultError) and provider.name in OURS:
                raise
            console.print(f"left out, {str(reason).splitlines()[0]}", style="dim", highlight=False)
            continue
        seconds = time.perf_counter() - start
        repeats = max(1, round(ROUND_SECONDS / seconds))
        affordable = max(2, int(SLOW_SECONDS / (seconds * repeats)))
        contestants.append(Contestant(provider.name, step, min(rounds, affordable), repeats, errors))
    times = run_rounds(contestants, rounds)
    return [
        {
            "provider": c.name,
            **case._asdict(),
            "active": truth.active,
            "margin": problem.margin,
            "best": min(times[c.name]),
            "median": statistics.median(times[c.name]),
            "loss_error": c.errors.loss if c.errors else None,
            "gradient_error": c.errors.gradient if c.errors else None,
            "peak_bytes": peaks[c.name],
        }
        for c in contestants
    ]


def _peak(step: Step, device: torch.device) -> int | None:
    """Return by how much one step raises the memory that PyTorch has allocated; None where it does not count."""
    if device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the case's table; the ratio says how many times as long as mmfast a provider takes."""
    first = records[0]
    title = f"B={first['rows']} D={first['features']} {first['dtype']} {first['density']}: {first['active']:.2%} active"
    result = Table(title=title, title_justify="left", title_style="bold")
    result.add_column("", no_wrap=True)
    for name in ("best ms", "median ms", "÷ mmfast, best", "error of loss", "gradient", "peak MB"):
        result.add_column(name, justify="right", no_wrap=True)
    ours = next((r["best"] for r in records if r["provider"] == "mmfast"), None)
    for r in records:
        ratio = f"{r['best'] / ours:.2f}" if ours else ""
        peak = f"{r['peak_bytes'] / 1e6:.0f}" if r["peak_bytes"] is not None else ""
        times = [f"{r[key] * 1e3:.3f}" for key in ("best", "median")]
        result.add_row(r["provider"], *times, ratio, f"{r['loss_error']:.0e}", f"{r['gradient_error']:.0e}", peak)
    return result


def markdown(machine: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """Return times, then memory, one row for each case and one column for each provider."""
    of = {(Case(*(r[field] for field in Case._fields)), r["provider"]): r for r in records}
    cases, names = list(dict.fromkeys(case for case, _ in of)), list(dict.fromkeys(name for _, name in of))
    head = ["B × D", "dtype", "active", *names]
    lines = [", ".join(f"{name} {value}" for name, value in machine.items() if value != ""), ""]
    for title, unit in (("Loss and gradient, best of several rounds, ms", "best"), ("Peak memory, MB", "peak_bytes")):
        lines += [f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for case in cases:
            found = [of.get((case, name)) for name in names]
            active = next(r["active"] for r in found if r)
            cells = ["" if r is None or r[unit] is None else _cell(r[unit], unit) for r in found]
            shown = [f"{case.rows:,} × {case.features}", case.dtype, f"{active:.2%} ({case.density})", *cells]
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: float, unit: str) -> str:
    return f"{value * 1e3:.2f}" if unit == "best" else f"{value / 1e6:,.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases asked for, print their tables, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", metavar="B", help="else the cases of this file")
    parser.add_argument("--features", type=int, nargs="+", default=[512], metavar="D")
    parser.add_argument("--density", nargs="+", default=["sparse"], choices=list(DENSITIES))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="at most; slow providers have fewer")
    parser.add_argument("--device", default="cuda", help="cpu checks that this program runs")
    parser.add_argument("--json", type=Path, metavar="PATH")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu checks that this program runs")
    cases = CASES
    if args.rows:
        cases = [Case(b, d, s, t) for t in args.dtype for s in args.density for d in args.features for b in args.rows]
    console = make_console()
    machine = describe() | {"gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else "none"}

    def keep(records: list[dict[str, Any]]) -> None:
        if args.json:
            write(args.json, FORMAT, machine, records)
            args.json.with_suffix(".md").write_text(markdown(machine, records))

    measure_all(console, machine, cases, lambda case: measure(case, device, args.rounds, console), table, keep)
    if args.json:
        console.print(f"wrote {args.json} and {args.json.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
