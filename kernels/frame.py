"""What both sides are compared in: a centre, a unit and a step. Any is right, one that fits most rows screens best."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import SMALL, next_power_of_2
from mmfast.kernels.launch import launch
from mmfast.kernels.order import Ordered, widen


class Steps(NamedTuple):
    """How finely rows are rounded for sums: the rounding is well below that of a gradient in their dtype."""

    DIGITS: int  # of 8 bits that a row in steps has, at most
    UNIT_BITS: int  # half a step is at most 2^-UNIT_BITS of the unit
    MARGIN_BITS: int  # and 2^-MARGIN_BITS sqrt(margin / D)


STEPS = {
    torch.float64: Steps(4, 27, 23),  # pairs are summed one by one
    torch.float32: Steps(4, 27, 23),
    torch.float16: Steps(3, 16, 15),
    torch.bfloat16: Steps(3, 12, 11),
}
SAMPLE = 64  # rows that the frame is made from, half of them of the other side if there is one


class Frame(NamedTuple):
    centre: Tensor  # (D,) float64, of values that the rows' dtype holds
    constants: Tensor  # (5,) float64: unit, margin, step, how many digits a row in steps has, and what they reach


def common_frame(x: Ordered, y: Ordered, margin: float) -> Frame:
    """Take the median of a sample, and the median of its deviations as the unit."""
    features = x.rows.shape[1]
    block = min(16, next_power_of_2(features))
    slices = -(-features // block)
    centre = x.rows.new_empty(features, dtype=torch.float64)
    deviations = x.rows.new_empty((slices, SAMPLE), dtype=torch.float64)
    constants = x.rows.new_full((5,), margin, dtype=torch.float64)
    launch(
        sample_centre,
        (slices,),
        x.rows,
        x.number,
        y.rows,
        y.number,
        features,
        centre,
        deviations,
        SAMPLE=SAMPLE,
        SELF=x is y,
        BLOCK_D=block,
        **SMALL,
    )
    narrow = x.rows.dtype != torch.float64
    launch(
        sample_constants,
        (1,),
        deviations,
        slices,
        features,
        constants,
        SAMPLE=SAMPLE,
        LOWEST=-120 if narrow else -900,
        HIGHEST=80 if narrow else 900,
        **STEPS[x.rows.dtype]._asdict(),
        **SMALL,
    )
    return Frame(centre, constants)


@triton.jit
def sampled(x, x_number, y, y_number, features, sample, d, SAMPLE: tl.constexpr, SELF: tl.constexpr):
    """Rows of the sample, evenly over those that take part; every second one is of the other side."""
    of_x = tl.load(x_number).to(tl.int64)
    if SELF:
        row = sample * of_x // SAMPLE
        return widen(tl.load(x + row * features + d, mask=d < features, other=0))
    of_y = tl.load(y_number).to(tl.int64)
    first = sample % 2 == 0
    x_row = sample // 2 * of_x // (SAMPLE // 2)
    y_row = sample // 2 * of_y // (SAMPLE // 2)
    x_value = tl.load(x + x_row * features + d, mask=(d < features) & first, other=0)
    y_value = tl.load(y + y_row * features + d, mask=(d < features) & (sample % 2 == 1), other=0)
    return tl.where(first, widen(x_value), widen(y_value))


@triton.jit
def sample_centre(
    x,
    x_number,  # (1,) int32, of the rows that take part, which come first
    y,
    y_number,
    features,
    centre,
    deviations,  # (slices, SAMPLE) float64: of the rows of the sample, the largest of a slice
    SAMPLE: tl.constexpr,
    SELF: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for each slice of features: the lower of two medians, which the rows' dtype holds."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    sample = tl.arange(0, SAMPLE)[:, None].to(tl.int64)
    values = sampled(x, x_number, y, y_number, features, sample, d, SAMPLE, SELF)
    place = tl.zeros((SAMPLE, BLOCK_D), tl.int32)
    for i in range(SAMPLE):
        other = tl.zeros((1, 1), tl.int64) + i
        value = sampled(x, x_number, y, y_number, features, other, d, SAMPLE, SELF)
        place += ((value < values) | ((value == values) & (i < sample))).to(tl.int32)
    median = tl.sum(tl.where(place == (SAMPLE - 1) // 2, values, 0.0), 0)[None, :]
    median = tl.where(tl.abs(median) < float("inf"), median, 0.0)
    tl.store(centre + d, median, mask=d < features)
    deviation = tl.where(d < features, tl.abs(values - median), 0.0)
    tl.store(deviations + tl.program_id(0) * SAMPLE + tl.arange(0, SAMPLE), tl.max(deviation, 1))


@triton.jit(do_not_specialize=["slices", "features"])
def sample_constants(
    deviations,
    slices,
    features,
    constants,  # the margin, five times
    SAMPLE: tl.constexpr,
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    DIGITS: tl.constexpr,
    UNIT_BITS: tl.constexpr,
    MARGIN_BITS: tl.constexpr,
):
    """Make the median deviation, or the largest if that is zero, one to two units."""
    sample = tl.arange(0, SAMPLE)
    deviation = tl.zeros((SAMPLE,), tl.float64)
    for i in range(slices):
        deviation = tl.maximum(deviation, tl.load(deviations + i * SAMPLE + sample))
    before = (deviation[None, :] < deviation[:, None]) | (
        (deviation[None, :] == deviation[:, None]) & (sample[None, :] < sample[:, None])
    )
    place = tl.sum(before.to(tl.int32), 1)
    median = tl.sum(tl.where(place == (SAMPLE - 1) // 2, deviation, 0.0), 0)
    median = tl.where(median > 0, median, tl.max(deviation, 0))
    median = tl.where((median > 0) & (median < float("inf")), median, 1.0)
    exponent = ((median.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023
    exponent = tl.minimum(tl.maximum(-exponent, LOWEST), HIGHEST)
    unit = ((exponent + 1023) << 52).to(tl.float64, bitcast=True)
    margin = tl.load(constants + 1)
    per_feature = tl.sqrt(margin / features.to(tl.float64)) * unit
    step = tl.minimum(per_feature * 2.0 ** (1 - MARGIN_BITS), 2.0 ** (1 - UNIT_BITS))
    reach = step * 2.0 ** (8 * DIGITS - 2)
    # One digit fewer will do if it reaches twice as far as the sample.
    enough = reach / 256 >= 2 * unit * tl.max(tl.where(deviation < float("inf"), deviation, 0.0), 0)
    tl.store(constants, unit)
    tl.store(constants + 2, step)
    tl.store(constants + 3, tl.where(enough, DIGITS - 1.0, DIGITS))
    tl.store(constants + 4, tl.where(enough, reach / 256, reach))
