"""Tables of a search benchmark: for each recall the fastest setting of everyone that reaches it, none interpolated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.providers import OURS

LEVELS = (0.95, 0.98, 0.99)
FILTER_LEVEL = 0.95
MODES = {  # the names of recall and seconds in a record, the queries that those seconds are for, and the unit
    "batch": ("recall", "best"),
    "alone": ("recall_alone", "best_alone"),
}

Record = dict[str, Any]


def fastest(records: Sequence[Record], provider: str, level: float, mode: str) -> Record | None:
    """Return the provider's fastest record of those that reach the recall."""
    found, seconds = MODES[mode]
    reaching = [r for r in records if r["provider"] == provider and r[found] >= level]
    return min(reaching, key=lambda r: float(r[seconds]), default=None)


def queries_per_second(record: Record, mode: str) -> float:
    """Return how many queries a second one caller gets answered."""
    return float(record["batch"] / record["best"] if mode == "batch" else 1 / record["best_alone"])


def label(setting: dict[str, Any]) -> str:
    """Return a setting as one would write it in a call."""
    return " ".join(f"{name}={value}" for name, value in setting.items())


def markdown(content: dict[str, Any]) -> str:
    """Return all tables of a result file, after the command and the hardware they belong to."""
    hardware = ", ".join(f"{name} {value}" for name, value in content["machine"].items() if value != "")
    data, records = content["data"], content["results"]
    whole = [r for r in records if r["allowed"] == 1]
    lines = ["# Search", "", f"`{content['command']}`", "", f"{hardware}.", ""]
    lines += [f"{data['name']}, {data['metric']}, recall@{data['k']} against float64."]
    lines += ["A cell: the fastest setting that reaches the recall; ÷: how many times as fast mmfast is.", ""]
    names = [build["provider"] for build in content["builds"]]
    lines += [f"## A batch of {data['queries']:,}: queries per second", "", *_levels(whole, names, "batch"), ""]
    lines += ["## One query at a time: microseconds per query", "", *_levels(whole, names, "alone"), ""]
    lines += ["## Building", "", *_builds(content["builds"]), ""]
    if len(whole) < len(records):
        lines += [f"## Filters: recall of {FILTER_LEVEL} among random rows that are allowed", ""]
        lines += [*_filters([r for r in records if r["allowed"] < 1], names), ""]
    lines += ["## How each is used", ""]
    lines += [f"- {build['provider']}: {build['why']}" for build in content["builds"]]
    lines += [f"- left out, {reason}" for reason in content["left_out"]]
    return "\n".join(lines) + "\n"


def _levels(records: Sequence[Record], names: Sequence[str], mode: str) -> list[str]:
    head = "".join(f" recall ≥ {level} | ÷ |" for level in LEVELS)
    lines = ["| provider |" + head, "|---|" + "---:|---:|" * len(LEVELS)]
    for name in names:
        cells = [_bold(name)]
        for level in LEVELS:
            cells += _cell(records, name, level, mode)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(records: Sequence[Record], name: str, level: float, mode: str) -> list[str]:
    """Return the speed with its setting and recall, and the ratio."""
    record, ours = fastest(records, name, level, mode), fastest(records, OURS, level, mode)
    if record is None:
        best = max((r[MODES[mode][0]] for r in records if r["provider"] == name), default=None)
        return ["" if best is None else f"– (at most {best:.3f})", ""]
    speed = queries_per_second(record, mode)
    value = f"{speed:,.0f}" if mode == "batch" else f"{1e6 / speed:,.1f}"
    ratio = f"{queries_per_second(ours, mode) / speed:.2f}" if ours else ""
    return [f"{value} ({label(record['setting'])}: {record[MODES[mode][0]]:.3f})", ratio]


def _builds(builds: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["Memory: what the index adds to the resident set of a process that holds the rows.", ""]
    lines += ["| provider | seconds | MB |", "|---|---:|---:|"]
    for build in builds:
        megabytes = "" if build["memory_bytes"] is None else f"{build['memory_bytes'] / 1e6:,.0f}"
        lines.append(f"| {_bold(build['provider'])} | {build['seconds']:.1f} | {megabytes} |")
    return lines


def _filters(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    lines = ["| allowed | provider | batch, queries/s | ÷ | one at a time, µs | ÷ |", "|---|---|---:|---:|---:|---:|"]
    for allowed in sorted({r["allowed"] for r in records}, reverse=True):
        part = [r for r in records if r["allowed"] == allowed]
        for name in (name for name in names if any(r["provider"] == name for r in part)):
            cells = [cell for mode in MODES for cell in _cell(part, name, FILTER_LEVEL, mode)]
            lines.append("| " + " | ".join([f"{allowed:.1%}", _bold(name), *cells]) + " |")
    return lines


def _bold(name: str) -> str:
    return f"**{name}**" if name == OURS else name
