"""Sums of differences over the active pairs, by the masks of the screen.

Sums by products are of integers and so exact; those pair by pair are in float64. Each row is added to by one program
at a time, so that the order of every sum is fixed and there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmfast.kernels.rows import deviation, in_steps, widen


@triton.jit
def count_ones(word):
    """The number of bits in each word of 32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24


@triton.jit
def add_digits(
    words,  # (own tiles * BLOCK_M, words_per_row) int32
    words_per_row,
    tile_order,  # (own tiles, other tiles) int32: those with active pairs first
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
        total = tl.dot(tl.reshape(bits.to(tl.int8), (BLOCK_M, BLOCK_K)), tl.trans(rows), total)
        ones += tl.sum(count_ones(mask), 1)
    own_rows = tl.num_programs(0).to(tl.int64) * BLOCK_M
    tl.store(totals + (digit * own_rows + first) * depth + row[:, None] * depth + d[None, :], total)
    if (tl.program_id(1) == 0) & (digit == 0):
        tl.store(pairs + first + row, ones)


@triton.jit
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
    dots,  # (slices, count) float64, zeros
    KEPT: tl.constexpr,  # whether the sums are wanted
    WIDE: tl.constexpr,
    TILE: tl.constexpr,  # rows of a tile, of which BLOCK_R is a part
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add n_i x_i - sum of x_j over the certain pairs of a row to the sums, of which only the x_j are rounded.

    With w the rounded z and U_i = n_i w_i - sum of w_j, the sum over all pairs of |z_i - z_j|^2 is, but for the squares
    of the roundings, that of U_i . (2 z_i - w_i) over all rows of both sides: it goes to ``dots``. Integers stay below
    2^53.
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
    tl.store(dots + tl.program_id(1) * count.to(tl.int64) + row, tl.sum(difference * (2 * z - rounded), 1))


@triton.jit
def add_pairs(
    words,  # (., words_per_row) int32
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
    losses,  # (own rows of the block,) float64, zeros
    actives,  # the same of int32
    KEPT: tl.constexpr,  # whether the sums are wanted
    COUNTED: tl.constexpr,  # whether loss and number are
    GROUPS: tl.constexpr,
    GROUP_BITS: tl.constexpr,  # a multiple of 32, or the other way round
    BLOCK_D: tl.constexpr,
):
    """Evaluate the doubtful pairs of one row, differences first and in float64, and add the active ones.

    The row's words are looked at in groups; each of the GROUPS brings its first bit, and the rows of these are compared
    together.
    """
    row = tl.program_id(0).to(tl.int64)
    own = first_row + row
    if own >= own_count:
        return
    margin = tl.load(constants + 1)
    block = tl.arange(0, BLOCK_D)
    group = tl.arange(0, GROUPS)
    place = tl.arange(0, GROUP_BITS)
    WORDS: tl.constexpr = GROUPS * GROUP_BITS // 32
    loss = tl.zeros((GROUPS,), tl.float64)
    number = tl.zeros((GROUPS,), tl.int32)
    for begin in range(0, words_per_row, WORDS):
        at = begin + tl.arange(0, WORDS)
        word = tl.load(words + row * words_per_row + at, mask=at < words_per_row, other=0)
        left = tl.max((word != 0).to(tl.int32), 0)
        if left > 0:
            bits = tl.reshape((word[:, None] >> tl.arange(0, 32)[None, :]) & 1, (GROUPS, GROUP_BITS))
            while left > 0:
                first = tl.min(tl.where(bits != 0, place[None, :], GROUP_BITS), 1)
                found = first < GROUP_BITS
                bits = tl.where(place[None, :] == first[:, None], 0, bits)
                left = tl.max(tl.max(bits, 1), 0)
                j = (other_first_row + begin * 32 + group * GROUP_BITS + first).to(tl.int64)
                d2 = tl.zeros((GROUPS,), tl.float64)
                for k in range(0, features, BLOCK_D):
                    here = k + block < features
                    x = widen(tl.load(own_rows + own * features + k + block, mask=here, other=0))
                    there = found[:, None] & here[None, :]
                    y = tl.load(other_rows + j[:, None] * features + (k + block)[None, :], mask=there, other=0)
                    difference = tl.where(there, x[None, :] - widen(y), 0.0)
                    d2 += tl.sum(difference * difference, 1)
                active = found & (d2 < margin)
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
        tl.store(losses + row, tl.sum(loss, 0))
        tl.store(actives + row, tl.sum(number, 0))
