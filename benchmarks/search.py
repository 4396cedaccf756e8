"""Our index beside everything a user would pick for searching vectors: recall against queries per second.

    python -m benchmarks.search --json out/search.json
    python -m benchmarks.search --data glove-100-angular.hdf5 --k 10 --json out/glove.json
    python -m benchmarks.search --rows 20000 --ndim 128 --only mmfast,usearch,faiss-flat --no-memory

Prints tables, and with --json also writes them (.md) and the plot (.png, .svg) beside the file. A result counts as
found if its distance, in float64, is that of the k-th neighbour or less.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.interleaved import make_console
from benchmarks.machine import command_line, describe
from benchmarks.providers import OURS, UnavailableError
from benchmarks.search_data import METRICS, Data, DataError, load, synthetic
from benchmarks.search_peers import Peer, build, make_peers
from benchmarks.search_plot import draw
from benchmarks.search_run import Case, measure, memory
from benchmarks.search_tables import markdown
from benchmarks.search_truth import exact, recall

FORMAT = "mmfast.search/1"
ROWS, NDIM = 100_000, 256  # of the synthetic set
ALLOWED = (0.5, 0.1, 0.01, 0.001)
MIN_AGREEMENT = 0.99  # of the file's neighbours with ours: other sets break ties in other ways


def make_data(args: argparse.Namespace) -> Data:
    """Return what the arguments ask for."""
    if args.data is None and args.metric not in (None, "cos"):
        raise DataError("the synthetic set has unit rows, for the metric cos alone; give a file with --data")
    if args.data is not None and args.ndim is not None:
        raise DataError("--ndim is for the synthetic set; a file has the features it has")
    if args.data is None:
        data = synthetic(args.rows or ROWS, args.ndim or NDIM, args.queries, args.seed)
    else:
        data = load(args.data, args.rows, args.queries, args.metric, args.seed)
    if args.k > len(data.rows):
        raise DataError(f"--k must be at most the number of rows, {len(data.rows):,}, got {args.k}")
    return data


def make_cases(peers: Sequence[Peer], data: Data, k: int, filters: bool, seed: int) -> list[Case]:
    """Return every setting of every peer over all rows, and every second one over the allowed rows of each filter."""
    truth = exact(data, k)
    if data.neighbours is not None and data.neighbours.shape[1] >= k:
        agreement = recall(data, truth, data.neighbours[:, :k])
        if agreement < MIN_AGREEMENT:
            raise DataError(f"of the neighbors in {data.name} only {agreement:.1%} are nearest under {data.metric}")
    cases = [Case(peer, setting, truth) for peer in peers for setting in peer.settings(k)]
    filtering = [peer for peer in peers if peer.filters]
    if not filters or not filtering:
        return cases
    places = np.random.default_rng(seed).permutation(len(data.rows))
    for allowed in ALLOWED:
        where = places < max(1, round(allowed * len(data.rows)))
        truth = exact(data, k, where)
        cases += [Case(p, setting, truth, allowed, where) for p in filtering for setting in p.settings(k)[::2]]
    return cases


def build_all(
    peers: Sequence[Peer], data: Data, threads: int, with_memory: bool, console: Console
) -> tuple[list[Peer], list[dict[str, Any]], list[str]]:
    """Return the peers that run here, their time and memory, and the reasons of the others."""
    built, builds, left_out = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        if with_memory:
            np.save(path, data.rows)
        for peer in peers:
            start = time.perf_counter()
            try:
                build(peer, data.rows, data.metric, threads)
            except UnavailableError as reason:
                left_out.append(str(reason))
                console.print(f"left out, {reason}", style="dim", highlight=False)
                continue
            seconds = time.perf_counter() - start
            held = memory(peer.name, path, data.metric, threads) if with_memory else None
            console.print(f"built {peer.name} in {seconds:.1f} s", style="dim", highlight=False)
            built.append(peer)
            builds.append({"provider": peer.name, "why": peer.why, "seconds": seconds, "memory_bytes": held})
    return built, builds, left_out


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed by pip"


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, metavar="FILE", help=".hdf5 of ann-benchmarks, .fvecs or .npy")
    parser.add_argument("--rows", type=int, metavar="N", help=f"at most, of a file; synthetic: {ROWS:,}")
    parser.add_argument("--ndim", type=int, metavar="D", help=f"synthetic: {NDIM}")
    parser.add_argument("--queries", type=int, default=2048, metavar="Q", help="in a batch (default: 2048)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--metric", choices=METRICS, help="of .fvecs and .npy (default: cos)")
    parser.add_argument("--k", type=int, default=10, help="neighbours (default: 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="at most; slow settings have fewer")
    parser.add_argument("--only", metavar="A,B", help=f"some of {','.join(make_peers())}, or what they begin with")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory, a process per index")
    parser.add_argument("--no-filters", action="store_true")
    parser.add_argument("--json", type=Path, metavar="PATH", help="where to write the results, tables and plot")
    args = parser.parse_args(arguments)
    for name in ("rows", "ndim", "queries", "k", "threads", "rounds"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    every = make_peers()
    asked = args.only.split(",") if args.only else list(every)
    chosen = {name: [peer for peer in every if peer == name or peer.startswith(f"{name}-")] for name in asked}
    if unknown := [name for name, found in chosen.items() if not found]:
        parser.error(f"no provider is called {', '.join(unknown)}; there are: {', '.join(every)}")
    args.peers = [peer for name, peer in every.items() if any(name in found for found in chosen.values())]
    return parser, args


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check and time what was asked for; print the tables, write the files."""
    parser, args = _parse(arguments)
    torch.set_num_threads(args.threads)
    console, machine = make_console(), describe()
    machine |= {peer.package: _version(peer.package) for peer in args.peers if peer.name != OURS}
    try:
        data = make_data(args)
        console.print(f"{data.name}, {data.metric}", highlight=False)
        built, builds, left_out = build_all(args.peers, data, args.threads, not args.no_memory, console)
        cases = make_cases(built, data, args.k, not args.no_filters, args.seed)
    except DataError as error:
        parser.error(str(error))
    console.print(f"{len(cases)} settings, at most {args.rounds} rounds", style="dim", highlight=False)
    content = {
        "format": FORMAT,
        "command": command_line(),
        "machine": machine,
        "data": {"name": data.name, "metric": data.metric, "k": args.k, "queries": len(data.queries)},
        "builds": builds,
        "left_out": left_out,
        "results": measure(cases, data, args.k, args.threads, args.rounds),
    }
    tables = markdown(content)
    console.print(tables, markup=False, highlight=False, soft_wrap=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")
        args.json.with_suffix(".md").write_text(tables, encoding="utf-8")
        for path in [args.json, args.json.with_suffix(".md"), *draw(content, args.json.with_suffix(""))]:
            console.print(f"wrote {path}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
