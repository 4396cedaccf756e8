"""Tiles that hold no active pair, found before any is screened: classes far apart are ruled out at once.

Rows are in class order, so that a tile holds a few runs of rows of one class. Each run lies in a ball about its mean; a
ball stands for its rows in the screen's proof once the radius is added to the residual, by the triangle inequality.
Tiles with more than RUNS runs are always screened.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import Config
from mmfast.kernels.frame import IGNORED, Frame
from mmfast.kernels.rows import Side, make_side, widen

RUNS = 8  # of a tile; the bits of a byte of a mask
LEAST_TILES = 8  # with fewer tiles of rows there is little to rule out


class Balls(NamedTuple):
    side: Side  # RUNS balls for each tile, those that do not exist without a class
    crowded: Tensor  # (tiles,) bool: more runs than that


def make_balls(side: Side, frame: Frame, margin: float, config: Config) -> Balls:
    """Cut the tiles of a side into runs and measure them."""
    count, features = side.rows.shape
    tile, tiles = config.tile_m, side.padded // config.tile_m
    row = torch.arange(count, device=side.rows.device)
    starts = row % tile == 0
    starts[1:] |= side.classes[1:] != side.classes[:-1]
    run = starts.cumsum(0)
    run = run - run[row // tile * tile]
    ball = row // tile * RUNS + run.clamp(max=RUNS - 1)
    number = torch.arange(tiles * RUNS, device=row.device)
    begins, ends = torch.searchsorted(ball, number), torch.searchsorted(ball, number, right=True)
    classes = torch.where(ends > begins, side.classes[begins.clamp(max=count - 1)], IGNORED)
    centres = side.rows.new_empty((tiles * RUNS, features), dtype=torch.float64)
    radii = side.rows.new_empty(tiles * RUNS, dtype=torch.float64)
    options = config.rows.options(features)
    arguments = side.rows, begins, ends, features, centres
    ball_centres[(tiles * RUNS, -(-features // options["BLOCK_D"]))](*arguments, **options)
    ball_radii[(tiles * RUNS,)](*arguments, radii, **options)
    last = torch.arange(1, tiles + 1, device=row.device) * tile - 1
    crowded = run[last.clamp(max=count - 1)] >= RUNS
    return Balls(make_side(centres, classes, frame, margin, False, tile, config.rows, radii), crowded)


@triton.jit
def ball_centres(rows, begins, ends, features, centres, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The mean of each run, one slice of features; it need only be near the mean."""
    ball = tl.program_id(0).to(tl.int64)
    begin = tl.load(begins + ball).to(tl.int32)
    end = tl.load(ends + ball).to(tl.int32)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    origin = widen(
        tl.load(rows + begin.to(tl.int64) * features + d, mask=d < tl.where(end > begin, features, 0), other=0)
    )
    for i in range(begin, end, BLOCK_R):
        row = (i + tl.arange(0, BLOCK_R))[:, None].to(tl.int64)
        here = (row < end) & (d < features)
        x = widen(tl.load(rows + row * features + d, mask=here, other=0))
        total += tl.where(here, x - origin, 0.0)
    mean = origin + (tl.sum(total, 0) / tl.maximum(end - begin, 1).to(tl.float64))[None, :]
    tl.store(centres + ball * features + d, mean, mask=d < features)


@triton.jit
def ball_radii(rows, begins, ends, features, centres, radii, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The largest distance of a row of each run from its centre as stored; 1e-6 covers the rounding of the sum."""
    ball = tl.program_id(0).to(tl.int64)
    begin = tl.load(begins + ball).to(tl.int32)
    end = tl.load(ends + ball).to(tl.int32)
    largest = tl.zeros((BLOCK_R,), tl.float64)
    for i in range(begin, end, BLOCK_R):
        row = (i + tl.arange(0, BLOCK_R))[:, None].to(tl.int64)
        total = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
        for k in range(0, features, BLOCK_D):
            d = (k + tl.arange(0, BLOCK_D))[None, :]
            here = (row < end) & (d < features)
            x = widen(tl.load(rows + row * features + d, mask=here, other=0))
            difference = tl.where(here, x - tl.load(centres + ball * features + d, mask=d < features, other=0), 0.0)
            total += difference * difference
        largest = tl.maximum(largest, tl.sum(total, 1))
    tl.store(radii + ball, tl.sqrt(tl.max(largest, 0)) * (1 + 1e-6))
