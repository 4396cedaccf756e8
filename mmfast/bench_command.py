"""``mmfast bench FILE.json``: plots and a table of what the benchmarks measured.

Reads what ``make bench`` writes (pytest-benchmark) and what ``python -m benchmarks.interleaved --json`` writes. The
lines of a plot are named at their ends and no colour says anything alone, so that the plots can be read small, in
grey, and by the colour-blind. The plots use matplotlib's objects and not pyplot: no global state, no display.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from mmfast.cli import UserError

OURS = "mmfast"
YARDSTICK = "X @ X.T"
QUADRATIC = "∝ B²"
INTERLEAVED = "mmfast.interleaved/1"

# Okabe and Ito's palette, told apart with every common colour blindness; ours is its darkest on white.
STYLES = {
    OURS: ("#000000", "o"),
    "eager": ("#D55E00", "s"),
    "torch.compile": ("#0072B2", "^"),
    "cdist": ("#009E73", "D"),
    "pytorch-metric-learning": ("#CC79A7", "v"),
    "keops": ("#E69F00", "P"),
    "double loop": ("#56B4E9", "X"),
    "mmfast without pruning": ("#666666", "o"),
    YARDSTICK: ("#777777", ""),
    QUADRATIC: ("#777777", ""),
    "sparse": ("#000000", "o"),
    "separated": ("#0072B2", "^"),
}
OTHERS = ("#999999", "*")
SIZE = (8.0, 4.8)  # inches; at DPI 200 the README shows it at half its pixels
DPI = 200
LEFT = 0.085  # where titles and axes begin, as a share of the width
LABEL_GAP = 0.052  # least distance of two labels, as a share of the axes' height
TIME, MEMORY = "milliseconds per step, median", "megabytes"


class Measurement(NamedTuple):
    """One provider on one batch."""

    provider: str
    rows: int
    features: int
    density: str  # the data's name
    active: float  # share of the negatives that are active
    best: float  # seconds per step
    median: float
    loss_error: float | None  # relative to float64
    gradient_error: float | None
    peak_bytes: int | None  # beyond the inputs


class Results(NamedTuple):
    measurements: list[Measurement]
    command: str
    machine: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``mmfast bench``."""
    parser.add_argument(
        "file", type=Path, metavar="FILE.json", help="what `make bench` or benchmarks.interleaved wrote"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: FILE without its ending)")


