"""Rows as the kernels see them: in class order, and in digits of 8 bits with the bounds of the screen's proof.

The proof is that of ``csrc/screen.h``, whose names are used here: z = unit (x - centre) = s q + r, and for any frame
two rows are certainly inactive if a_i + a_j >= 2 s_i s_j q_i.q_j, certainly active if b_i + b_j < the same. Here all
of it but the comparison is computed in float64.

A second digit refines the first where that leaves too much open: z = s q + (s / 254) p + r', with the products

    (s_i q_i + s_i p_i / 254) . (s_j q_j + s_j p_j / 254) = s_i s_j (q_i.q_j + (q_i.p_j + p_i.q_j) / 254) + d_ij,

where d_ij, the product of the two rests l = (s / 254) p, is not computed: |2 d_ij| <= |l_i|^2 + |l_j|^2 is taken off
each a and added to each b. Rounding, in units of u = 2^-24 and of a row's share: the integers are converted, one is
scaled, both are added, and the sum is scaled twice, 6u of at most 4 n' + 5 l^2 with n' = |s q + l|^2; it is covered by
64u (n' + t + l^2).

For sums a row is also written in multiples of one step for all rows, as integers of at most four digits of 8 bits: sums
of such digits over any rows are exact. For float32 half a step is 2^-27 of the largest deviation of a typical row and
at most 2^-23 sqrt(margin / D), for half precision what :data:`mmfast.kernels.frame.STEPS` says; rows that deviate by
more than a quarter of what the digits hold have their pairs summed one by one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import SMALL
from mmfast.kernels.frame import STEPS, Frame
from mmfast.kernels.launch import launch
from mmfast.kernels.order import IGNORED, widen

TURNED = 32  # rows and features that are exchanged at a time; divides every tile and depth
MAX_SCREENED_FEATURES = 65536  # integer sums stay below 2^31
LEAST_SCREENED_MARGIN = 1e-290

_IGNORED: tl.constexpr = tl.constexpr(IGNORED)


class Side(NamedTuple):
    """One side of the comparison, in class order; what is padded is beyond the last row and the last feature."""

    rows: Tensor  # (N, D) in the input's dtype
    classes: Tensor  # (N,) int32, the same numbers on both sides
    ends: Tensor  # (N,) int32, where the class of a row ends; of balls nothing is asked
    digits: Tensor  # (2, N padded, D padded) int8
    bounds: Tensor  # (5, N padded) float32: s, a and b of one digit, a and b of two
    steps: Tensor  # (digits, D padded, N padded) int8, of z / step; none: pairs are summed one by one

    @property
    def padded(self) -> int:
        return self.digits.shape[1]

    @property
    def depth(self) -> int:
        return self.digits.shape[2]

    @property
    def summed(self) -> bool:
        return self.steps.shape[0] > 0


def make_side(
    rows: Tensor,
    classes: Tensor,
    ends: Tensor,
    frame: Frame,
    margin: float,
    summed: bool,
    tile: int,
    config: Any,
    radii: Tensor | None = None,
) -> Side:
    """Quantise rows that are in class order, for sums by products too if ``summed``; with ``radii`` rows are balls."""
    count, features = rows.shape
    padded = -(-count // tile) * tile
    depth = 64 if features <= 64 else -(-features // 128) * 128
    digits = rows.new_empty((2, padded, depth), dtype=torch.int8)
    bounds = rows.new_empty((5, padded), dtype=torch.float32)
    screened = margin >= LEAST_SCREENED_MARGIN and features <= MAX_SCREENED_FEATURES
    options = config.options(depth)
    launch(
        quantise,
        (padded // options["BLOCK_R"],),
        rows,
        classes,
        frame.centre,
        frame.constants,
        frame.constants if radii is None else radii,
        digits,
        bounds,
        count,
        features,
        padded,
        depth,
        SCREENED=screened,
        BALLS=radii is not None,
        **options,
    )
    summed = summed and screened
    steps = digits.new_empty((STEPS[rows.dtype].DIGITS if summed else 0, depth, padded))
    if summed:
        launch(
            make_steps,
            (padded // TURNED, depth // TURNED),
            rows,
            frame.centre,
            frame.constants,
            bounds,
            steps,
            count,
            features,
            padded,
            depth,
            DIGITS=steps.shape[0],
            BLOCK=TURNED,
            **SMALL,
        )
    return Side(rows, classes, ends, digits, bounds, steps)


@triton.jit
def deviation(x, centre, unit):
    """z of the proof."""
    return (widen(x) - centre) * unit


@triton.jit
def in_steps(z, step):
    """The nearest multiple of the step; of two the upper one."""
    return tl.floor(z / step + 0.5)


@triton.jit
def nearest(x):
    """The nearest digit; of two the upper one."""
    return tl.minimum(tl.maximum(tl.floor(x + 0.5), -127.0), 127.0)


@triton.jit
def limits(n, error, rest_squares, margin, slack):
    """a and b of the proof, for a row with the norm^2 n and the residual ``error``; what is infinite proves nothing."""
    reach = 2 * tl.sqrt(margin) * error
    t = margin / 2 + reach + 2 * error * error + rest_squares
    a = n - t - slack * (n + t) - 1e-30
    t = margin / 2 + reach + rest_squares
    b = n - margin / 2 + reach + rest_squares + slack * (n + t) + 1e-30
    # Written so that NaN proves nothing either.
    return tl.where(tl.abs(a) < 1e30, a, -float("inf")), tl.where(tl.abs(b) < 1e25, b, float("inf"))


@triton.jit(do_not_specialize=["count"])
def quantise(
    rows,
    classes,
    centre,
    constants,
    radii,  # (count,) float64, in the unit of the rows
    digits,
    bounds,
    count,
    features,
    padded,
    depth,
    SCREENED: tl.constexpr,
    BALLS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for BLOCK_R rows, those beyond the last included: digits and bounds."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    unit = tl.load(constants)
    margin = tl.load(constants + 1) * unit * unit
    taking_part = tl.load(classes + row, mask=row < count, other=_IGNORED) != _IGNORED
    filled = tl.where(taking_part, features, 0)[:, None]  # the others are rows of zeros
    d = tl.arange(0, BLOCK_D)[None, :]

    largest = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    for k in range(0, features, BLOCK_D):
        x = tl.load(rows + row[:, None] * features + k + d, mask=k + d < filled, other=0)
        z = deviation(x, tl.load(centre + k + d, mask=k + d < features, other=0), unit)
        largest = tl.maximum(largest, tl.where(k + d < filled, tl.abs(z), 0.0))
    top = tl.max(largest, 1)
    # Rounded to float32, in which it is compared; a floor keeps it, and what it is multiplied by, far from underflow.
    scale = tl.maximum(top / 127, 9.094947017729282e-13).to(tl.float32).to(tl.float64)
    known = scale < (1.099511627776e12 if SCREENED else 0.0)  # larger rows are not screened
    scale = tl.where(known, scale, 1.0)
    fine = (scale / 254)[:, None]
    # Any digit is right, since residuals are of the one chosen: a division is many times as slow.
    inverse = (1 / scale)[:, None]

    squares = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    residual = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    fine_squares = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    fine_residual = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    rest_squares = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    norm = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    for k in range(0, depth, BLOCK_D):
        here = k + d < filled
        x = tl.load(rows + row[:, None] * features + k + d, mask=here, other=0)
        z = tl.where(here, deviation(x, tl.load(centre + k + d, mask=k + d < features, other=0), unit), 0.0)
        first = tl.where(known[:, None], nearest(z * inverse), 0.0)
        whole = scale[:, None] * first
        left = z - whole
        second = tl.where(known[:, None], nearest(left * (254 * inverse)), 0.0)
        rest = fine * second
        squares += first * first
        residual += left * left
        rest_squares += rest * rest
        fine_squares += (whole + rest) * (whole + rest)
        fine_residual += (left - rest) * (left - rest)
        norm += z * z
        at = digits + row[:, None] * depth + k + d
        inside = k + d < depth
        tl.store(at, first.to(tl.int8), mask=inside)
        tl.store(at + padded.to(tl.int64) * depth, second.to(tl.int8), mask=inside)

    slack = 2.0e-14 * tl.sqrt(tl.sum(norm, 1)) + 1e-30
    error = tl.sqrt(tl.sum(residual, 1)) * (1 + 1e-9) + slack
    fine_error = tl.sqrt(tl.sum(fine_residual, 1)) * (1 + 1e-9) + slack
    if BALLS:
        radius = tl.load(radii + row, mask=row < count, other=0) * unit
        error += radius
        fine_error += radius
    n = scale * scale * tl.sum(squares, 1)
    a, b = limits(n, error, 0.0, margin, 16 * 5.960464477539063e-08)
    fine_a, fine_b = limits(tl.sum(fine_squares, 1), fine_error, tl.sum(rest_squares, 1), margin, 3.814697265625e-06)
    summed = known & (top <= tl.load(constants + 4))
    tl.store(bounds + row, scale.to(tl.float32))
    # What takes no part is never a candidate, what is not known always.
    a = tl.where(taking_part, tl.where(known, a, -float("inf")), float("inf"))
    fine_a = tl.where(taking_part, tl.where(known, fine_a, -float("inf")), float("inf"))
    tl.store(bounds + padded + row, a.to(tl.float32))
    tl.store(bounds + 2 * padded + row, tl.where(summed, b, float("inf")).to(tl.float32))
    tl.store(bounds + 3 * padded + row, fine_a.to(tl.float32))
    tl.store(bounds + 4 * padded + row, tl.where(summed, fine_b, float("inf")).to(tl.float32))


@triton.jit(do_not_specialize=["count"])
def make_steps(
    rows,
    centre,
    constants,
    bounds,
    steps,
    count,
    features,
    padded,
    depth,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the digits of the rows in steps, rows and features exchanged; zeros where a row is not to be summed."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = (row < count)[:, None] & (d < features)[None, :]
    summed = tl.load(bounds + 4 * padded + row) < float("inf")
    x = tl.load(rows + row[:, None] * features + d[None, :], mask=here, other=0)
    z = deviation(x, tl.load(centre + d, mask=d < features, other=0)[None, :], tl.load(constants))
    multiple = tl.where(here & summed[:, None], in_steps(z, tl.load(constants + 2)), 0.0).to(tl.int32)
    at = steps + d.to(tl.int64)[:, None] * padded + row[None, :]
    for _ in tl.static_range(DIGITS):
        digit = ((multiple + 128) & 255) - 128
        tl.store(at, tl.trans(digit.to(tl.int8)))
        multiple = (multiple - digit) >> 8
        at += depth.to(tl.int64) * padded
