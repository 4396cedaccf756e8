"""Sums of differences over the active pairs, by the masks of the screen.

Sums by products are of integers and so exact; those pair by pair are in float64. Each row is added to by one program
at a time, so that the order of every sum is fixed and there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmfast.kernels.order import widen
from mmfast.kernels.rows import deviation, in_steps


@triton.jit
def count_ones(word):
    """The number of bits in each word of 32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24


@triton.jit(do_not_specialize=["row_tiles", "column_tiles"])
def list_tiles(
    active,  # (row_tiles, column_tiles) int32
    row_tiles,
    column_tiles,
    order,  # (2, row_tiles * column_tiles) int32: for each row tile its column tiles, then the other way round
    row_counts,
    column_counts,
    BLOCK: tl.constexpr,
):
    """List with which tiles each tile has active pairs, and say how many these are."""
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
        some = (tl.load(active + first + other * stride, mask=other < others, other=0) > 0).to(tl.int32)
        tl.store(to + count + tl.cumsum(some, 0) - 1, other, mask=some > 0)
        count += tl.sum(some, 0)
    tile = tile + tl.arange(0, 1)
    tl.store(row_counts + tile, count, mask=tile < row_tiles)
    tl.store(column_counts + tile - row_tiles, count, mask=tile >= row_tiles)


