"""Pairs that are looked at one by one: differences first and in float64, as they are defined.

What has to be looked at is brought into a queue, from which GROUP pairs at a time are taken. What is read has left a
place long before that is written again: a queue holds QUEUE times what is looked for together.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmfast.kernels.order import widen

QUEUE = 4


@triton.jit
def count_ones(word):
    """The number of bits in each word of 32."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24


@triton.jit(do_not_specialize=["first_row", "other_first_row"])
def decide(
    dense,  # (row tiles, column tiles) int32: those of 1 are looked at
    verdicts,  # (rows, columns) int8, as refined: afterwards 1 for the active pairs that are to be summed
    verdicts_turned,  # (columns, rows)
    rows,
    columns,
    own_rows,  # (., features)
    first_row,
    other_rows,
    other_first_row,
    features,
    constants,
    counts,  # (rows,) int32: active pairs
    counts_turned,  # (columns,)
    doubtful,  # (rows, columns / 32) int32: the active pairs of rows that are not summed are added
    doubtful_turned,  # (columns, rows / 32)
    queue,  # (tiles, PLACES) int16
    SHARED: tl.constexpr,  # whether verdicts below the diagonal are those above it
    TILE: tl.constexpr,
    PLACES: tl.constexpr,  # a power of two
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,  # of 32 verdicts
    BLOCK_D: tl.constexpr,
):
    """Decide what the screen could not; one program for each dense tile."""
    tile = tl.program_id(0)
    if tl.load(dense + tile) != 1:
        return
    margin = tl.load(constants + 1)
    group = tl.arange(0, GROUP)
    block = tl.arange(0, BLOCK_D)
    row = (tile // (columns // TILE)).to(tl.int64) * TILE
    column = (tile % (columns // TILE)).to(tl.int64) * TILE
    own_rows += (first_row + row) * features
    other_rows += (other_first_row + column) * features
    verdicts += row * columns + column
    verdicts_turned += column * rows + row
    doubtful += row * (columns // 32) + column // 32
    doubtful_turned += column * (rows // 32) + row // 32
    queue += tile.to(tl.int64) * PLACES
    first = tile * 0
    last = first
    for begin in range(0, TILE * TILE, WORDS * 32):
        at = begin + tl.arange(0, WORDS * 32)
        verdict = tl.load(verdicts + (at // TILE).to(tl.int64) * columns + at % TILE)
        if SHARED:
            verdict = tl.where(column + at % TILE > row + at // TILE, verdict, 0)
        undecided = (verdict > 1).to(tl.int32)
        found = tl.sum(undecided, 0)
        if found > 0:
            place = last + tl.cumsum(undecided, 0) - 1
            entry = at + tl.where(verdict == 3, TILE * TILE, 0)
            tl.store(queue + (place & (PLACES - 1)), entry.to(tl.int16), mask=undecided > 0)
            last += found
            tl.debug_barrier()  # they are read by other threads
        enough = tl.where(begin + WORDS * 32 < TILE * TILE, GROUP, 1)
        while last - first >= enough:
            waiting = first + group < last
            entry = tl.load(queue + ((first + group) & (PLACES - 1)), mask=waiting, other=0).to(tl.int64)
            first += GROUP
            i = entry // TILE % TILE
            j = entry % TILE
            d2 = tl.zeros((GROUP,), tl.float64)
            for k in range(0, features, BLOCK_D):
                d = (k + block)[None, :]
                there = waiting[:, None] & (d < features)
                x = widen(tl.load(own_rows + i[:, None] * features + d, mask=there, other=0))
                y = widen(tl.load(other_rows + j[:, None] * features + d, mask=there, other=0))
                difference = tl.where(there, x - y, 0.0)
                d2 += tl.sum(difference * difference, 1)
            active = waiting & (d2 < margin)
            alone = active & (entry >= TILE * TILE)
            summed = (active & (entry < TILE * TILE)).to(tl.int32)
            tl.store(verdicts + i * columns + j, summed.to(tl.int8), mask=waiting)
            tl.store(verdicts_turned + j * rows + i, summed.to(tl.int8), mask=waiting)
            tl.atomic_add(counts + row + i, summed, mask=waiting)
            tl.atomic_add(counts_turned + column + j, summed, mask=waiting)
            tl.atomic_or(doubtful + i * (columns // 32) + j // 32, 1 << (j % 32).to(tl.int32), mask=alone)
            tl.atomic_or(doubtful_turned + j * (rows // 32) + i // 32, 1 << (i % 32).to(tl.int32), mask=alone)


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
    """Evaluate the pairs of some rows that a mask names, and add the active ones."""
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
