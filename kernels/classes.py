"""The positive pairs in closed form, class by class, and the gradient made of them and of the sums of the negatives.

The formulas are those of ``csrc/classes.h``. Rows are in class order, so that a class is a range.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import Config, Rows
from mmfast.kernels.frame import IGNORED
from mmfast.kernels.rows import widen

_IGNORED: tl.constexpr = tl.constexpr(IGNORED)


@triton.jit
def combine(
    rows,  # (count, features)
    order,
    classes,
    class_ends,  # (count,) int64, where the class of a row ends
    count,
    others,  # rows of the other side, the same rows in the self form
    other_begins,  # (count,) int64, where the class of a row begins and ends there
    other_ends,
    features,
    weights,  # (2,) float64, of positives and of negatives
    sums,  # (., depth) float64
    depth,
    gradient,  # like rows, but in the order of the input
    losses,  # (slices, count) float64, zeros
    FACTOR: tl.constexpr,  # 4 in the self form, 2 across
    GRADIENT: tl.constexpr,  # whether it is wanted
    SUMS: tl.constexpr,  # whether there are any
    LOSS: tl.constexpr,  # whether it is wanted
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for each slice of features of each row; that of a class's first row does the class.

    gradient_i = FACTOR (w_p n' (x_i - mean') - w_n sums_i) with n' rows and their mean on the other side, and the sum
    of squares n' sum_i |x_i - mean'|^2 + n sum_j |y_j - mean'|^2.
    """
    begin = tl.program_id(0)
    own = tl.load(classes + begin)
    before = tl.load(classes + begin - 1, mask=begin > 0, other=-1)
    if (own == before) | (own == _IGNORED):
        return
    end = tl.load(class_ends + begin).to(tl.int32)
    other_begin = tl.load(other_begins + begin).to(tl.int32)
    other_end = tl.load(other_ends + begin).to(tl.int32)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    r = tl.arange(0, BLOCK_R)
    matched = d < tl.where(other_end > other_begin, features, 0)
    origin = widen(tl.load(others + other_begin.to(tl.int64) * features + d, mask=matched, other=0))
    mean = tl.zeros((BLOCK_D,), tl.float64)
    for j in range(other_begin, other_end, BLOCK_R):
        here = (j + r < other_end)[:, None] & (d < features)[None, :]
        y = widen(tl.load(others + (j + r).to(tl.int64)[:, None] * features + d[None, :], mask=here, other=0))
        mean += tl.sum(tl.where(here, y - origin[None, :], 0.0), 0)
    mean = mean / tl.maximum(other_end - other_begin, 1).to(tl.float64)
    spread = tl.zeros((BLOCK_D,), tl.float64)
    if LOSS and FACTOR == 2:  # in the self form it is the distance below
        for j in range(other_begin, other_end, BLOCK_R):
            here = (j + r < other_end)[:, None] & (d < features)[None, :]
            y = widen(tl.load(others + (j + r).to(tl.int64)[:, None] * features + d[None, :], mask=here, other=0))
            deviation = tl.where(here, y - origin[None, :] - mean[None, :], 0.0)
            spread += tl.sum(deviation * deviation, 0)
    distance = tl.zeros((BLOCK_D,), tl.float64)
    matches = (other_end - other_begin).to(tl.float64)
    positive = FACTOR * matches * tl.load(weights)
    negative = FACTOR * tl.load(weights + 1)
    for i in range(begin, end, BLOCK_R):
        row = (i + r).to(tl.int64)
        here = (i + r < end)[:, None] & (d < features)[None, :]
        x = widen(tl.load(rows + row[:, None] * features + d[None, :], mask=here, other=0))
        deviation = tl.where(here, x - origin[None, :] - mean[None, :], 0.0)
        if LOSS:
            distance += tl.sum(deviation * deviation, 0)
        if GRADIENT:
            value = positive * deviation
            if SUMS:
                at = row[:, None] * depth + d[None, :]
                value -= negative * tl.load(sums + at, mask=here, other=0)
            target = tl.load(order + row, mask=i + r < end, other=0)
            at = gradient + target[:, None] * features + d[None, :]
            tl.store(at, value.to(gradient.dtype.element_ty), mask=here)
    if LOSS:
        size = (end - begin).to(tl.float64)
        if FACTOR == 4:
            spread = distance
        total = tl.where(matches > 0, matches * tl.sum(distance, 0) + size * tl.sum(spread, 0), 0.0)
        tl.store(losses + tl.program_id(1).to(tl.int64) * count + begin, total)