@triton.jit(do_not_specialize=["other_tiles"])
def add_digits(
    words,  # (own tiles * BLOCK_M, words_per_row) int32
    words_per_row,
    tile_order,  # (own tiles, other tiles) int32: those with active pairs, first
    tile_counts,  # (own tiles,) int32, how many these are
    other_tiles,
    steps,  # (WIDE, depth, other_padded) int8, of the other side
    other_padded,
    first_row,  # of the other side
    depth,
    totals,  # (WIDE, own tiles * BLOCK_M, depth) int32
    pairs,  # (own tiles * BLOCK_M,) int32
    TILE: tl.constexpr,  # columns of a tile
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Sum one digit of the rows j of all certain pairs (i, j), for one tile of rows i and one slice of features."""
    tile = tl.program_id(0)
    count = tl.load(tile_counts + tile) * (TILE // BLOCK_K)
    if count == 0:
        return
    digit = tl.program_id(2).to(tl.int64)
    row = tl.arange(0, BLOCK_M)
    first = tile.to(tl.int64) * BLOCK_M
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    other = d.to(tl.int64)[:, None] * other_padded + tl.arange(0, BLOCK_K)[None, :]
    at = row[:, None] * words_per_row + tl.arange(0, BLOCK_K // 32)[None, :]
    words += first * words_per_row
    steps += digit * depth * other_padded + first_row
    total = tl.zeros((BLOCK_M, BLOCK_D), tl.int32)
    ones = tl.zeros((BLOCK_M,), tl.int32)
    for t in range(count):
        column = tl.load(tile_order + tile * other_tiles + t // (TILE // BLOCK_K)) * TILE
        column += t % (TILE // BLOCK_K) * BLOCK_K
        mask = tl.load(words + at + column // 32)
        bits = (mask[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
        rows = tl.load(steps + column + other)
        total = tl.dot(tl.reshape(bits.to(tl.int8), (BLOCK_M, BLOCK_K)), tl.trans(rows), total, out_dtype=tl.int32)
        ones += tl.sum(count_ones(mask), 1)
    own_rows = tl.num_programs(0).to(tl.int64) * BLOCK_M
    tl.store(totals + (digit * own_rows + first) * depth + row[:, None] * depth + d[None, :], total)
    if (tl.program_id(1) == 0) & (digit == 0):
        tl.store(pairs + first + row, ones)


@triton.jit(do_not_specialize=["own_count"])
def add_totals(
    totals,  # (WIDE, count, depth) int32
    pairs,  # (count,) int32
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
    COUNTED: tl.constexpr,  # whether these pairs are counted, rather than seen from the other side
    WIDE: tl.constexpr,
    TILE: tl.constexpr,  # rows of a tile, of which BLOCK_R is a part
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add n_i x_i - sum of x_j over the certain pairs of a row to the sums, of which only the x_j are rounded.

    With w the rounded z and U_i = n_i w_i - sum of w_j, the sum over all pairs of |z_i - z_j|^2 is, but for the squares
    of the roundings, that of U_i . (2 z_i - w_i) over all rows of both sides; the loss is what it leaves of the
    margins. Integers stay below 2^53.
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
    count_of = tl.load(pairs + row).to(tl.float64)[:, None]
    # Rows without such pairs may hold anything.
    z = deviation(x, tl.load(centre + d, mask=d < features, other=0), unit)
    z = tl.where(inside & (count_of > 0), z, 0.0)
    rounded = in_steps(z, step) * step
    others = tl.zeros((BLOCK_R, BLOCK_D), tl.float64)
    for back in tl.static_range(WIDE):
        at = totals + ((WIDE - 1 - back) * count.to(tl.int64) + row)[:, None] * depth + d
        others = others * 256 + tl.load(at, mask=inside, other=0).to(tl.float64)
    difference = count_of * rounded - others * step
    if KEPT:
        target = sums + own[:, None] * depth + d
        exact = (difference + count_of * (z - rounded)) / unit
        tl.store(target, tl.load(target, mask=inside, other=0) + exact, mask=inside)
    loss = -tl.sum(difference * (2 * z - rounded), 1) / (unit * unit)
    if COUNTED:  # noqa: SIM102 (one is decided by the compiler, the other on the GPU)
        if tl.program_id(1) == 0:
            number = tl.load(pairs + row)
            loss += tl.load(constants + 1) * number.to(tl.float64)
            tl.store(actives + own, tl.load(actives + own) + number)
    at = losses + tl.program_id(1) * own_padded.to(tl.int64) + own
    tl.store(at, tl.load(at) + loss)


@triton.jit(do_not_specialize=["rows", "own_count"])
def add_pairs(
    words,  # (rows, words_per_row) int32
    rows,
    words_per_row,
    own_rows,  # (own_count, features)
    own_count,
    first_row,
    other_rows,
    other_first_row,
    features,
    constants,
    sums,  # (own_padded, depth) float64
    depth,
    losses,  # (own_padded,) float64
    actives,  # (own_padded,) int32
    queue,  # (programs, PLACES) int16
    KEPT: tl.constexpr,  # whether the sums are wanted
    COUNTED: tl.constexpr,  # whether loss and number are
    PLACES: tl.constexpr,  # a power of two
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Evaluate the doubtful pairs of some rows, differences first and in float64, and add the active ones.

    A row's bits are brought into a queue, from which GROUP at a time are compared with the row. What is read
    has left a place long before that is written again: the queue holds QUEUE times what is looked at together.
    """
    margin = tl.load(constants + 1)
    block = tl.arange(0, BLOCK_D)
    group = tl.arange(0, GROUP)
    bit = tl.arange(0, 32)[None, :]
    queue += tl.program_id(0).to(tl.int64) * PLACES
    for turn in range(tl.program_id(0), tl.minimum(rows, own_count - first_row), tl.num_programs(0)):
        row = tl.program_id(0) * 0 + turn
        own = (first_row + row).to(tl.int64)
        loss = tl.zeros((GROUP,), tl.float64)
        number = tl.zeros((GROUP,), tl.int32)
        first = row * 0
        last = first
        for begin in range(0, words_per_row, WORDS):
            at = begin + tl.arange(0, WORDS)
            word = tl.load(words + row.to(tl.int64) * words_per_row + at, mask=at < words_per_row, other=0)
            ones = count_ones(word)
            found = tl.sum(ones, 0)
            if found > 0:
                before = (tl.cumsum(ones, 0) - ones)[:, None] + count_ones(word[:, None] & ((1 << bit) - 1))
                column = (at[:, None] * 32 + bit).to(tl.int16)
                tl.store(queue + ((last + before) & (PLACES - 1)), column, mask=((word[:, None] >> bit) & 1) != 0)
                last += found
                tl.debug_barrier()  # they are read by other threads
            enough = tl.where(begin + WORDS < words_per_row, GROUP, 1)
            while last - first >= enough:
                waiting = first + group < last
                column = tl.load(queue + ((first + group) & (PLACES - 1)), mask=waiting, other=0)
                first += GROUP
                j = other_first_row + column.to(tl.int64)
                d2 = tl.zeros((GROUP,), tl.float64)
                for k in range(0, features, BLOCK_D):
                    here = k + block < features
                    x = widen(tl.load(own_rows + own * features + k + block, mask=here, other=0))
                    there = waiting[:, None] & here[None, :]
                    y = tl.load(other_rows + j[:, None] * features + (k + block)[None, :], mask=there, other=0)
                    difference = tl.where(there, x[None, :] - widen(y), 0.0)
                    d2 += tl.sum(difference * difference, 1)
                active = waiting & (d2 < margin)
                if COUNTED:
                    loss += tl.where(active, margin - d2, 0.0)
                    number += active.to(tl.int32)
                if KEPT:  # noqa: SIM102 (one is decided by the compiler, the other on the GPU)
                    if tl.max(active.to(tl.int32), 0) > 0:
                        for k in range(0, features, BLOCK_D):
                            here = k + block < features
                            x = widen(tl.load(own_rows + own * features + k + block, mask=here, other=0))
                            there = active[:, None] & here[None, :]
                            y = tl.load(other_rows + j[:, None] * features + (k + block)[None, :], mask=there, other=0)
                            difference = tl.where(there, x[None, :] - widen(y), 0.0)
                            target = sums + own * depth + k + block
                            tl.store(target, tl.load(target, mask=here, other=0) + tl.sum(difference, 0), mask=here)
                        tl.debug_barrier()  # the next round's loads may be other threads' than these stores
        if COUNTED:
            tl.store(losses + own, tl.load(losses + own) + tl.sum(loss, 0))
            tl.store(actives + own, tl.load(actives + own) + tl.sum(number, 0))
