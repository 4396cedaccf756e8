"""The plot of a search benchmark: recall against queries per second, in a batch and one at a time.

    python -m benchmarks.search_plot out/search.json

A line joins the settings of a provider that are worth picking: each misses clearly less than the next faster one does.
Recall is drawn by how many neighbours are missed, on a logarithmic scale, as 0.99 is twice as good as 0.98. Lines are
named at their ends and differ in marker as well as in colour, as those of :mod:`mmfast.bench_command` do. A second
picture (``_costs``) shows filters, build time and memory (:mod:`benchmarks.search_costs`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import search_costs
from benchmarks.providers import OURS
from benchmarks.search_style import TITLES, line, speed_axis
from benchmarks.search_tables import MODES, Record, queries_per_second
from mmfast.bench_command import DPI, save, spread

SIZE = (13.0, 5.6)  # inches
PANELS = ((0.062, 0.145, 0.325, 0.69), (0.555, 0.145, 0.325, 0.69))
MIN_RECALL = 0.8
MAX_RECALL = 0.9998  # drawn as 1: beyond it a batch misses less than four neighbours in 20,000
WORTH = 0.97  # of the misses of the next faster setting
EARLY = 0.99  # a line that ends before is named there
TICKS = (0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)


def draw(content: dict[str, Any], stem: Path) -> list[Path]:
    """Draw a result file's content to ``stem`` with .png and .svg, and return those paths."""
    data, machine = content["data"], content["machine"]
    records = [r for r in content["results"] if r["allowed"] == 1]
    figure = Figure(figsize=SIZE, dpi=DPI)
    figure.text(PANELS[0][0], 0.945, f"Search in {data['name']}: recall@{data['k']} and speed", fontsize=13)
    for place, mode in zip(PANELS, MODES, strict=True):
        axes = figure.add_axes(place)
        title = f"queries per second, {TITLES[mode].format(**data)}; higher is better"
        figure.text(place[0], 0.875, title, fontsize=10, color="#444444")
        _panel(axes, records, mode)
    footer = f"{machine.get('cpu')}, {machine.get('threads')} threads, {machine.get('tier')}"
    figure.text(PANELS[0][0], 0.02, footer, fontsize=8, color="#666666")
    return [
        *save(figure, stem),
        *save(search_costs.figure(content), stem.with_name(f"{stem.name}_costs")),
    ]


def frontier(records: Sequence[Record], mode: str) -> list[tuple[float, float]]:
    """Return recall and queries per second of the settings worth picking, by ascending recall."""
    found: list[tuple[float, float]] = []
    points = ((float(r[MODES[mode][0]]), queries_per_second(r, mode)) for r in records)
    for recall, speed in sorted(points, key=lambda point: (-point[1], -point[0])):
        if not found or 1 - recall < WORTH * (1 - found[-1][0]):
            found.append((recall, speed))
    return found


def _panel(axes: Axes, records: Sequence[Record], mode: str) -> None:
    speed_axis(axes)
    axes.set_xlabel("recall")
    axes.set_xticks([_across(tick) for tick in TICKS], [f"{tick:g}" for tick in TICKS])
    for name in dict.fromkeys(r["provider"] for r in records):
        points = frontier([r for r in records if r["provider"] == name], mode)
        seen = [point for point in points if point[0] >= MIN_RECALL]
        if seen:
            line(axes, name, [_across(recall) for recall, _ in seen], [speed for _, speed in seen])
    axes.set_xlim(_across(MIN_RECALL) - 0.05, _across(1.0) + 0.08)
    axes.autoscale_view()  # now, since the names are placed by it
    _name_lines(axes)


def _name_lines(axes: Axes) -> None:
    """Write the names in a column on the right, each joined to where its line ends, or beside an end that is early."""
    ends = []
    for drawn in axes.get_lines():
        last = np.asarray(drawn.get_xydata())[-1]
        if last[0] < _across(EARLY):
            name, colour = str(drawn.get_label()), str(drawn.get_color())
            axes.annotate(
                name, last, (0, -9), textcoords="offset points", ha="center", va="top", fontsize=9.5, color=colour
            )
            continue
        end = axes.transAxes.inverted().transform(axes.transData.transform(last))
        ends.append((float(end[1]), float(end[0]), str(drawn.get_label()), str(drawn.get_color())))
    ends.sort()
    for (height, across, name, colour), moved in zip(ends, spread([end[0] for end in ends]), strict=True):
        axes.annotate(
            name,
            xy=(across, height),
            xytext=(1.06, moved),
            xycoords="axes fraction",
            va="center",
            fontsize=9.5,
            fontweight="bold" if name == OURS else "normal",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "linestyle": ":", "relpos": (0, 0.5)},
        )


def _across(recall: float) -> float:
    return -math.log10(1 - min(recall, MAX_RECALL))


def main(arguments: list[str]) -> None:
    """Draw each result file again, beside it."""
    for name in arguments:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        for path in draw(content, Path(name).with_suffix("")):
            print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
