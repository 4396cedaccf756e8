"""Rows of both sides in the order of their classes, so that a class is a range and a tile holds few of them.

Each side's labels are sorted; where a class begins and ends, on its own side and on the other, is then searched for.
A class is numbered by where it begins among the rows of x, or, if it is only on the other side, by a negative number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import SMALL, Config, next_power_of_2
from mmfast.kernels.launch import launch

IGNORED = 2**31 - 1  # the class of rows that take no part, which are behind all others

_IGNORED: tl.constexpr = tl.constexpr(IGNORED)


class Ordered(NamedTuple):
    """Rows of one side in the order of their classes."""

    rows: Tensor  # (N, D)
    order: Tensor  # (N,) int32, of the input's rows
    classes: Tensor  # (N,) int32
    begins: Tensor  # (N,) int32, where the class of a row begins and ends
    ends: Tensor
    other_begins: Tensor  # the same on the other side; an empty range if it is not there
    other_ends: Tensor
    spoilt: Tensor  # (N,) int32, whether a row takes part and is not finite
    number: Tensor  # (1,) int32, of the rows that take part


def order_sides(
    x: Tensor, x_labels: Tensor, y: Tensor | None, y_labels: Tensor | None, ignore_index: int, config: Config
) -> tuple[Ordered, Ordered]:
    """Bring both sides into order; in the self form both results are one."""
    x_sorted = x_labels.sort(stable=True)
    if y is None or y_labels is None:
        both = _ordered(x, x_sorted, x_sorted, ignore_index, False, config)
        return both, both
    y_sorted = y_labels.sort(stable=True)
    return (
        _ordered(x, x_sorted, y_sorted, ignore_index, False, config),
        _ordered(y, y_sorted, x_sorted, ignore_index, True, config),
    )


def _ordered(
    rows: Tensor,
    own: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
    ignore_index: int,
    second: bool,
    config: Config,
) -> Ordered:
    count, features = rows.shape
    found = own[1].new_empty((7, count), dtype=torch.int32)
    number = found.new_empty(1)
    block = min(128, next_power_of_2(count))
    launch(
        find_ranges,
        (-(-count // block),),
        *own,
        count,
        count.bit_length(),
        other[0],
        other[0].shape[0],
        other[0].shape[0].bit_length(),
        ignore_index,
        found,
        number,
        SELF=other is own,
        SECOND=second,
        BLOCK=block,
        **SMALL,
    )
    placed = rows.new_empty((count, features))
    options = config.rows.options(features)
    launch(
        place_rows,
        (-(-count // options["BLOCK_R"]),),
        rows,
        rows.stride(0),
        rows.stride(1),
        found,
        count,
        placed,
        features,
        **options,
    )
    order, classes, begins, ends, other_begins, other_ends, spoilt = found.unbind()
    return Ordered(placed, order, classes, begins, ends, other_begins, other_ends, spoilt, number)


@triton.jit
def widen(x):
    """The same values in float64."""
    if x.dtype == tl.bfloat16:
        x = x.to(tl.float32)  # the interpreter knows no other way
    return x.to(tl.float64)


@triton.jit
def next_found(values, count, key, found, size, LEVEL: tl.constexpr):
    """One step of a binary search for how many of the sorted values are below a key, or also equal to it if LEVEL."""
    probe = found + size
    value = tl.load(values + probe - 1, mask=probe <= count, other=0)
    below = (value <= key) if LEVEL else (value < key)
    return tl.where((probe <= count) & below, probe, found)


@triton.jit
def range_of(values, count, steps, key):
    """Where a key begins and ends among the sorted values; 2^steps is above their number."""
    begin = tl.zeros_like(key).to(tl.int32)
    end = begin
    for step in range(steps):
        size = 1 << (steps - 1 - step)
        begin = next_found(values, count, key, begin, size, False)
        end = next_found(values, count, key, end, size, True)
    return begin, end


@triton.jit(do_not_specialize=["count", "steps", "other_count", "other_steps", "ignore_index"])
def find_ranges(
    values,  # (count,) int64, the labels in order
    order,  # (count,) int64, where they came from
    count,
    steps,
    other_values,  # of the other side
    other_count,
    other_steps,
    ignore_index,
    found,  # (7, count) int32: order, classes, begins, ends, other_begins, other_ends, and one that is not written
    number,  # (1,) int32
    SELF: tl.constexpr,
    SECOND: tl.constexpr,  # whether classes are numbered by the other side
    BLOCK: tl.constexpr,
):
    """One program for some rows of the order, in which the ignored ones are moved to the end."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    here = place < count
    ignored = tl.zeros((1,), tl.int64) + ignore_index
    gone_begin, gone_end = range_of(values, count, steps, ignored)
    gone = gone_end - gone_begin
    kept = count - gone
    source = tl.where(place < gone_begin, place, tl.where(place < kept, place + gone, place - kept + gone_begin))
    label = tl.load(values + source, mask=here, other=0)
    row = tl.load(order + source, mask=here, other=0)
    begin, end = range_of(values, count, steps, label)
    taking_part = label != ignored
    begin = tl.where(taking_part, begin - tl.where(begin >= gone_end, gone, 0), kept)
    end = tl.where(taking_part, end - tl.where(end >= gone_end, gone, 0), count)
    if SELF:
        other_begin = begin
        other_end = end
    else:
        other_begin, other_end = range_of(other_values, other_count, other_steps, label)
        other_gone_begin, other_gone_end = range_of(other_values, other_count, other_steps, ignored)
        other_gone = other_gone_end - other_gone_begin
        other_begin = tl.where(taking_part, other_begin - tl.where(other_begin >= other_gone_end, other_gone, 0), 0)
        other_end = tl.where(taking_part, other_end - tl.where(other_end >= other_gone_end, other_gone, 0), 0)
    class_number = begin
    if SECOND:
        class_number = tl.where(other_end > other_begin, other_begin, -1 - begin)
    size = tl.zeros((1,), tl.int64) + count
    at = found + place
    tl.store(at, row.to(tl.int32), mask=here)
    tl.store(at + size, tl.where(taking_part, class_number, _IGNORED), mask=here)
    tl.store(at + 2 * size, begin, mask=here)
    tl.store(at + 3 * size, end, mask=here)
    tl.store(at + 4 * size, other_begin, mask=here)
    tl.store(at + 5 * size, other_end, mask=here)
    if tl.program_id(0) == 0:
        tl.store(number + tl.arange(0, 1), kept)


@triton.jit(do_not_specialize=["count"])
def place_rows(
    rows,  # (count, features), of any strides
    row_stride,
    feature_stride,
    found,  # as find_ranges leaves it; whether a row that takes part is not finite is added
    count,
    placed,  # (count, features)
    features,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for BLOCK_R rows of the order."""
    place = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    here = place < count
    row = tl.load(found + place, mask=here, other=0).to(tl.int64)
    taking_part = tl.load(found + count + place, mask=here, other=_IGNORED) != _IGNORED
    spoilt = tl.zeros((BLOCK_R, BLOCK_D), tl.int32)
    for k in range(0, features, BLOCK_D):
        d = k + tl.arange(0, BLOCK_D).to(tl.int64)
        inside = here[:, None] & (d < features)[None, :]
        x = tl.load(rows + row[:, None] * row_stride + d[None, :] * feature_stride, mask=inside, other=0)
        tl.store(placed + place[:, None] * features + d[None, :], x, mask=inside)
        x = widen(x)
        spoilt = tl.maximum(spoilt, (x - x != 0).to(tl.int32))  # NaN, also of what is infinite
    tl.store(found + 6 * count.to(tl.int64) + place, tl.max(spoilt, 1) * taking_part.to(tl.int32), mask=here)
