"""What a step should take, from its operations, bytes and launches: a prediction, not a measurement.

A stage takes its products at the peak of the unit that does them and then its other operations at the rate of the
integer units, as a program that fills a multiprocessor does one after the other, or its traffic at the memory's peak if
that is longer; stages follow one another. Launches are counted by running the host code on tensors without values. The
host runs ahead of the GPU, so that a step takes what the host needs, or what it needs until the first screen and then
the GPU, whichever is longer; in a CUDA graph it takes what the GPU needs, and there is a gap before each kernel.

Left out: products below their peak, tiles that are ruled out before (all are taken to be screened), and classes too few
to fill the GPU.

    python -m mmfast.kernels.roofline > benchmarks/results/gpu_roofline.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import torch

from mmfast.kernels import negatives
from mmfast.kernels import pair_hinge as host
from mmfast.kernels.configs import CONFIGS
from mmfast.kernels.dry import DEVICE, Trace, kernels_go_to
from mmfast.kernels.screen import DENSE

LAUNCH = 4e-6  # seconds of the host for each, without a graph: PyTorch's, or Triton's, and the driver's
GAP = 1e-6  # seconds from the end of a kernel to the start of the next that needs its results

# Instructions of sm_90 outside of the loops of products, by pairs of rows: as tiles of (128, 128) are compiled.
DECIDE = 15  # conversion and scaling of the product, the bounds, the comparison of classes, the count of candidates
PACK = 9  # the masks of the candidates, in both directions
FINE = 47  # in a dense tile: the second digit, both of its bounds, and the verdicts, in both directions
DIGITS = {4: 4, 2: 2}  # of the rows that are summed, by the bytes of an element; rows of half precision may need three


class Gpu(NamedTuple):
    """Peaks of a data sheet, dense: operations (two for a multiplication and an addition) and bytes per second."""

    int8: float
    bf16: float
    fp32: float  # without tensor cores, which is what PyTorch computes float32 products with
    fp64: float
    alu: float  # 32-bit integers
    memory: float
    cache: float  # bytes of the last cache: what fits is read from memory once


GPUS = {
    "A100": Gpu(624e12, 312e12, 19.5e12, 9.7e12, 9.7e12, 2.04e12, 40e6),
    "H100": Gpu(1979e12, 989e12, 67e12, 34e12, 16.7e12, 3.35e12, 50e6),
    "H200": Gpu(1979e12, 989e12, 67e12, 34e12, 16.7e12, 4.8e12, 50e6),
    "MI300X": Gpu(2615e12, 1307e12, 163e12, 82e12, 40.9e12, 5.3e12, 256e6),
}


class Stage(NamedTuple):
    name: str
    operations: float
    unit: str  # which peak
    bytes: float
    other: float = 0.0  # operations of the integer units, after those of the unit

    def seconds(self, gpu: Gpu) -> float:
        return max(self.operations / getattr(gpu, self.unit) + self.other / gpu.alu, self.bytes / gpu.memory)


class Launches(NamedTuple):
    before: int  # the first screen, all of them of little work
    all: int


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
    digits = DIGITS[step.element]
    products = 4 if dense else 1  # of digits, over half of the pairs; a dense tile is decided anew
    decide = DECIDE + (FINE if dense else PACK)
    # Masks are cleared and written, in both directions.
    stages = [
        Stage("order, quantise", 10 * elements, "fp64", 4 * step.batch + (2 + digits) * elements),
        Stage(
            "screen",
            products * step.pairs * step.features,
            "int8",
            2 * 4 * step.pairs / 8 + 2 * elements,
            decide * step.pairs / 2,
        ),
    ]
    if dense:
        operations = 2 * digits * step.pairs * step.features  # over half of the pairs, in both directions
        # Verdicts are written and read; what is summed is written and read, and added to sums of float64.
        traffic = 2 * step.pairs + (2 * 4 * digits + 2 * 8) * elements
        stages.append(Stage("sums by products", operations, "int8", traffic))
    looked_at = step.pairs * (DOUBT + (0 if dense else step.active))
    row = 0 if step.batch < gpu.cache else step.features * step.element
    stages.append(Stage("pair by pair", looked_at * step.features * 4, "fp64", looked_at * row + 2 * step.pairs / 8))
    stages.append(Stage("combine", 8 * elements, "fp64", 3 * step.batch + 12 * elements))
    return stages


@cache
def our_launches(step: Step) -> Launches:
    """Count what the host launches, with the products of the screen computed by the screen itself."""
    kernels: list[str] = []
    before: list[int] = []  # of each screen

    def note(kernel: Any, *_: Any) -> None:
        if kernel.__name__ == "screen":
            before.append(trace.launches + len(kernels))
        kernels.append(kernel.__name__)

    dtype = torch.float32 if step.element == 4 else torch.bfloat16
    x = torch.empty(step.rows, step.features, dtype=dtype, device=DEVICE)
    labels = torch.empty(step.rows, dtype=torch.int64, device=DEVICE)
    with (
        mock.patch.object(host, "config_for", return_value=CONFIGS["sm_90"]),
        mock.patch.object(host, "_announce"),
        mock.patch.object(negatives, "products_given", return_value=False),
        kernels_go_to(note),
        Trace() as trace,
    ):
        host.pair_hinge(x, labels, None, None, 1.0, "sum", -100, True, False)
    return Launches(before[0], trace.launches + len(kernels))


PASSES = 8 + 1 + 7  # of the idiom, over B x B matrices


def eager(step: Step, gpu: Gpu) -> list[Stage]:
    """Return the stages of the idiom: one product forward and two backward, and passes over B x B matrices between.

    Forward 2 sums, a difference, a clamp, a comparison, a hinge of two passes, a choice, a total; backward the same but
    for the comparison and the total. A pass reads one matrix and writes one.
    """
    unit = "fp32" if step.element == 4 else "bf16"
    product = 2 * step.pairs * step.features
    return [
        Stage("products", 3 * product, unit, 3 * step.pairs * step.element),
        Stage("passes", PASSES * step.pairs, "fp32", 2 * PASSES * step.pairs * step.element),
    ]


def chunked(step: Step, gpu: Gpu) -> list[Stage]:
    """Return the stages of products by the vendor's library, with one fused pass over each chunk between."""
    unit = "fp32" if step.element == 4 else "bf16"
    product = 2 * step.pairs * step.features
    return [
        Stage("products", 2 * product, unit, 2 * step.pairs * step.element),
        Stage("pass", 10 * step.pairs, "fp32", 2 * step.pairs * step.element),
    ]


