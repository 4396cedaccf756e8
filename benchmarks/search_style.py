"""How the pictures of a search benchmark draw providers and speed."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.providers import OURS
from mmfast.bench_command import OTHERS

# Okabe and Ito's palette: a colour for a library, a marker for what it stores.
STYLES = {
    OURS: ("#000000", "o"),
    "svs-lvq": ("#0072B2", "D"),
    "svs-f16": ("#0072B2", "^"),
    "svs-f32": ("#0072B2", "s"),
    "faiss-ivfpq": ("#D55E00", "v"),
    "faiss-hnsw": ("#D55E00", "s"),
    "faiss-flat": ("#D55E00", "*"),
    "usearch-i8": ("#009E73", "D"),
    "usearch-bf16": ("#009E73", "v"),
    "usearch-f16": ("#009E73", "^"),
    "usearch-f32": ("#009E73", "s"),
    "hnswlib": ("#CC79A7", "s"),
}
TITLES = {"batch": "a batch of {queries:,}", "alone": "one query at a time"}


def speed_axis(axes: Axes) -> None:
    """Make the vertical axis one of queries per second."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def line(axes: Axes, name: str, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw a provider's line."""
    colour, marker = STYLES.get(name, OTHERS)
    ours = name == OURS
    size = 9 if marker == "*" else 6 if ours else 4.5
    width, order = (2.8, 3.0) if ours else (1.3, 2.5)
    axes.plot(x, y, label=name, color=colour, marker=marker, markersize=size, linewidth=width, zorder=order)
