"""The positive pairs in closed form, class by class, and the gradient made of them and of the sums of the negatives.

The formulas are those of ``csrc/classes.h``. Rows are in class order, so that a class is a range. A class of more than
PART_ROWS rows is cut into parts of so many, from its first row on; each is a program's, what they have in common is
stored and then merged in their order: no atomics, and one result whichever program runs first.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import Config
from mmfast.kernels.launch import launch
from mmfast.kernels.negatives import Sums
from mmfast.kernels.order import IGNORED, Ordered, widen

PART_ROWS = 512  # some 64 dependent loads for a program, and for 50,000 rows of a class a hundred parts to merge

_IGNORED: tl.constexpr = tl.constexpr(IGNORED)


@triton.jit
def slot_of(begin, start, PART: tl.constexpr):
    """Where the sums of a part are stored, given the first rows of its class and of the part.

    PART rows that lie side by side hold the first row of at most two parts of long classes: of one class that reaches
    into them, and of one that begins there.
    """
    return start // PART * 2 + (begin > start // PART * PART).to(tl.int32)


@triton.jit
def deviations(rows, features, start, end, d, origin, mean, BLOCK_R: tl.constexpr):
    """The next BLOCK_R rows as they deviate from origin + mean, zeros beyond the end; one slice of features."""
    r = start + tl.arange(0, BLOCK_R)
    here = (r < end)[:, None] & (d < features)[None, :]
    x = widen(tl.load(rows + r.to(tl.int64)[:, None] * features + d[None, :], mask=here, other=0))
    return tl.where(here, x - origin[None, :] - mean[None, :], 0.0)


@triton.jit
def total_deviation(rows, features, start, end, d, origin, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The sum of the rows' deviations from the origin."""
    total = tl.zeros((BLOCK_D,), tl.float64)
    nothing = tl.zeros((BLOCK_D,), tl.float64)
    for i in range(start, end, BLOCK_R):
        total += tl.sum(deviations(rows, features, i, end, d, origin, nothing, BLOCK_R), 0)
    return total


