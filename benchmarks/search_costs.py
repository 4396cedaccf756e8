"""What a search benchmark measured beside recall and speed, drawn: filters, build time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.providers import OURS
from benchmarks.search_style import STYLES, TITLES, line, speed_axis
from benchmarks.search_tables import FILTER_LEVEL, Record, fastest, queries_per_second
from mmfast.bench_command import DPI, OTHERS

SIZE = (13.0, 9.6)  # inches
GREY = "#444444"


def figure(content: dict[str, Any]) -> Figure:
    """Return the speed by share of allowed rows above, and build time and memory below."""
    data, records = content["data"], content["results"]
    drawn = Figure(figsize=SIZE, dpi=DPI)
    drawn.text(0.075, 0.965, f"Search in {data['name']}: filters, building, memory", fontsize=13)
    for left, (mode, title) in zip((0.075, 0.555), TITLES.items(), strict=True):
        axes = drawn.add_axes((left, 0.53, 0.41, 0.37))
        _title(axes, f"queries per second among allowed rows, recall ≥ {FILTER_LEVEL}, {title.format(**data)}")
        _filters(axes, [r for r in records if r["allowed"] < 1], mode)
    builds = content["builds"]
    held = [build for build in builds if build["memory_bytes"] is not None]
    for left, title, values in (
        (0.115, "seconds to build; less is better", {b["provider"]: b["seconds"] for b in builds}),
        (0.6, "MB added to a process that holds the rows", {b["provider"]: b["memory_bytes"] / 1e6 for b in held}),
    ):
        axes = drawn.add_axes((left, 0.05, 0.365, 0.36))
        _title(axes, title)
        _bars(axes, values)
    return drawn


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=10, color=GREY)


def _filters(axes: Axes, records: Sequence[Record], mode: str) -> None:
    speed_axis(axes)
    shares = sorted({float(r["allowed"]) for r in records})
    axes.set_xticks(range(len(shares)), [f"{share:.1%} allowed" for share in shares])
    for name in dict.fromkeys(r["provider"] for r in records):
        at = {s: fastest([r for r in records if r["allowed"] == s], name, FILTER_LEVEL, mode) for s in shares}
        found = [(place, queries_per_second(r, mode)) for place, r in enumerate(at.values()) if r is not None]
        if found:
            line(axes, name, *zip(*found, strict=True))
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)


def _bars(axes: Axes, values: dict[str, float]) -> None:
    names = sorted(values, key=lambda name: -values[name])
    bars = axes.barh(names, [values[name] for name in names], color=[STYLES.get(name, OTHERS)[0] for name in names])
    axes.bar_label(bars, [f"{values[name]:,.1f}" for name in names], padding=3, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    for text in axes.get_yticklabels():
        text.set_fontweight("bold" if text.get_text() == OURS else "normal")
