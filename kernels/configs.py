"""Block sizes and warps of every kernel by architecture, as `make audit` found them to fit: a table, to be read.

``MMFAST_AUTOTUNE=1`` has Triton measure some others, which fit too, for the kernels that do the products, at the
first call of each number of features; that call waits for the GPU, and so cannot be captured in a CUDA graph.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# No multiplication is fused with an addition where the text does not say so: one result on every architecture.
LAUNCH = {"enable_fp_fusion": False}
SMALL: dict[str, Any] = {"num_warps": 4, **LAUNCH}  # of kernels whose blocks are given with them


def next_power_of_2(least: int) -> int:
    """Return what Triton's function of this name does, which takes the host longer."""
    return 1 << (least - 1).bit_length()


class Rows(NamedTuple):
    elements: int  # of a block
    block_d: int  # at most
    num_warps: int

    def options(self, features: int) -> dict[str, Any]:
        block_d = min(self.block_d, next_power_of_2(features))
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
    group: int  # pairs that are looked at together
    words: int  # of 32 bits, likewise
    block_d: int
    num_warps: int
    programs: int = 4096  # at most; of those that decide, as many as there are tiles

    def options(self, features: int) -> dict[str, Any]:
        return {
            "GROUP": self.group,
            "WORDS": self.words,
            "BLOCK_D": min(self.block_d, next_power_of_2(features)),
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
            "BLOCK_D": min(self.block_d, next_power_of_2(features)),
            "num_warps": self.num_warps,
            **LAUNCH,
        }


class Config(NamedTuple):
    tile_m: int  # rows and columns that are screened at a time; tile_n divides tile_m
    tile_n: int
    part_n: int  # columns that are refined at a time, a divisor of tile_m
    rows: Rows
    screen: Screen
    refine: Screen
    products: Products
    pairs: Pairs
    decide: Pairs
    combine: Combine
    other_screens: tuple[Screen, ...] = ()  # what the autotuner may choose instead
    other_refines: tuple[Screen, ...] = ()
    other_products: tuple[Products, ...] = ()


_COMMON: dict[str, Any] = {
    "rows": Rows(256, 256, 1),
    "pairs": Pairs(8, 128, 128, 4, 2048),
    "decide": Pairs(8, 16, 64, 1),
    "combine": Combine(8, 512, 4),
}
_SM_80: dict[str, Any] = {
    "screen": Screen(64, 8, 3),  # with 128 features at a time, or 4 warps, it spills
    "refine": Screen(64, 8, 2),
    "products": Products(128, 64, 8, 3),
    "pairs": Pairs(8, 64, 64, 2),
    "combine": Combine(8, 256, 4),
    "other_screens": (Screen(64, 8, 2),),
    "other_refines": (Screen(64, 8, 3),),
    "other_products": (Products(128, 64, 8, 2), Products(128, 128, 8, 2)),
}
_SM_90: dict[str, Any] = {
    "screen": Screen(128, 4, 3),
    "refine": Screen(128, 8, 3),
    "products": Products(128, 128, 8, 3),
    "pairs": Pairs(8, 64, 64, 2, 2048),
    "decide": Pairs(8, 16, 64, 2),
    "other_screens": (Screen(64, 4, 3),),
    "other_refines": (Screen(64, 8, 3),),
    "other_products": (Products(128, 128, 4, 3), Products(128, 64, 4, 3)),
}
_SM_100 = {**_SM_90, "screen": Screen(32, 8, 4), "other_screens": (Screen(32, 8, 3),)}
CONFIGS: dict[str, Config] = {
    "sm_80": Config(128, 64, 64, **_COMMON | _SM_80),
    "sm_89": Config(128, 64, 64, **_COMMON | _SM_80 | {"pairs": Pairs(8, 128, 64, 2)}),  # with 64 words it spills
    "sm_90": Config(128, 128, 128, **_COMMON | _SM_90),
    "sm_100": Config(128, 128, 32, **_COMMON | _SM_100),
    "sm_120": Config(128, 64, 64, **_COMMON | _SM_80 | {"rows": Rows(256, 256, 4)}),  # with fewer warps it spills
    "gfx942": Config(
        128,
        128,
        64,
        screen=Screen(64, 8, 2),  # of 64 KB of shared memory 128 features in three stages take 128
        refine=Screen(64, 8, 2),
        products=Products(128, 64, 8, 2),
        other_screens=(Screen(64, 4, 3),),
        other_products=(Products(128, 64, 4, 3), Products(256, 64, 8, 2)),
        **_COMMON,
    ),
    # Small tiles, so that a small test has several of them.
    "interpreter": Config(
        64,
        32,
        32,
        rows=Rows(2048, 64, 4),
        screen=Screen(64, 4, 1),
        refine=Screen(64, 4, 1),
        products=Products(64, 32, 4, 1),
        pairs=Pairs(32, 8, 64, 4, 5),
        decide=Pairs(32, 4, 64, 4, 5),
        combine=Combine(8, 64, 4),
    ),
}


AUTOTUNE_VARIABLE = "MMFAST_AUTOTUNE"
_TUNED = ("BLOCK_K", "num_warps", "num_stages")
_tuners: dict[tuple[str, tuple[tuple[int, ...], ...]], Any] = {}


def tuned(kernel: Any, choices: list[dict[str, Any]], keys: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the kernel and the first options, or one that finds by measuring which are best, and what is left of them.

    Both kernels only write, so that they can be run again on what they wrote.
    """
    if os.environ.get(AUTOTUNE_VARIABLE) != "1" or triton.knobs.runtime.interpret:
        return kernel, choices[0]
    values = tuple(dict.fromkeys(tuple(options[name] for name in _TUNED) for options in choices))
    name = kernel.__name__, values
    if name not in _tuners:
        configs = [triton.Config({"BLOCK_K": k}, num_warps=warps, num_stages=stages) for k, warps, stages in values]
        _tuners[name] = triton.autotune(configs, key=keys)(kernel)
    return _tuners[name], {k: v for k, v in choices[0].items() if k not in _TUNED}


def architecture(x: Tensor) -> str:
    """Name the row of the table that holds for a tensor."""
    if x.device.type == "cpu":
        return "interpreter"
    if torch.version.hip:
        return "gfx942"
    capability = torch.cuda.get_device_capability(x.device)
    if capability[0] == 12:
        return "sm_120"
    names = {(10, 0): "sm_100", (9, 0): "sm_90", (8, 9): "sm_89"}
    return names.get(capability, "sm_80")  # others multiply as sm_80 does


def config_for(x: Tensor) -> Config:
    return CONFIGS[architecture(x)]