def run(args: argparse.Namespace) -> int:
    """Draw every plot that the file has figures for, and write results.md."""
    results = read(args.file)
    folder = args.out or args.file.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [path for name, figure in figures(results) for path in save(figure, folder / name)]
        table = folder / "results.md"
        table.write_text(markdown(results), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    for path in [*written, table]:
        print(path)
    return 0


def read(path: Path) -> Results:
    """Return the measurements of a file of either kind, ordered by batch and provider."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; `make bench` writes out/bench.json") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError
        raise UserError(f"{path} is not JSON: {error}") from error
    try:
        if isinstance(content, dict) and content.get("format") == INTERLEAVED:
            results = _from_interleaved(content)
        elif isinstance(content, dict) and "benchmarks" in content and "machine_info" in content:
            results = _from_pytest_benchmark(content)
        else:
            raise UserError(f"{path} holds neither results of `make bench` nor of `python -m benchmarks.interleaved`")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result of mmfast's benchmarks, or is damaged: {error!r}") from error
    if not results.measurements:
        raise UserError(
            f"{path} holds no measurement: was the benchmark interrupted, or run without --benchmark-enable?"
        )
    results.measurements.sort(key=_place_in_table)
    return results


def _place_in_table(m: Measurement) -> tuple[bool, int, int, float, str, int]:
    known = list(STYLES)
    provider = known.index(m.provider) if m.provider in known else len(known)
    return m.density != "sparse", m.features, m.rows, m.active, m.density, provider


def _from_interleaved(content: dict[str, Any]) -> Results:
    measurements = [
        Measurement(**{field: record[field] for field in Measurement._fields}) for record in content["results"]
    ]
    return Results(measurements, content["command"], dict(content["machine"]))


def _from_pytest_benchmark(content: dict[str, Any]) -> Results:
    machine = dict(content["machine_info"]["mmfast"])
    measurements = []
    for benchmark in content["benchmarks"]:
        info, stats = benchmark["extra_info"], benchmark["stats"]
        optional = {field: info.get(field) for field in ("loss_error", "gradient_error", "peak_bytes")}
        required = {field: info[field] for field in ("provider", "rows", "features", "density", "active")}
        measurements.append(Measurement(**required, **optional, best=stats["min"], median=stats["median"]))
    return Results(measurements, machine.pop("command"), machine)


def figures(results: Results) -> Iterable[tuple[str, Figure]]:
    """Yield the name and the drawing of each plot that has at least two points on a line."""
    sweep = _longest(results.measurements, lambda m: (m.density, m.features), lambda m: m.rows)
    data = f"D = {sweep[0].features}, {sweep[0].density} data" if sweep else ""
    if sweep:
        yield "time_over_rows", _over_rows(sweep, lambda m: m.median * 1e3, TIME, f"Loss + gradient, {data}", results)
    held = [m for m in sweep if m.peak_bytes is not None]
    if len({m.rows for m in held}) > 1:
        title = f"Peak memory of loss + gradient beyond the inputs, {data}"
        yield "memory_over_rows", _over_rows(held, lambda m: (m.peak_bytes or 0) / 1e6, MEMORY, title, results)
    growth = [m for m in results.measurements if m.provider == OURS]
    growth = _longest(growth, lambda m: m.features, lambda m: (m.rows, m.density))
    lines = {density for density in (m.density for m in growth) if sum(m.density == density for m in growth) > 2}
    if len(lines) > 1:
        yield "growth", _growth([m for m in growth if m.density in lines], results)
    densities = _longest(results.measurements, lambda m: (m.rows, m.features), lambda m: m.density)
    if densities:
        yield "time_over_density", _over_density(densities, results)


def _longest(
    measurements: Sequence[Measurement], held: Callable[[Measurement], Any], varied: Callable[[Measurement], Any]
) -> list[Measurement]:
    """Return those with one value of ``held`` that have most values of ``varied``; none if that is fewer than two."""
    groups: dict[Any, list[Measurement]] = {}
    for m in measurements:
        groups.setdefault(held(m), []).append(m)
    best = max(groups.values(), key=lambda group: len({varied(m) for m in group}))
    return best if len({varied(m) for m in best}) > 1 else []


def _by_provider(measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for m in measurements:
        found.setdefault(m.provider, []).append(m)
    return found


def _over_rows(
    measurements: Sequence[Measurement], y: Callable[[Measurement], float], unit: str, title: str, results: Results
) -> Figure:
    figure, axes = _canvas(title, unit, results)
    axes.set_xscale("log", base=2)
    rows = sorted({m.rows for m in measurements})
    axes.set_xticks(rows, [f"{row:,}" for row in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rows in the batch, B")
    for name, line in _by_provider(measurements).items():
        line.sort(key=lambda m: m.rows)
        _draw(axes, name, [m.rows for m in line], [y(m) for m in line])
    axes.set_xlim(rows[0] / 1.15, rows[-1] * 1.15)
    _name_lines(axes)
    return figure


def _growth(measurements: Sequence[Measurement], results: Results) -> Figure:
    """Draw our time over the rows for each kind of data, beside what is quadratic."""
    title = f"{OURS}: loss + gradient over the rows, D = {measurements[0].features}"
    named = [m._replace(provider=m.density) for m in measurements]
    first = min(named, key=lambda m: (m.rows, -m.median))
    quadratic = [
        first._replace(provider=QUADRATIC, rows=rows, median=first.median * (rows / first.rows) ** 2)
        for rows in {m.rows for m in named}
    ]
    return _over_rows(named + quadratic, lambda m: m.median * 1e3, TIME, title, results)


def _over_density(measurements: Sequence[Measurement], results: Results) -> Figure:
    first = measurements[0]
    title = f"Loss + gradient over the density of active negatives, B = {first.rows:,}, D = {first.features}"
    figure, axes = _canvas(title, TIME, results)
    shares = {m.density: m.active for m in measurements}
    places = {density: place for place, density in enumerate(sorted(shares, key=lambda density: shares[density]))}
    axes.set_xticks(list(places.values()), [f"{density}\n{_percent(shares[density])}" for density in places])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # less than three decades
    axes.set_xlabel("data, and share of its negatives within the margin")
    for name, line in _by_provider(measurements).items():
        if len(line) == 1:
            continue  # measured at this size for another plot
        line.sort(key=lambda m: places[m.density])
        _draw(axes, name, [places[m.density] for m in line], [m.median * 1e3 for m in line])
    axes.set_xlim(-0.15, len(places) - 0.85)
    _name_lines(axes)
    return figure


def _canvas(title: str, unit: str, results: Results) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=DPI)
    axes = figure.add_axes((LEFT, 0.185, 0.645, 0.69))
    figure.text(LEFT, 0.945, title, fontsize=12)
    figure.text(LEFT, 0.895, f"{unit}; lower is better", fontsize=9, color="#444444")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))  # 1,000 and not 10³
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    machine = results.machine
    footer = f"{machine.get('cpu')}, {machine.get('threads')} threads, torch {machine.get('torch')}"
    figure.text(LEFT, 0.015, footer, fontsize=8, color="#666666")
    return figure, axes


def _draw(axes: Axes, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    colour, marker = STYLES.get(name, OTHERS)
    ours = name == OURS
    axes.plot(
        x,
        y,
        label=name,
        color=colour,
        marker=marker,
        markersize=7 if ours else 5.5,
        linewidth=3.2 if ours else 1.6,
        linestyle="--" if name in (YARDSTICK, QUADRATIC) else "-",
        zorder=2.5 if ours else 3,  # wide and beneath, so that nothing equal to ours is hidden
    )


def _name_lines(axes: Axes) -> None:
    """Write each line's name where it ends: on the right in a column without overlaps, else beside its last point."""
    last = max(float(np.max(line.get_xdata())) for line in axes.get_lines())
    ends = []
    for line in axes.get_lines():
        point = np.asarray(line.get_xydata())[-1]
        name, colour = str(line.get_label()), line.get_color()
        if point[0] < last:
            axes.annotate(name, point, (7, -13), textcoords="offset points", fontsize=10, color=colour)
            continue
        across, height = axes.transAxes.inverted().transform(axes.transData.transform(point))
        ends.append((height, across, name, colour))
    ends.sort()
    for (height, across, name, colour), moved in zip(ends, spread([end[0] for end in ends]), strict=True):
        axes.annotate(
            name,
            xy=(across, height),
            xytext=(1.03, moved),
            xycoords="axes fraction",
            va="center",
            fontsize=10,
            fontweight="bold" if name == OURS else "normal",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "relpos": (0, 0.5), "shrinkB": 4},
        )


