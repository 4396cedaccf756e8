"""What a step should take at least, from its operations and bytes: a prediction, not a measurement.

Each stage takes the longer of its arithmetic at the peak of the unit that does it and its traffic at the memory's peak;
stages follow one another. Launches, what a kernel does beside its products, and classes too few to fill the GPU are
left out: no program comes near all its peaks, and ours has further to go than products by the vendor's library.

    python -m mmfast.kernels.roofline > roofline.md
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from mmfast.kernels.rows import WIDE
from mmfast.kernels.screen import DENSE


class Gpu(NamedTuple):
    """Peaks of a data sheet, dense: operations (two for a multiplication and an addition) and bytes per second."""

    int8: float
    bf16: float
    fp32: float  # without tensor cores, which is what PyTorch computes float32 products with
    fp64: float
    memory: float
    cache: float  # bytes of the last cache: what fits is read from memory once


GPUS = {
    "A100": Gpu(624e12, 312e12, 19.5e12, 9.7e12, 2.04e12, 40e6),
    "H100": Gpu(1979e12, 989e12, 67e12, 34e12, 3.35e12, 50e6),
    "H200": Gpu(1979e12, 989e12, 67e12, 34e12, 4.8e12, 50e6),
    "MI300X": Gpu(2615e12, 1307e12, 163e12, 82e12, 5.3e12, 256e6),
}


class Stage(NamedTuple):
    name: str
    operations: float
    unit: str  # which peak
    bytes: float

    def seconds(self, gpu: Gpu) -> float:
        return max(self.operations / getattr(gpu, self.unit), self.bytes / gpu.memory)


class Step(NamedTuple):
    """Loss and gradient of the self form."""

    rows: int
    features: int
    active: float  # share of the pairs within the margin
    element: int  # bytes: 4 for float32, 2 for bfloat16

    @property
    def batch(self) -> float:
        return self.rows * self.features * self.element

    @property
    def pairs(self) -> float:
        return float(self.rows) ** 2


DOUBT = 0.001  # of the pairs: what the screen leaves open beside the active ones, as on unit rows


def ours(step: Step, gpu: Gpu) -> list[Stage]:
    """Return the stages of mmfast.kernels.pair_hinge."""
    elements, dense = float(step.rows * step.features), step.active >= DENSE
    products = 3 if dense else 1  # of digits, over half of the pairs
    # Masks are cleared and written, two of them and each twice.
    stages = [
        Stage("order, quantise", 10 * elements, "fp64", 4 * step.batch + (2 + WIDE) * elements),
        Stage("screen", products * step.pairs * step.features, "int8", 2 * 4 * step.pairs / 8 + 2 * elements),
    ]
    if dense:
        operations = 2 * WIDE * step.pairs * step.features  # over half of the pairs, in both directions
        stages.append(Stage("sums by products", operations, "int8", (2 * 2 * 4 * WIDE + 2 * 2 * 8) * elements))
    looked_at = step.pairs * (DOUBT + (0 if dense else step.active))
    row = 0 if step.batch < gpu.cache else step.features * step.element
    stages.append(Stage("pair by pair", looked_at * step.features * 4, "fp64", looked_at * row + 2 * step.pairs / 8))
    stages.append(Stage("combine", 8 * elements, "fp64", 3 * step.batch + 12 * elements))
    return stages


def eager(step: Step, gpu: Gpu) -> list[Stage]:
    """Return the stages of the idiom: one product forward and two backward, and passes over B x B matrices between.

    Forward 2 sums, a difference, a clamp, a comparison, a hinge of two passes, a choice, a total; backward the same but
    for the comparison and the total. A pass reads one matrix and writes one.
    """
    unit = "fp32" if step.element == 4 else "bf16"
    product = 2 * step.pairs * step.features
    passes = 8 + 1 + 7
    return [
        Stage("products", 3 * product, unit, 3 * step.pairs * step.element),
        Stage("passes", passes * step.pairs, "fp32", 2 * passes * step.pairs * step.element),
    ]


def chunked(step: Step, gpu: Gpu) -> list[Stage]:
    """Return the stages of products by the vendor's library, with one fused pass over each chunk between."""
    unit = "fp32" if step.element == 4 else "bf16"
    product = 2 * step.pairs * step.features
    return [
        Stage("products", 2 * product, unit, 2 * step.pairs * step.element),
        Stage("pass", 10 * step.pairs, "fp32", 2 * step.pairs * step.element),
    ]


PROGRAMS = {"mmfast": ours, "eager": eager, "chunked": chunked}


def seconds(program: str, step: Step, gpu: Gpu) -> float:
    """Return the predicted time of a step."""
    return sum(stage.seconds(gpu) for stage in PROGRAMS[program](step, gpu))


def table() -> str:
    """Format the predictions as Markdown."""
    lines = [
        "| GPU | B × D | dtype | active | mmfast | of it the screen | eager ÷ mmfast | chunked ÷ mmfast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, gpu in GPUS.items():
        for rows, features in ((16384, 512), (131072, 512)):
            for element, dtype in ((4, "float32"), (2, "bfloat16")):
                for active in (0.001, 0.5):
                    step = Step(rows, features, active, element)
                    own = seconds("mmfast", step, gpu)
                    screen = next(s.seconds(gpu) for s in ours(step, gpu) if s.name == "screen")
                    ratios = " | ".join(f"{seconds(other, step, gpu) / own:.1f}" for other in ("eager", "chunked"))
                    lines.append(
                        f"| {name} | {rows:,} × {features} | {dtype} | {active:.1%} | {own * 1e3:.2f} ms "
                        f"| {screen / own:.0%} | {ratios} |"
                    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"A prediction at the peaks of data sheets; nothing here was measured.\n\n{table()}\n")
