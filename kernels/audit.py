"""Compile every kernel ahead of time for every architecture, and read from what was compiled that it is fit to run.

No GPU is needed: the launches of calls on tensors without values are recorded, and Triton's compiler is asked for each
of them, and for each with what the autotuner may choose instead. What is read: registers, spills, shared memory,
occupancy, and the instructions of inner loops. A failure is: a spill, shared memory beyond the architecture's, local
memory, a loop of products without tensor-core instructions or with loads of single bytes.

    python -m mmfast.kernels.audit --out benchmarks/results/audit.md
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmfast.kernels.configs import CONFIGS
from mmfast.kernels.launches import FEATURES, Launch, alternatives, record

PRODUCTS = ("screen", "refine", "add_digits")  # what must compute on tensor cores


class Architecture(NamedTuple):
    target: GPUTarget
    shared: int  # bytes a program may have
    shared_total: int  # bytes of all programs on one multiprocessor
    registers: int
    warps: int


ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 163 * 1024, 164 * 1024, 65536, 64),
    "sm_89": Architecture(GPUTarget("cuda", 89, 32), 99 * 1024, 100 * 1024, 65536, 48),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 227 * 1024, 228 * 1024, 65536, 64),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 227 * 1024, 228 * 1024, 65536, 64),
    "sm_120": Architecture(GPUTarget("cuda", 120, 32), 99 * 1024, 100 * 1024, 65536, 48),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64 * 1024, 64 * 1024, 0, 32),
}


class Finding(NamedTuple):
    architecture: str
    launch: Launch
    registers: int
    spilled: int  # bytes of a thread
    shared: int
    occupancy: float  # share of the warps that a multiprocessor can hold
    products: int  # tensor-core instructions in inner loops
    loads: str  # of inner loops: how many of how many bytes
    failures: tuple[str, ...]


def inspect(architecture: str, launch: Launch) -> Finding:
    """Compile a launch and read the result."""
    machine = ARCHITECTURES[architecture]
    kernel = getattr(importlib.import_module(launch.module), launch.name)
    names = [name for name, _ in launch.signature]
    source = ASTSource(
        fn=kernel,
        signature=dict(launch.signature),
        constexprs={(names.index(name),): value for name, value in launch.constants},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible},
    )
    compiled = triton.compile(source, target=machine.target, options=dict(launch.options))
    shared, warps = compiled.metadata.shared, compiled.metadata.num_warps
    if machine.target.backend == "cuda":
        text = compiled.asm["ptx"]
        registers, spilled = _cubin_usage(compiled.asm["cubin"])
        fitting = min(
            machine.registers // (-(-registers // 8) * 8 * warps * 32),
            machine.shared_total // (shared + 1024),
            machine.warps // warps,
        )
        occupancy = fitting * warps / machine.warps
    else:
        text = compiled.asm["amdgcn"]
        registers, spilled = _number(r"\.vgpr_count:\s+(\d+)", text), _number(r"ScratchSize: (\d+)", text)
        fitting = min(machine.shared_total // max(shared, 1), _number(r"; Occupancy: (\d+)", text) * 4 // warps)
        occupancy = min(1.0, fitting * warps / machine.warps)
    loops = inner_loops(text)
    loops_of_products = [loop for loop in loops if TENSOR_CORES.search(loop)]
    products = sum(len(TENSOR_CORES.findall(loop)) for loop in loops_of_products)
    loads = _loads("\n".join(loops_of_products or loops))
    failures = []
    if spilled:
        failures.append(f"{spilled} bytes of registers spilled")
    if shared > machine.shared:
        failures.append(f"{shared} bytes of shared memory, the limit is {machine.shared}")
    if fitting < 1:
        failures.append("no program fits on a multiprocessor")
    if re.search(r"\b(ld|st)\.local|scratch_(load|store)", text):
        failures.append("local memory is accessed")
    if launch.name in PRODUCTS and not products and ("GIVEN", True) not in launch.constants:
        failures.append("no tensor-core instruction in an inner loop")
    if launch.name in PRODUCTS and products and not loads:
        failures.append("no load was recognised in the loop of products")
    if launch.name in PRODUCTS and products and any(size < 4 for size in loads):
        failures.append("the loop of products loads single bytes")
    described = ", ".join(f"{count} × {size}" for size, count in sorted(loads.items(), reverse=True))
    return Finding(architecture, launch, registers, spilled, shared, occupancy, products, described, tuple(failures))


# wgmma and tcgen05 on the newer NVIDIA architectures, mma.sync on the older, MFMA on AMD's.
TENSOR_CORES = re.compile(r"^\s*(?:@\S+\s+)?(mma\.sync|wgmma\.mma_async|tcgen05\.mma\.|v_mfma_)", re.MULTILINE)
_LABEL = re.compile(r"^(\$?\.?L[\w$]+):", re.MULTILINE)
_LOAD = re.compile(
    r"ld\.global(?:[.:]+\w+)*?(?:\.v(?P<vector>\d))?\.[bfsu](?P<bits>\d+)"
    r"|cp\.async\.c[ag]\.shared\.global[^;]*?, *(?:0x)?(?P<bytes>\w+)[,;\s]"
    r"|(?:global|buffer)_load_(?P<amd>ubyte|sbyte|ushort|short_d16|dwordx4|dwordx3|dwordx2|dword)"
)
_AMD_BYTES = {"ubyte": 1, "sbyte": 1, "ushort": 2, "short_d16": 2, "dword": 4}
_AMD_BYTES |= {f"dwordx{n}": 4 * n for n in (2, 3, 4)}


def inner_loops(text: str) -> list[str]:
    """Return the code of the loops that hold no other: from a label to the last branch back to it."""
    places = {match[1]: match.start() for match in _LABEL.finditer(text)}
    spans = {}
    for match in re.finditer(r"\b(?:bra(?:\.uni)?|s_cbranch_\w+|s_branch)\s+(\$?\.?L[\w$]+)", text):
        start = places.get(match[1])
        if start is not None and start < match.start():
            spans[start] = match.end()
    holding = {a for a in spans for b in spans if a < b and spans[b] <= spans[a]}
    return [text[start:end] for start, end in spans.items() if start not in holding]


def _loads(text: str) -> dict[int, int]:
    """Count the loads from global memory by the bytes that a thread gets."""
    counts: dict[int, int] = {}
    for match in _LOAD.finditer(text):
        if match["bits"]:
            size = int(match["bits"]) // 8 * int(match["vector"] or 1)
        elif match["bytes"]:
            size = int(match["bytes"], 16)
        else:
            size = _AMD_BYTES[match["amd"]]
        counts[size] = counts.get(size, 0) + 1
    return counts


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise ValueError(f"the compiler's output has no {pattern}")
    return int(found[1])


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """Return the registers of a thread, and the bytes of its stack, which only spills make."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    return _number(r"REG:(\d+)", usage), _number(r"STACK:(\d+)", usage)