def spread(heights: Sequence[float]) -> list[float]:
    """Move ascending heights apart to LABEL_GAP, each a little and none below 0."""
    moved = list(heights)
    for _ in range(100):
        for low in range(len(moved) - 1):
            overlap = LABEL_GAP - (moved[low + 1] - moved[low])
            if overlap > 0:
                moved[low] -= overlap / 2
                moved[low + 1] += overlap / 2
        moved = [max(0.0, height) for height in moved]
    return moved


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure to ``stem`` with .png and .svg, and return those paths."""
    paths = [stem.with_name(stem.name + ending) for ending in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)  # equal runs, equal files
    return paths


def markdown(results: Results) -> str:
    """Return the table, after the command and the hardware it belongs to."""
    hardware = ", ".join(f"{name} {value}" for name, value in results.machine.items() if value != "")
    lines = [
        "# Loss + gradient, pairwise hinge",
        "",
        f"`{results.command}`",
        "",
        f"{hardware}.",
        "",
        "Ratio: median ÷ mmfast's median on the same batch. Errors: relative to float64. Memory: beyond the inputs.",
        "",
        "| B × D | data | active | provider | best ms | median ms | ratio | loss error | gradient error | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = {(m.rows, m.features, m.density): m.median for m in results.measurements if m.provider == OURS}
    for m in results.measurements:
        ratio = m.median / ours[m.rows, m.features, m.density] if (m.rows, m.features, m.density) in ours else None
        cells = [
            f"{m.rows:,} × {m.features:,}",
            m.density,
            _percent(m.active),
            f"**{m.provider}**" if m.provider == OURS else m.provider,
            _three_digits(m.best * 1e3),
            _three_digits(m.median * 1e3),
            "" if ratio is None else f"{ratio:.2f}",
            "" if m.loss_error is None else f"{m.loss_error:.0e}",
            "" if m.gradient_error is None else f"{m.gradient_error:.0e}",
            "" if m.peak_bytes is None else f"{m.peak_bytes / 1e6:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _percent(share: float) -> str:
    return f"{share:.2%}" if 0 < share < 0.01 else f"{share:.0%}"
