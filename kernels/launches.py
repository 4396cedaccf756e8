"""What the kernels are launched with: recorded from calls on tensors without values, for the audit to compile."""

from __future__ import annotations

from typing import Any, NamedTuple
from unittest import mock

import torch

from mmfast.kernels import negatives
from mmfast.kernels import pair_hinge as host
from mmfast.kernels.configs import Config
from mmfast.kernels.dry import DEVICE, kernels_go_to

ROWS, FEATURES = 4096, 512  # of the recorded calls: blocks are as large as they get from 512 features on
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """One kernel as it is launched; equal ones compile to the same code."""

    module: str
    name: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def variant(self) -> str:
        """What tells launches of a kernel apart."""
        rows = dict(self.signature).get("rows") or dict(self.signature).get("own_rows")
        flags = [name.lower() for name, value in self.constants if value is True]
        blocks = [f"{name.removeprefix('BLOCK_').lower()}{value}" for name, value in self.constants if "BLOCK" in name]
        return " ".join(([rows.removeprefix("*")] if rows else []) + flags + blocks)


def record(config: Config) -> list[Launch]:
    """Return the launches of both forms in every dtype, each once."""
    launches: dict[Launch, None] = {}

    def note(kernel: Any, values: tuple[Any, ...], grid: Any, named: dict[str, Any]) -> None:
        launches[describe(kernel, values, named)] = None

    labels = torch.empty(ROWS, dtype=torch.int64, device=DEVICE)
    with (
        kernels_go_to(note),
        mock.patch.object(host, "config_for", return_value=config),
        mock.patch.object(host, "_announce"),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):  # float16 differs in its conversion
            x = torch.empty(ROWS, FEATURES, dtype=dtype, device=DEVICE)
            for given in (False, True):
                with mock.patch.object(negatives, "products_given", return_value=given):
                    host.pair_hinge(x, labels, None, None, 1.0, "mean_nonzero", -100, True, False)
                    host.pair_hinge(x, labels, x, labels, 1.0, "sum", -100, True, True)
    return list(launches)


def describe(kernel: Any, values: tuple[Any, ...], named: dict[str, Any]) -> Launch:
    """Say what of a launch its code depends on."""
    parameters = [parameter.name for parameter in kernel.params]
    arguments = dict(zip(parameters, values, strict=False))
    arguments |= {name: value for name, value in named.items() if name in parameters}
    constants = {p.name: arguments[p.name] for p in kernel.params if p.is_constexpr}
    unspecialised = [p.name for p in kernel.params if p.do_not_specialize]
    signature, divisible = {}, []
    for name in parameters:
        value = arguments[name]
        if name in constants:
            signature[name] = "constexpr"
            continue
        tensor = isinstance(value, torch.Tensor)
        signature[name] = TYPES[value.dtype] if tensor else "i32"
        # As a launch would find; pointers are those of whole allocations.
        if tensor or (name not in unspecialised and value % 16 == 0):
            divisible.append(name)
    options = {name: value for name, value in named.items() if name not in parameters}
    return Launch(
        kernel.fn.__module__,
        kernel.__name__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple(divisible),
        tuple(sorted(options.items())),
    )


def alternatives(config: Config, chosen: list[Launch]) -> list[Launch]:
    """Return what the autotuner may launch instead, each variant once."""
    configs = [config._replace(screen=other) for other in config.other_screens]
    configs += [config._replace(refine=other) for other in config.other_refines]
    configs += [config._replace(products=other) for other in config.other_products]
    launches = {
        (launch.name, launch.variant, launch.options): launch
        for other in configs
        for launch in record(other)
        if launch not in chosen
    }
    return list(launches.values())
