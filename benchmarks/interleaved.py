"""The ratios: every provider in turn, round after round, in one process with one number of threads.

A slow minute of the machine then meets all of them alike. Each round starts with another provider, so that none always
runs on the caches its predecessor left. One fp32 ``X @ X.T`` runs along: what any program that forms the distances by
a matrix product must take at least.

    python -m benchmarks.interleaved --rows 512 4096 --features 256 --density sparse half --json out/interleaved.json
    python -m benchmarks.interleaved --preset readme --json out/readme.json
    python -m benchmarks.interleaved --preset cpu --json out/cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data import DENSITIES, EMBEDDINGS_VARIABLE, Exact, Problem, exact, make_problem
from benchmarks.machine import command_line, dense_bytes, dense_flops, describe, peak_extra_memory
from benchmarks.providers import (
    EVERY,
    OURS,
    PROVIDERS,
    WITHOUT_PRUNING,
    Errors,
    Step,
    UnavailableError,
    check,
    set_up,
)

YARDSTICK = "X @ X.T"
FORMAT = "mmfast.interleaved/1"  # read by `mmfast bench`

ROUND_SECONDS = 0.02  # a shorter step is repeated within a round
SLOW_SECONDS = 8.0  # what one provider may take of one case; then it has fewer rounds, down to MIN_ROUNDS
MIN_ROUNDS = 2
PLAIN_WIDTH = 140


class Case(NamedTuple):
    rows: int
    features: int
    density: str
    providers: tuple[str, ...] = tuple(PROVIDERS)
    memory: bool = True


WITHOUT_KEOPS = tuple(name for name in PROVIDERS if name != "keops")  # its time does not depend on the density
README = [
    *(Case(rows, 256, "sparse") for rows in (512, 1024, 2048, 4096, 8192)),
    *(Case(4096, 256, density, WITHOUT_KEOPS, memory=False) for density in ("separated", "tenth", "half", "full")),
    Case(32768, 128, "sparse", (OURS,)),
]
# The engine alone, over all that decides its time: rows, features, density, and pruning.
BESIDE_EAGER = [
    *(Case(rows, 128, "sparse") for rows in (32, 64, 128, 256, 2048)),
    Case(8192, 512, "sparse"),
    *([Case(8192, 384, "embeddings")] if EMBEDDINGS_VARIABLE in os.environ else []),
    *(Case(4096, 256, density) for density in ("tenth", "half", "full")),
    *(Case(rows, features, "half") for rows, features in ((128, 128), (512, 256), (1024, 1024))),
]
WITH_AND_WITHOUT_PRUNING = [
    *(Case(rows, 256, density) for density in ("sparse", "separated") for rows in (1024, 2048, 8192, 16384)),
    Case(4096, 256, "separated"),
    Case(65536, 256, "separated"),
]
CPU = [
    *(case._replace(providers=(OURS, "eager"), memory=False) for case in BESIDE_EAGER),
    *(case._replace(providers=(OURS, WITHOUT_PRUNING), memory=False) for case in WITH_AND_WITHOUT_PRUNING),
    Case(4096, 256, "sparse", (OURS, "eager", WITHOUT_PRUNING), memory=False),
]
PRESETS = {"readme": README, "cpu": CPU}
YARDSTICK_MAX_ROWS = 32768  # 4 GB


CaseT = TypeVar("CaseT")


class Contestant(NamedTuple):
    """A step that is set up, checked and warm."""

    name: str
    step: Step
    rounds: int
    repeats: int  # steps per round
    errors: Errors | None  # None: the yardstick


def line_up(problem: Problem, truth: Exact, names: Sequence[str], rounds: int) -> tuple[list[Contestant], list[str]]:
    """Set up and check the providers; return those that run and the reasons of those that do not."""
    contestants, reasons = [], []
    for name in names:
        try:
            step = set_up(EVERY[name], problem)
        except UnavailableError as reason:
            reasons.append(str(reason))
            continue
        start = time.perf_counter()
        result = step()
        seconds = time.perf_counter() - start
        contestants.append(_contestant(name, step, seconds, rounds, check(name, result, truth)))
    embeddings = problem.embeddings
    if problem.rows > YARDSTICK_MAX_ROWS:
        return contestants, reasons

    def product() -> tuple[torch.Tensor, torch.Tensor]:
        return embeddings, embeddings @ embeddings.T

    return [*contestants, _contestant(YARDSTICK, product, _seconds(product, 1), rounds, None)], reasons


def _contestant(name: str, step: Step, seconds: float, rounds: int, errors: Errors | None) -> Contestant:
    """Plan the rounds by the first step's time, or the second's where the first is mostly warming up."""
    if seconds < 1:
        seconds = _seconds(step, 1)
    repeats = max(1, round(ROUND_SECONDS / seconds))
    affordable = int(SLOW_SECONDS / (seconds * repeats))
    return Contestant(name, step, min(rounds, max(MIN_ROUNDS, affordable)), repeats, errors)


def run_rounds(contestants: Sequence[Contestant], rounds: int) -> dict[str, list[float]]:
    """Return each contestant's seconds per step, one figure for each of its rounds."""
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds):
        first = turn % len(contestants)
        for contestant in [*contestants[first:], *contestants[:first]]:
            if turn < contestant.rounds:
                seconds[contestant.name].append(_seconds(contestant.step, contestant.repeats))
    return seconds


