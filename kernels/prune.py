"""Tiles that hold no active pair, found before any is screened: classes far apart are ruled out at once.

Rows are in class order, so that a tile holds a few runs of rows of one class. Each run lies in a ball about its mean; a
ball stands for its rows in the screen's proof once the radius is added to the residual, by the triangle inequality.
The last ball of a tile with more than RUNS runs is infinite, so that the tile is always screened.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import float64, int32

from mmfast.kernels.configs import Config
from mmfast.kernels.frame import Frame
from mmfast.kernels.launch import launch
from mmfast.kernels.order import IGNORED, widen
from mmfast.kernels.rows import Side, make_side

RUNS = 8  # of a tile; the bits of a byte of a mask
LEAST_TILES = 8  # with fewer tiles of rows there is little to rule out

_IGNORED: tl.constexpr = tl.constexpr(IGNORED)
_RUNS: tl.constexpr = tl.constexpr(RUNS)
_CROWDED: tl.constexpr = tl.constexpr(-(2**30))  # below every class; that of the tiles of two sides must differ too


def make_balls(side: Side, second: bool, frame: Frame, margin: float, config: Config) -> Side:
    """Cut the tiles of a side into runs and measure them: RUNS balls for each tile, some of them without a class."""
    count, features = side.rows.shape
    balls = side.padded // config.tile_m * RUNS
    centres = side.rows.new_empty((balls, features), dtype=float64)
    radii = side.rows.new_empty(balls, dtype=float64)
    classes = side.rows.new_empty(balls, dtype=int32)
    options = {"TILE": config.tile_m, **config.rows.options(features)}
    arguments = side.rows, side.ends, count, features, centres
    launch(ball_centres, (balls, -(-features // options["BLOCK_D"])), *arguments, **options)
    launch(ball_radii, (balls,), *arguments, side.classes, radii, classes, SECOND=second, **options)
    return make_side(centres, classes, side.ends, frame, margin, False, config.tile_m, config.rows, radii)


@triton.jit
def run_of(ends, count, TILE: tl.constexpr):
    """Where the program's run begins and ends, and where its tile does; it is empty where there are fewer runs."""
    begin = tl.program_id(0) // _RUNS * TILE
    stop = tl.minimum(begin + TILE, count)
    for _ in range(tl.program_id(0) % _RUNS):
        begin = tl.minimum(tl.load(ends + begin, mask=begin < stop, other=stop), stop)
    end = tl.minimum(tl.load(ends + begin, mask=begin < stop, other=stop), stop)
    return begin, end, stop


@triton.jit(do_not_specialize=["count"])
def ball_centres(
    rows, ends, count, features, centres, TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The mean of each run, one slice of features; it need only be near the mean."""
    ball = tl.program_id(0).to(tl.int64)
    begin, end, _ = run_of(ends, count, TILE)
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


@triton.jit(do_not_specialize=["count"])
def ball_radii(
    rows,
    ends,
    count,
    features,
    centres,
    classes,
    radii,
    ball_classes,
    SECOND: tl.constexpr,  # whether this is the other side
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The largest distance of a row of each run from its centre as stored; 1e-6 covers the rounding of the sum."""
    ball = tl.program_id(0).to(tl.int64)
    begin, end, stop = run_of(ends, count, TILE)
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
    crowded = (tl.program_id(0) % _RUNS == _RUNS - 1) & (end < stop)
    radius = tl.sqrt(tl.max(largest, 0)) * (1 + 1e-6)
    tl.store(radii + ball, tl.where(crowded, float("inf"), radius))
    of_tile = _CROWDED - tl.program_id(0) // _RUNS * 2 - SECOND
    own = tl.load(classes + begin, mask=begin < end, other=_IGNORED)
    tl.store(ball_classes + ball, tl.where(crowded, of_tile, own))