def class_ranges(classes: Tensor, other_classes: Tensor) -> tuple[Tensor, Tensor]:
    """Where the class of each row begins and ends among the others."""
    begins = torch.searchsorted(other_classes, classes)
    return begins, torch.searchsorted(other_classes, classes, right=True)


def positive_sum_and_gradient(
    rows: Tensor,
    order: Tensor,
    classes: Tensor,
    others: Tensor,
    other_classes: Tensor,
    self_form: bool,
    gradient: Tensor | None,
    sums: Tensor | None,
    weights: Tensor,
    with_loss: bool,
    config: Config,
) -> Tensor:
    """Write the gradient of one side; return the sum of the squared distances of the positive pairs."""
    count, features = rows.shape
    options = config.combine.options(features)
    slices = -(-features // options["BLOCK_D"])
    losses = weights.new_zeros((slices, count) if with_loss else (1,))
    begins, ends = class_ranges(classes, other_classes)
    own_ends = ends if self_form else torch.searchsorted(classes, classes, right=True)
    combine[(count, slices)](
        rows,
        order,
        classes,
        own_ends,
        count,
        others,
        begins,
        ends,
        features,
        weights,
        weights if sums is None else sums,
        0 if sums is None else sums.shape[1],
        weights if gradient is None else gradient,
        losses,
        FACTOR=4 if self_form else 2,
        GRADIENT=gradient is not None,
        SUMS=sums is not None,
        LOSS=with_loss,
        **options,
    )
    return losses.sum()


@triton.jit
def hash_rows(rows, count, hashes, features, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """A hash of 64 bits for each row, the same for equal rows; -0 equals 0."""
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    total = tl.zeros((BLOCK_R, BLOCK_D), tl.int64)
    for k in range(0, features, BLOCK_D):
        d = k + tl.arange(0, BLOCK_D)[None, :]
        here = (row < count)[:, None] & (d < features)
        x = widen(tl.load(rows + row[:, None] * features + d, mask=here, other=0))
        bits = tl.where(x == 0, 0.0, x).to(tl.int64, bitcast=True)
        # A feature's own number spreads over all bits, so that no two features can exchange values unnoticed.
        mixed = (bits ^ ((d.to(tl.int64) + 1) * -7046029254386353131)) * -7046029254386353131
        mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
        total += tl.where(d < features, mixed ^ (mixed >> 32), 0)
    tl.store(hashes + row, tl.sum(total, 1), mask=row < count)


@triton.jit
def differ_from_previous(rows, count, order, classes, differs, features, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """Whether a row of the order is of another class than the one before it, or has another value."""
    place = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = tl.load(order + place, mask=place < count, other=0)
    previous = tl.load(order + place - 1, mask=(place > 0) & (place < count), other=0)
    different = ((place == 0) | (tl.load(classes + row) != tl.load(classes + previous))).to(tl.int32)
    for k in range(0, features, BLOCK_D):
        d = k + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(rows + row[:, None] * features + d, mask=d < features, other=0)
        y = tl.load(rows + previous[:, None] * features + d, mask=d < features, other=0)
        different = tl.maximum(different, tl.max((x != y).to(tl.int32), 1))
    tl.store(differs + place, different, mask=place < count)


def count_equal_pairs(rows: Tensor, classes: Tensor, first_other: int, config: Rows) -> Tensor:
    """Ordered pairs of equal rows of a class: of all rows, or of those before ``first_other`` with those from there on.

    Equal rows become neighbours in the order of their hashes, and neighbours are compared value by value. Only rows
    that differ and yet have equal hashes, in a class and one between the others, could keep two equal ones apart.
    """
    count, features = rows.shape
    hashes = torch.empty(count, dtype=torch.int64, device=rows.device)
    options = config.options(features)
    grid = (-(-count // options["BLOCK_R"]),)
    hash_rows[grid](rows, count, hashes, features, **options)
    order = hashes.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    differs = torch.ones(count, dtype=torch.int32, device=rows.device)
    differ_from_previous[grid](rows, count, order, classes, differs, features, **options)
    group = differs.cumsum(0) - 1
    taking_part = classes[order] != IGNORED
    first = taking_part & (order < first_other)
    second = taking_part & (order >= first_other) if first_other < count else first
    sizes = torch.zeros((2, count), dtype=torch.int64, device=rows.device)
    sizes.scatter_add_(1, group.expand(2, -1), torch.stack([first, second]).long())
    return (sizes[0] * sizes[1]).sum()
