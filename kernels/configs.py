"""Block sizes and warps of every kernel by architecture, as `make audit` found them to fit: a table, to be read.

``MMFAST_AUTOTUNE=1`` has Triton measure some others for the two kernels that do the products, at the first call of each
number of features.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# No multiplication is fused with an addition where the text does not say so: one result on every architecture.
LAUNCH = {"enable_fp_fusion": False}


class Rows(NamedTuple):
    elements: int  # of a block
    block_d: int  # at most
    num_warps: int

    def options(self, features: int) -> dict[str, Any]:
        block_d = min(self.block_d, triton.next_power_of_2(features))
        block_r = min(self.elements // block_d, 64)
        return {"BLOCK_R": block_r, "BLOCK_D": block_d, "num_warps": self.num_warps, **LAUNCH}


class Screen(NamedTuple):
    block_k: int
    num_warps: int
    num_stages: int

    def options(self, depth: int) -> dict[str, Any]:
        return {
            "BLOCK_K": min(self.block_k, depth),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            **LAUNCH,
        }


class Products(NamedTuple):
    block_d: int
    block_k: int
    num_warps: int
    num_stages: int

    def options(self, depth: int, tile: int) -> dict[str, Any]:
        block_d = self.block_d if depth % self.block_d == 0 else 128 if depth % 128 == 0 else 64
        return {
            "BLOCK_D": min(block_d, depth),
            "BLOCK_K": min(self.block_k, tile),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            **LAUNCH,
        }


class Pairs(NamedTuple):
    groups: int
    group_bits: int
    block_d: int
    num_warps: int

    def options(self, features: int) -> dict[str, Any]:
        return {
            "GROUPS": self.groups,
            "GROUP_BITS": self.group_bits,
            "BLOCK_D": min(self.block_d, triton.next_power_of_2(features)),
            "num_warps": self.num_warps,
            **LAUNCH,
        }


class Combine(NamedTuple):
    block_r: int
    block_d: int
    num_warps: int

    def options(self, features: int) -> dict[str, Any]:
        return {
            "BLOCK_R": self.block_r,
            "BLOCK_D": min(self.block_d, triton.next_power_of_2(features)),
            "num_warps": self.num_warps,
            **LAUNCH,
        }


class Config(NamedTuple):
    tile_m: int  # rows and columns that are screened at a time; tile_n divides tile_m
    tile_n: int
    rows: Rows
    screen: Screen
    products: Products
    pairs: Pairs
    combine: Combine


_COMMON: dict[str, Any] = {"rows": Rows(1024, 512, 4), "pairs": Pairs(8, 256, 256, 4), "combine": Combine(8, 128, 4)}
CONFIGS: dict[str, Config] = {
    "sm_80": Config(128, 64, screen=Screen(64, 8, 3), products=Products(256, 64, 8, 3), **_COMMON),
    "sm_90": Config(128, 64, screen=Screen(128, 8, 3), products=Products(256, 64, 8, 3), **_COMMON),
    "sm_100": Config(
        128,
        64,
        screen=Screen(128, 8, 3),
        products=Products(256, 64, 8, 3),
        **{**_COMMON, "pairs": Pairs(8, 128, 256, 4)},
    ),
    "gfx942": Config(128, 128, screen=Screen(64, 8, 2), products=Products(256, 64, 8, 2), **_COMMON),
    # Small tiles, so that a small test has several of them.
    "interpreter": Config(
        64,
        32,
        rows=Rows(2048, 64, 4),
        screen=Screen(64, 4, 1),
        products=Products(64, 32, 4, 1),
        pairs=Pairs(32, 4, 64, 4),
        combine=Combine(8, 64, 4),
    ),
}


AUTOTUNE_VARIABLE = "MMFAST_AUTOTUNE"
# BLOCK_K, warps and stages. Both kernels only write, so that they can be run again on what they wrote.
ALTERNATIVES = {
    "screen": ((64, 4, 3), (64, 8, 2), (64, 8, 3), (64, 8, 4), (128, 8, 2), (128, 8, 3)),
    "add_digits": ((32, 8, 4), (64, 4, 3), (64, 8, 2), (64, 8, 3), (64, 8, 4)),
}
_tuned: dict[tuple[str, int], Any] = {}


def tuned(kernel: Any, options: dict[str, Any], limit: int, keys: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the kernel and its options, or one that finds them by measuring; BLOCK_K is at most the limit."""
    if os.environ.get(AUTOTUNE_VARIABLE) != "1" or triton.knobs.runtime.interpret:
        return kernel, options
    name = kernel.__name__
    if (name, limit) not in _tuned:
        configs = [
            triton.Config({"BLOCK_K": block_k}, num_warps=warps, num_stages=stages)
            for block_k, warps, stages in ALTERNATIVES[name]
            if block_k <= limit
        ]
        _tuned[name, limit] = triton.autotune(configs, key=keys)(kernel)
    return _tuned[name, limit], {k: v for k, v in options.items() if k not in ("BLOCK_K", "num_warps", "num_stages")}


def architecture(x: Tensor) -> str:
    """Name the row of the table that holds for a tensor."""
    if x.device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(x.device)
    return {(10, 0): "sm_100", (9, 0): "sm_90"}.get(capability, "sm_80")  # others multiply as sm_80 does


def config_for(x: Tensor) -> Config:
    return CONFIGS[architecture(x)]