def _seconds(step: Step, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def measure(case: Case, rounds: int, memory: bool, console: Console) -> list[dict[str, Any]]:
    """Return one record per provider, the yardstick last."""
    problem = make_problem(case.density, case.rows, case.features)
    truth = exact(problem)
    asked = [EVERY[name] for name in case.providers]
    fitting = [provider.name for provider in asked if case.rows <= provider.max_rows]
    contestants, reasons = line_up(problem, truth, fitting, rounds)
    for provider in (provider for provider in asked if provider.name not in fitting):
        reasons.append(f"{provider.name}: at most {provider.max_rows} rows ({provider.why_max})")
    for reason in reasons:
        console.print(f"left out, {reason}", style="dim", highlight=False)
    seconds = run_rounds(contestants, rounds)
    common = {
        "rows": case.rows,
        "features": case.features,
        "density": case.density,
        "active": truth.active,
        "margin": problem.margin,
        "threads": torch.get_num_threads(),
        "dense_flops": dense_flops(case.rows, case.features),
        "dense_bytes": dense_bytes(case.rows, case.features),
    }
    return [
        {
            "provider": contestant.name,
            **common,
            "best": min(seconds[contestant.name]),
            "median": statistics.median(seconds[contestant.name]),
            "rounds": contestant.rounds,
            "loss_error": contestant.errors.loss if contestant.errors else None,
            "gradient_error": contestant.errors.gradient if contestant.errors else None,
            "peak_bytes": _peak(contestant, case) if memory else None,
        }
        for contestant in contestants
    ]


def _peak(contestant: Contestant, case: Case) -> int | None:
    provider = PROVIDERS.get(contestant.name)
    return peak_extra_memory(provider, case.density, case.rows, case.features) if provider else None


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Return the case's table; the ratios say how many times as long as mmfast the row takes."""
    first = records[0]
    title = f"B={first['rows']} D={first['features']} {first['density']}: {first['active']:.2%} of the negatives active"
    result = Table(title=title, title_justify="left", title_style="bold")
    result.add_column("", no_wrap=True)
    for name in ("best ms", "median ms", "÷ mmfast, best", "median", "rounds", "error of loss", "gradient", "peak MB"):
        result.add_column(name, justify="right", no_wrap=True)
    ours = next((record for record in records if record["provider"] == OURS), None)
    for record in records:
        ratios = [f"{record[key] / ours[key]:.2f}" if ours else "" for key in ("best", "median")]
        errors = [f"{record[key]:.0e}" if record[key] is not None else "" for key in ("loss_error", "gradient_error")]
        peak = f"{record['peak_bytes'] / 1e6:.1f}" if record["peak_bytes"] is not None else ""
        times = [f"{record[key] * 1e3:.3f}" for key in ("best", "median")]
        style = "bold" if record["provider"] == OURS else "dim" if record["provider"] == YARDSTICK else ""
        result.add_row(record["provider"], *times, *ratios, str(record["rounds"]), *errors, peak, style=style)
    return result


def summary(records: Sequence[dict[str, Any]]) -> Table:
    """Return one line per case: our time, and every other's best time divided by our best."""
    names = [name for name in (*EVERY, YARDSTICK) if any(record["provider"] == name for record in records)]
    others = [name for name in names if name != OURS]
    result = Table("B × D", "data", "active", "mmfast ms", *(f"{name} ÷" for name in others), title="best ÷ our best")
    cases: dict[tuple[int, int, str], dict[str, dict[str, Any]]] = {}
    for record in records:
        key = (record["rows"], record["features"], record["density"])
        cases.setdefault(key, {})[record["provider"]] = record
    for (rows, features, density), found in cases.items():
        ours = found[OURS]
        ratios = [f"{found[name]['best'] / ours['best']:.2f}" if name in found else "–" for name in others]
        result.add_row(f"{rows} × {features}", density, f"{ours['active']:.2%}", f"{ours['best'] * 1e3:.2f}", *ratios)
    return result


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.interleaved", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--preset", choices=list(PRESETS), help="cases of this file, instead of the next three")
    parser.add_argument("--rows", type=int, nargs="+", default=[2048], metavar="B")
    parser.add_argument("--features", type=int, nargs="+", default=[256], metavar="D")
    parser.add_argument("--density", nargs="+", default=["sparse"], choices=list(DENSITIES), help=" | ".join(DENSITIES))
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="at most; slow providers have fewer")
    parser.add_argument("--providers", metavar="A,B", help=f"some of: {','.join(EVERY)}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, a process per provider")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the results, for `mmfast bench`")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    names = args.providers.split(",") if args.providers else list(EVERY)
    if unknown := [name for name in names if name not in EVERY]:
        parser.error(f"no provider is called {', '.join(unknown)}; there are: {', '.join(EVERY)}")
    if args.preset is None:
        cases = [Case(b, d, density) for density in args.density for d in args.features for b in args.rows]
    else:
        cases = PRESETS[args.preset]
    kept = [case._replace(providers=tuple(name for name in case.providers if name in names)) for case in cases]
    args.cases = [case for case in kept if case.providers]
    return args


