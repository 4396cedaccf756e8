"""How many positive pairs are of equal rows, whose distance of zero ``mean_nonzero`` leaves out."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import Rows
from mmfast.kernels.launch import launch
from mmfast.kernels.order import IGNORED, widen


@triton.jit(do_not_specialize=["count"])
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


@triton.jit(do_not_specialize=["count"])
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
    launch(hash_rows, grid, rows, count, hashes, features, **options)
    order = hashes.argsort(stable=True)
    order = order[classes[order].argsort(stable=True)]
    differs = torch.ones(count, dtype=torch.int32, device=rows.device)
    launch(differ_from_previous, grid, rows, count, order, classes, differs, features, **options)
    group = differs.cumsum(0) - 1
    taking_part = classes[order] != IGNORED
    first = taking_part & (order < first_other)
    second = taking_part & (order >= first_other) if first_other < count else first
    sizes = torch.zeros((2, count), dtype=torch.int64, device=rows.device)
    sizes.scatter_add_(1, group.expand(2, -1), torch.stack([first, second]).long())
    return (sizes[0] * sizes[1]).sum()
