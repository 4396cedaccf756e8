"""Compile every kernel ahead of time for every architecture, and read from what was compiled that it is fit to run.

No GPU is needed: the launches of real calls are recorded, on tensors whose values do not matter, and Triton's compiler
is asked for each of them. What is read: registers, spills, shared memory, occupancy, and the instructions of inner
loops. A failure is: a spill, shared memory beyond the architecture's, local memory, a loop of products without
tensor-core instructions or with loads of single bytes.

    python -m mmfast.kernels.audit --out benchmarks/results/audit.md
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from mmfast.kernels import negatives
from mmfast.kernels import pair_hinge as host
from mmfast.kernels.configs import CONFIGS

ROWS, FEATURES = 4096, 512  # of the recorded calls: blocks are as large as they get from 512 features on
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}
PRODUCTS = ("screen", "add_digits")  # what must compute on tensor cores


class Architecture(NamedTuple):
    target: GPUTarget
    shared: int  # bytes a program may have
    shared_total: int  # bytes of all programs on one multiprocessor
    registers: int
    warps: int


ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), 163 * 1024, 164 * 1024, 65536, 64),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), 227 * 1024, 228 * 1024, 65536, 64),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), 227 * 1024, 228 * 1024, 65536, 64),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), 64 * 1024, 64 * 1024, 0, 32),
}


class Launch(NamedTuple):
    """One kernel as it is launched; equal ones compile to the same code."""

    kernel: JITFunction[Any]
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def variant(self) -> str:
        """What tells launches of a kernel apart."""
        rows = dict(self.signature).get("rows") or dict(self.signature).get("own_rows")
        flags = [name.lower() for name, value in self.constants if value is True]
        blocks = [f"{name.removeprefix('BLOCK_').lower()}{value}" for name, value in self.constants if "BLOCK" in name]
        return " ".join(([rows.removeprefix("*")] if rows else []) + flags + blocks)


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


def record(architecture: str) -> list[Launch]:
    """Return the launches of both forms in every dtype, each once."""
    launches: dict[Launch, None] = {}
    with _recorder(launches), mock.patch.object(host, "config_for", return_value=CONFIGS[architecture]):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):  # float16 differs in its conversion
            x, labels = torch.zeros(ROWS, FEATURES, dtype=dtype), torch.arange(ROWS)
            for given in (False, True):
                with mock.patch.object(negatives, "products_given", return_value=given):
                    host.pair_hinge(x, labels, None, None, 1.0, "mean_nonzero", -100, True, False)
                    host.pair_hinge(x, labels, x, labels, 1.0, "sum", -100, True, False)
    return list(launches)


@contextmanager
def _recorder(launches: dict[Launch, None]) -> Iterator[None]:
    def run(kernel: JITFunction[Any], *values: Any, grid: Any, warmup: bool, **named: Any) -> None:
        parameters = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(parameters, values, strict=False))
        arguments |= {name: value for name, value in named.items() if name in parameters}
        constants = {p.name: arguments[p.name] for p in kernel.params if p.is_constexpr}
        signature, divisible = {}, []
        for name in parameters:
            value = arguments[name]
            if name in constants:
                signature[name] = "constexpr"
                continue
            tensor = isinstance(value, torch.Tensor)
            signature[name] = TYPES[value.dtype] if tensor else "i32"
            if tensor or value % 16 == 0:  # as a launch would find; pointers are those of whole allocations
                divisible.append(name)
        options = {name: value for name, value in named.items() if name not in parameters}
        launch = Launch(
            kernel,
            tuple(signature.items()),
            tuple(constants.items()),
            tuple(divisible),
            tuple(sorted(options.items())),
        )
        launches[launch] = None

    with mock.patch.object(JITFunction, "run", run):
        yield


def inspect(architecture: str, launch: Launch) -> Finding:
    """Compile a launch and read the result."""
    machine = ARCHITECTURES[architecture]
    names = [name for name, _ in launch.signature]
    source = ASTSource(
        fn=launch.kernel,
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
    if launch.name in PRODUCTS and any(size < 4 for size in loads):
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


def table(findings: list[Finding]) -> str:
    """Format findings as Markdown; of launches that differ only in their arguments, the one with most registers."""
    largest: dict[tuple[str, str, str], Finding] = {}
    for f in findings:
        key = (f.architecture, f.launch.name, f.launch.variant)
        if key not in largest or (f.spilled, f.registers) > (largest[key].spilled, largest[key].registers):
            largest[key] = f
    lines = [
        "| architecture | kernel | variant | warps | registers | spilled | shared KB | occupancy "
        "| tensor-core instructions | loads in the loop, × bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for f in largest.values():
        warps = dict(f.launch.options)["num_warps"]
        lines.append(
            f"| {f.architecture} | `{f.launch.name}` | {f.launch.variant} | {warps} | {f.registers} | {f.spilled} "
            f"| {f.shared / 1024:.0f} | {f.occupancy:.0%} | {f.products or ''} | {f.loads} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print and write the table; 1 if anything is unfit."""
    parser = argparse.ArgumentParser(prog="python -m mmfast.kernels.audit", description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", nargs="+", choices=list(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--out", type=Path, help="a Markdown file to write the table to")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: nothing would be compiled")
    findings = [inspect(name, launch) for name in options.architecture for launch in record(name)]
    text = table(findings)
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