@triton.jit
def squared_deviation(rows, features, start, end, d, origin, mean, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """The sum of the rows' squared deviations from origin + mean."""
    total = tl.zeros((BLOCK_D,), tl.float64)
    for i in range(start, end, BLOCK_R):
        deviation = deviations(rows, features, i, end, d, origin, mean, BLOCK_R)
        total += tl.sum(deviation * deviation, 0)
    return total


@triton.jit(do_not_specialize=["count"])
def sum_parts(
    rows,  # (count, features)
    count,
    begins,  # (count,) int32, where the class of a row begins and ends
    ends,
    features,
    totals,  # (slots, features) float64: sums of the deviations from the first row of the class
    spreads,  # the same: sums of the squared deviations from the part's own mean
    SPREAD: tl.constexpr,  # whether these are wanted
    PART: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for each slice of features of each slot; a slot without a part of a long class stays as it is."""
    slot = tl.program_id(0)
    first = slot // 2 * PART
    row = tl.where(slot % 2 == 0, first, tl.minimum(first + PART, count) - 1)  # the part's class holds this one
    begin = tl.load(begins + row)
    class_end = tl.load(ends + row)
    start = begin + tl.cdiv(tl.maximum(first - begin, 0), PART) * PART
    if (class_end - begin <= PART) | (start >= class_end) | (slot_of(begin, start, PART) != slot):
        return
    end = tl.minimum(start + PART, class_end)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    origin = widen(tl.load(rows + begin.to(tl.int64) * features + d, mask=d < features, other=0))
    total = total_deviation(rows, features, start, end, d, origin, BLOCK_R, BLOCK_D)
    at = slot.to(tl.int64) * features + d
    tl.store(totals + at, total, mask=d < features)
    if SPREAD:
        mean = total / (end - start).to(tl.float64)
        spread = squared_deviation(rows, features, start, end, d, origin, mean, BLOCK_R, BLOCK_D)
        tl.store(spreads + at, spread, mask=d < features)


@triton.jit(do_not_specialize=["count"])
def combine(
    rows,  # (count, features)
    order,
    classes,
    begins,  # (count,) int32, where the class of a row begins and ends
    ends,
    count,
    others,  # rows of the other side, the same rows in the self form
    other_begins,  # (count,) int32, where the class of a row begins and ends there
    other_ends,
    totals,  # of the parts of the other side, as sum_parts stores them
    spreads,
    features,
    weights,  # (2,) float64, of positives and of negatives
    sums,  # (., depth) float64
    depth,
    gradient,  # like rows, but in the order of the input
    losses,  # (slices, count) float64, of which only the total means something
    FACTOR: tl.constexpr,  # 4 in the self form, 2 across
    GRADIENT: tl.constexpr,  # whether it is wanted
    SUMS: tl.constexpr,  # whether there are any
    LOSS: tl.constexpr,  # whether it is wanted
    PART: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program for each slice of features of each row; that of a part's first row does the part.

    gradient_i = FACTOR (w_p n' (x_i - mean') - w_n sums_i) with n' rows and their mean on the other side, and the sum
    of squares n' sum_i |x_i - mean'|^2 + n sum_j |y_j - mean'|^2. The first part of a class adds the second term; that
    of a long class on the other side is sum_k (spread_k + n_k |mean_k - mean'|^2) over its parts.
    """
    start = tl.program_id(0)
    begin = tl.load(begins + start)
    own_loss = losses + tl.program_id(1).to(tl.int64) * count + start
    if (start - begin) % PART != 0:
        if LOSS:
            tl.store(own_loss, 0.0)
        return
    class_end = tl.load(ends + start)
    end = tl.minimum(start + PART, class_end)
    # Rows that take no part are a class of their own, which nothing matches.
    ignored = tl.load(classes + start) == _IGNORED
    other_begin = tl.load(other_begins + start)
    other_end = tl.where(ignored, other_begin, tl.load(other_ends + start))
    is_long = other_end - other_begin > PART
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    matched = d < tl.where(other_end > other_begin, features, 0)
    origin = widen(tl.load(others + other_begin.to(tl.int64) * features + d, mask=matched, other=0))
    total = tl.zeros((BLOCK_D,), tl.float64)
    if is_long:
        for j in range(other_begin, other_end, PART):
            at = slot_of(other_begin, j, PART).to(tl.int64) * features + d
            total += tl.load(totals + at, mask=d < features, other=0)
    else:
        total = total_deviation(others, features, other_begin, other_end, d, origin, BLOCK_R, BLOCK_D)
    mean = total / tl.maximum(other_end - other_begin, 1).to(tl.float64)
    spread = tl.zeros((BLOCK_D,), tl.float64)
    if LOSS and FACTOR == 2:  # noqa: SIM102 (one is decided by the compiler, the other on the GPU)
        if start == begin:  # in the self form it is the distance below
            if is_long:
                for j in range(other_begin, other_end, PART):
                    at = slot_of(other_begin, j, PART).to(tl.int64) * features + d
                    size = tl.minimum(other_end - j, PART).to(tl.float64)
                    away = tl.load(totals + at, mask=d < features, other=0) / size - mean
                    spread += tl.load(spreads + at, mask=d < features, other=0) + size * away * away
            else:
                spread = squared_deviation(others, features, other_begin, other_end, d, origin, mean, BLOCK_R, BLOCK_D)
    distance = tl.zeros((BLOCK_D,), tl.float64)
    matches = (other_end - other_begin).to(tl.float64)
    positive = FACTOR * matches * tl.load(weights)
    negative = FACTOR * tl.load(weights + 1)
    for i in range(start, end, BLOCK_R):
        deviation = deviations(rows, features, i, end, d, origin, mean, BLOCK_R)
        if LOSS:
            distance += tl.sum(deviation * deviation, 0)
        if GRADIENT:
            r = i + tl.arange(0, BLOCK_R)
            here = (r < end)[:, None] & (d < features)[None, :]
            value = positive * deviation
            if SUMS:
                at = r.to(tl.int64)[:, None] * depth + d[None, :]
                value -= negative * tl.load(sums + at, mask=here, other=0)
            value = tl.where(ignored, 0.0, value)
            target = tl.load(order + r, mask=r < end, other=0)
            at = gradient + target.to(tl.int64)[:, None] * features + d[None, :]
            tl.store(at, value.to(gradient.dtype.element_ty), mask=here)
    if LOSS:
        size = (class_end - begin).to(tl.float64)
        if FACTOR == 4:
            spread = distance
        total_loss = tl.where(matches > 0, matches * tl.sum(distance, 0) + size * tl.sum(spread, 0), 0.0)
        tl.store(own_loss, total_loss)


def positive_losses_and_gradient(
    own: Ordered,
    other: Ordered,
    gradient: Tensor | None,
    sums: Sums | None,
    weights: Tensor,
    with_loss: bool,
    config: Config,
) -> Tensor:
    """Write the gradient of one side; return what adds up to the squared distances of the positive pairs."""
    count, features = own.rows.shape
    differences = sums.differences if sums else None
    options = {"PART": PART_ROWS, **config.combine.options(features)}
    slices = -(-features // options["BLOCK_D"])
    totals = spreads = weights
    if other.rows.shape[0] > PART_ROWS:
        slots = 2 * -(-other.rows.shape[0] // PART_ROWS)
        with_spread = with_loss and other is not own
        totals = weights.new_empty((slots, features))
        spreads = weights.new_empty((slots, features) if with_spread else 0)
        launch(
            sum_parts,
            (slots, slices),
            other.rows,
            other.rows.shape[0],
            other.begins,
            other.ends,
            features,
            totals,
            spreads,
            SPREAD=with_spread,
            **options,
        )
    losses = weights.new_empty((slices, count) if with_loss else (1,))
    launch(
        combine,
        (count, slices),
        own.rows,
        own.order,
        own.classes,
        own.begins,
        own.ends,
        count,
        other.rows,
        own.other_begins,
        own.other_ends,
        totals,
        spreads,
        features,
        weights,
        weights if differences is None else differences,
        0 if differences is None else differences.shape[1],
        weights if gradient is None else gradient,
        losses,
        FACTOR=4 if other is own else 2,
        GRADIENT=gradient is not None,
        SUMS=differences is not None,
        LOSS=with_loss,
        **options,
    )
    return losses