def make_console() -> Console:
    """Return a console that cuts no columns off where the output is a pipe or a file."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def measure_all(
    console: Console,
    machine: dict[str, Any],
    cases: Sequence[CaseT],
    measure_one: Callable[[CaseT], list[dict[str, Any]]],
    table_of: Callable[[Sequence[dict[str, Any]]], Table],
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """Measure case by case, printing each one's table; return all records.

    Those so far are given to ``keep`` after each case, so that none is lost if a later one fails.
    """
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    records: list[dict[str, Any]] = []
    for case in cases:
        found = measure_one(case)
        console.print(table_of(found))
        records += found
        keep(records)
    return records


def write(path: Path, form: str, machine: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Write what was measured, with the command and the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": form, "command": command_line(), "machine": machine, "results": records}
    path.write_text(json.dumps(content, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases asked for, print their tables, write the JSON file."""
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    console, machine = make_console(), describe()

    def measure_one(case: Case) -> list[dict[str, Any]]:
        return measure(case, args.rounds, case.memory and not args.no_memory, console)

    def keep(records: list[dict[str, Any]]) -> None:
        if args.json:
            write(args.json, FORMAT, machine, records)

    records = measure_all(console, machine, args.cases, measure_one, table, keep)
    if any(record["provider"] == OURS for record in records):
        console.print(summary(records))
    if args.json:
        console.print(f"wrote {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
