"""Sums of differences over the active pairs of dense tiles, by products with their verdicts.

All sums are of integers and so exact; what is added to a row is added by one program, in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmfast.kernels.rows import deviation, in_steps


@triton.jit
def digits_in_use(constants):
    """How many digits the steps of the rows have; those above are zeros."""
    return tl.load(constants + 3).to(tl.int32)


@triton.jit(do_not_specialize=["row_tiles", "column_tiles"])
def list_tiles(
    dense,  # (row_tiles, column_tiles) int32
    row_tiles,
    column_tiles,
    order,  # (2, row_tiles * column_tiles) int32: for each row tile its column tiles, then the other way round
    row_counts,
    column_counts,
    BLOCK: tl.constexpr,
):
    """One program for each row or column of tiles: list which are dense, and say how many these are."""
    tile = tl.program_id(0)
    turned = tile >= row_tiles
    own = tl.where(turned, tile - row_tiles, tile)
    others = tl.where(turned, row_tiles, column_tiles)
    first = tl.where(turned, own, own * column_tiles)
    stride = tl.where(turned, column_tiles, 1)
    to = order + tl.where(turned, row_tiles * column_tiles + own * row_tiles, own * column_tiles)
    count = tl.zeros((1,), tl.int32)
    for begin in range(0, others, BLOCK):
        other = begin + tl.arange(0, BLOCK)
        some = (tl.load(dense + first + other * stride, mask=other < others, other=0) > 0).to(tl.int32)
        tl.store(to + count + tl.cumsum(some, 0) - 1, other, mask=some > 0)
        count += tl.sum(some, 0)
    tile = tile + tl.arange(0, 1)
    tl.store(row_counts + tile, count, mask=tile < row_tiles)
    tl.store(column_counts + tile - row_tiles, count, mask=tile >= row_tiles)


@triton.jit(do_not_specialize=["other_tiles"])
def add_digits(
    verdicts,  # (own tiles * TILE, columns) int8: 1 for active pairs
    columns,
    tile_order,  # (own tiles, other tiles) int32: the dense ones, first
    tile_counts,  # (own tiles,) int32, how many these are
    other_tiles,
    steps,  # (DIGITS, depth, other_padded) int8, of the other side
    other_padded,
    first_row,  # of the other side
    depth,
    constants,
    totals,  # (DIGITS, own tiles * TILE, depth) int32
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sum one digit of the rows j of all active pairs (i, j), for one tile of rows i and one slice of features.

    Programs of one tile, which read the same verdicts, follow one another.
    """
    tile = tl.program_id(2)
    count = tl.load(tile_counts + tile) * (TILE // BLOCK_K)
    digit = tl.program_id(1).to(tl.int64)
    if (count == 0) | (digit >= digits_in_use(constants)):
        return
    own = tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    at = verdicts + own[:, None] * columns + k[None, :]
    other = steps + (digit * depth + d)[:, None] * other_padded + first_row + k[None, :]
    total = tl.zeros((TILE, BLOCK_D), tl.int32)
    for t in range(count):
        column = tl.load(tile_order + tile * other_tiles + t // (TILE // BLOCK_K)) * TILE
        column += t % (TILE // BLOCK_K) * BLOCK_K
        total = tl.dot(tl.load(at + column), tl.trans(tl.load(other + column)), total, out_dtype=tl.int32)
    rows = tl.num_programs(2).to(tl.int64) * TILE
    tl.store(totals + (digit * rows + own)[:, None] * depth + d[None, :], total)


@triton.jit(do_not_specialize=["own_count"])
def add_totals(
    totals,  # (DIGITS, count, depth) int32
    counts,  # (count,) int32: active pairs of dense tiles
    counts_turned,  # the same of those that are seen from the other side, if SHARED
    tile_counts,
    count,
    rows,  # (own_count, features)
    own_count,
    first_row,  # of rows and sums
    features,
    centre,
    constants,
    sums,  # (own_padded, depth) float64
    depth,
    losses,  # (slices, own_padded) float64
    actives,  # (own_padded,) int32
    own_padded,
    KEPT: tl.constexpr,  # whether the sums are wanted
    SHARED: tl.constexpr,  # whether the rows are those of both sides
    COUNTED: tl.constexpr,  # whether pairs are counted
    DIGITS: tl.constexpr,
    TILE: tl.constexpr,  # rows of a tile, of which BLOCK_R is a part
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add n_i x_i - sum of x_j over the active pairs of a row to the sums, of which only the x_j are rounded.

    With w = z - r the rounded z and U_i = n_i w_i - sum of w_j, the sum over all pairs of |z_i - z_j|^2 is that of
    U_i . (2 z_i - w_i) + n_i |r_i|^2 over all rows of both sides, less twice that of r_i . r_j over the pairs, which is
    left out; the loss is what it leaves of the margins. Integers stay below 2^53.
    """
    if tl.load(tile_counts + tl.program_id(0) * BLOCK_R // TILE) == 0:
        return
    row = (tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    own = first_row + row
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D))[None, :]
    inside = (own < own_count)[:, None] & (d < features)
    x = tl.load(rows + own[:, None] * features + d, mask=inside, other=0)
    step = tl.load(constants + 2)
    unit = tl.load(constants)
    number = tl.load(counts + row)
    active = number
    if SHARED:
        active += tl.load(counts_turned + row)
    count_of = active.to(tl.float64)[:, None]
    # Rows without such pairs may hold anything.
    z = deviation(x, tl.load(centre + d, mask=d < features, other=0), unit)
    z = tl.where(inside & (count_of > 0), z, 0.0)
    rounded = in_steps(z, step) * step
    others = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    in_use = digits_in_use(constants)
    for back in tl.static_range(DIGITS):
        at = totals + ((DIGITS - 1 - back) * count.to(tl.int64) + row)[:, None] * depth + d
        written = tl.where(in_use >= DIGITS - back, features, 0)
        digit = tl.load(at, mask=inside & (d < written), other=0)
        others = others * 256 + digit.to(tl.float64)
    difference = count_of * rounded - others * step
    if KEPT:
        target = sums + own[:, None] * depth + d
        exact = (difference + count_of * (z - rounded)) / unit
        tl.store(target, tl.load(target, mask=inside, other=0) + exact, mask=inside)
    squares = difference * (2 * z - rounded) + count_of * ((z - rounded) * (z - rounded))
    loss = -tl.sum(squares, 1) / (unit * unit)
    if COUNTED:  # noqa: SIM102 (one is decided by the compiler, the other on the GPU)
        if tl.program_id(1) == 0:
            loss += tl.load(constants + 1) * number.to(tl.float64)
            tl.store(actives + own, tl.load(actives + own) + number)
    at = losses + tl.program_id(1) * own_padded.to(tl.int64) + own
    tl.store(at, tl.load(at) + loss)