def inspect_all(work: list[tuple[str, Launch]]) -> list[Finding]:
    """Compile launches on all cores; what takes longest, the products, comes first."""
    order = sorted(range(len(work)), key=lambda i: work[i][1].name not in PRODUCTS)
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        findings = dict(zip(order, pool.map(inspect, *zip(*(work[i] for i in order), strict=True)), strict=True))
    return [findings[i] for i in range(len(work))]


def table(findings: list[Finding], by_variant: bool) -> str:
    """Format findings as Markdown: of a kernel and its blocks, or of each variant, the one with most registers."""
    largest: dict[tuple[Any, ...], Finding] = {}
    for f in findings:
        options = dict(f.launch.options)
        blocks = tuple(value for name, value in f.launch.constants if "BLOCK" in name)
        variant = f.launch.variant if by_variant else ""
        key = (f.architecture, f.launch.name, options["num_warps"], options.get("num_stages"), blocks, variant)
        if key not in largest or (f.spilled, f.registers) > (largest[key].spilled, largest[key].registers):
            largest[key] = f
    lines = [
        "| architecture | kernel | variant | warps | stages | registers | spilled | shared KB | occupancy "
        "| tensor-core instructions | loads in the loop, × bytes |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in largest.values():
        options = dict(f.launch.options)
        lines.append(
            f"| {f.architecture} | `{f.launch.name}` | {f.launch.variant} | {options['num_warps']} "
            f"| {options.get('num_stages', '')} | {f.registers} | {f.spilled} | {f.shared / 1024:.0f} "
            f"| {f.occupancy:.0%} | {f.products or ''} | {f.loads} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print and write the tables; 1 if anything is unfit."""
    parser = argparse.ArgumentParser(prog="python -m mmfast.kernels.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    chosen, others = [], []
    for name in options.architecture:
        config = CONFIGS[name]
        launches = record(config)
        chosen += [(name, launch) for launch in launches]
        others += [(name, launch) for launch in alternatives(config, launches)]
    findings = inspect_all(chosen + others)
    text = table(findings[: len(chosen)], by_variant=True)
    text += "\n\n## What the autotuner may choose instead\n\n"
    text += "Of each choice the variant with most registers.\n\n"
    text += table(findings[len(chosen) :], by_variant=False)
    print(text)
    if options.out:
        heading = (
            "# What the kernels compile to\n\n"
            f"Written by `python -m mmfast.kernels.audit` with Triton {triton.__version__}, for {FEATURES} features. "
            "Registers and spilled bytes are those of a thread.\n\n"
        )
        options.out.write_text(f"{heading}{text}\n", encoding="utf-8")
    failures = [f"{f.architecture} {f.launch.name} ({f.launch.variant}): {why}" for f in findings for why in f.failures]
    print(f"{len(findings)} launches compiled, {len(failures)} failures", *failures, sep="\n", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