CHUNK = 2048  # rows


class Program(NamedTuple):
    stages: Callable[[Step, Gpu], list[Stage]]
    launches: Callable[[Step], Launches]


PROGRAMS = {
    "mmfast": Program(ours, our_launches),
    "eager": Program(eager, lambda step: Launches(0, 3 + PASSES)),
    "chunked": Program(chunked, lambda step: Launches(0, 3 * -(-step.rows // CHUNK))),
}


def seconds_in_graph(program: str, step: Step, gpu: Gpu) -> float:
    """Return the predicted time of the GPU."""
    stages, launches = PROGRAMS[program]
    return sum(stage.seconds(gpu) for stage in stages(step, gpu)) + launches(step).all * GAP


def seconds(program: str, step: Step, gpu: Gpu) -> float:
    """Return the predicted time of a step, without a graph."""
    launches = PROGRAMS[program].launches(step)
    waiting = launches.before * (LAUNCH - GAP)
    return max(launches.all * LAUNCH, waiting + seconds_in_graph(program, step, gpu))


def table() -> str:
    """Format the predictions as Markdown."""
    lines = [
        "| GPU | B × D | dtype | active | launches | mmfast | in a CUDA graph | of it the screen "
        "| eager ÷ mmfast | chunked ÷ mmfast |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, gpu in GPUS.items():
        for rows, features in ((16384, 512), (131072, 512)):
            for element, dtype in ((4, "float32"), (2, "bfloat16")):
                for active in (0.001, 0.5):
                    step = Step(rows, features, active, element)
                    own, in_graph = seconds("mmfast", step, gpu), seconds_in_graph("mmfast", step, gpu)
                    screen = next(s.seconds(gpu) for s in ours(step, gpu) if s.name == "screen")
                    ratios = " | ".join(f"{seconds(other, step, gpu) / own:.1f}" for other in ("eager", "chunked"))
                    lines.append(
                        f"| {name} | {rows:,} × {features} | {dtype} | {active:.1%} | {our_launches(step).all:,} "
                        f"| {own * 1e3:.2f} ms | {in_graph * 1e3:.2f} ms | {screen / in_graph:.0%} | {ratios} |"
                    )
    return "\n".join(lines)


TEXT = f"""# What the kernels should take

Written by `python -m mmfast.kernels.roofline`: a prediction from data sheets; nothing here was measured. What an H100
took is in [gpu/gpu.md](gpu/gpu.md): in a CUDA graph two and a half times the prediction at 16,384 rows, and less than
it at 131,072, where many tiles are ruled out before; without a graph, what its host took for each launch, some 40 µs
where 4 are assumed here.

Products are taken at the peaks of the data sheets, and memory too. What a kernel does beside its products is counted
in instructions of what sm_90 compiles to, at the rate of the integer units and not overlapped with the products:
{DECIDE} for each pair that is screened, and {PACK} to pack its masks or, where many pairs are active, {FINE} for the
second digit and the verdicts. Sums are of {DIGITS[4]} digits for float32 and of {DIGITS[2]} for bfloat16. Launches
are counted from the code, a sort as 8 and a scan as 2. The host takes {LAUNCH * 1e6:.0f} µs for each, and runs ahead
of the GPU from the first screen on; in a CUDA graph only a gap of {GAP * 1e6:.0f} µs before each kernel is left.
Ratios are without a graph. All tiles are taken to be screened, and all of those with few active pairs to hold a
candidate. Not modelled: products below their peak, on our side and on that of the others.
"""


if __name__ == "__main__":
    sys.stdout.write(f"{TEXT}\n{table()}\n")
