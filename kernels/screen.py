"""The screen: which pairs of a tile are certainly active, and which have to be looked at.

Products of digits are exact, so what they decide by the bounds of :mod:`mmfast.kernels.rows` is what float64 decides.
A tile with few candidates has all of them looked at one by one: they are bits of a mask, of 32 columns a word, and of
the same with rows and columns exchanged. One with many is dense: it is refined by the second digit, which decides
nearly all, and has a verdict of a byte for each pair, by which rows are summed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmfast.kernels.order import IGNORED

# Candidates of a tile, of all its pairs, from which sums by products take less time than sums pair by pair.
DENSE = 1 / 64

_IGNORED: tl.constexpr = tl.constexpr(IGNORED)
_DENSE: tl.constexpr = tl.constexpr(DENSE)


@triton.jit
def pack_columns(bits):
    """(M, N) bits as (M, N / 32) words."""
    words = tl.reshape(bits.to(tl.int32), (bits.shape[0], bits.shape[1] // 32, 32))
    return tl.sum(words << tl.arange(0, 32)[None, None, :], axis=2)


@triton.jit
def pack_rows(bits):
    """(M, N) bits as (M / 32, N) words."""
    words = tl.reshape(bits.to(tl.int32), (bits.shape[0] // 32, 32, bits.shape[1]))
    return tl.sum(words << tl.arange(0, 32)[None, :, None], axis=1)


@triton.jit
def products(x, y, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """x . y of rows of digits, given the pointers to their first BLOCK_K."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for _ in range(0, depth, BLOCK_K):
        sums = tl.dot(tl.load(x), tl.trans(tl.load(y)), sums, out_dtype=tl.int32)
        x += BLOCK_K
        y += BLOCK_K
    return sums


@triton.jit
def both_products(
    x,
    x_fine,
    y,
    y_fine,
    depth,
    GIVEN: tl.constexpr,  # whether the first product is not wanted
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x . y and x . y_fine + x_fine . y, in one loop, so that what is loaded is used twice."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    crossed = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for k in range(0, depth, BLOCK_K):
        own = tl.load(x + k)
        other = tl.trans(tl.load(y + k))
        if not GIVEN:
            sums = tl.dot(own, other, sums, out_dtype=tl.int32)
        crossed = tl.dot(own, tl.trans(tl.load(y_fine + k)), crossed, out_dtype=tl.int32)
        crossed = tl.dot(tl.load(x_fine + k), other, crossed, out_dtype=tl.int32)
    return sums, crossed


@triton.jit
def block_of(first, digits, bounds, classes, count, depth):
    """Where what belongs to the rows of a block begins, and how many there are; within a block 32 bits will do."""
    at = first.to(tl.int64)
    return digits + at * depth, bounds + at, classes + at, count - first


@triton.jit
def pairs(x_classes, x_count, row, y_classes, y_count, column):
    """Whether these are negative pairs, if both rows take part: if not, no bound calls them candidates."""
    x_class = tl.load(x_classes + row, mask=row < x_count, other=_IGNORED)
    y_class = tl.load(y_classes + column, mask=column < y_count, other=_IGNORED)
    return x_class[:, None] != y_class[None, :]


@triton.jit
def above_diagonal(values, row, column, first_row, first_column):
    """In the self form, where pairs are looked at in one order: the values, and -inf for those of the other order."""
    least = first_column + tl.min(column, 0)
    if least <= first_row + tl.max(row, 0):
        values = tl.where((first_column + column)[None, :] > (first_row + row)[:, None], values, -float("inf"))
    return values


@triton.jit(do_not_specialize=["near_columns", "first_row", "first_column", "x_count", "y_count"])
def screen(
    spoilt,  # () int32: if it is not zero, nothing is screened
    near,  # (., near_columns) bytes: which tiles, of BLOCK_M rows on either side, can hold an active pair; if NEAR
    near_columns,
    first_row,  # of the block of pairs
    first_column,
    x_digits,
    x_bounds,
    x_classes,
    x_padded,
    y_digits,
    y_bounds,
    y_classes,
    y_padded,
    x_count,
    y_count,
    depth,
    doubtful,  # (block rows, block columns / 32) int32
    doubtful_turned,  # (block columns, block rows / 32)
    block_rows,
    block_columns,
    dense,  # (row tiles, column tiles) int32, of BLOCK_M on either side: 1 where there are many candidates, if SUMMED
    dots,  # (block rows, block columns) int32, the products of the first digits, if GIVEN
    SELF: tl.constexpr,
    NEAR: tl.constexpr,
    SUMMED: tl.constexpr,
    TURNED: tl.constexpr,  # whether what is turned is wanted
    GIVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program for each tile; in the self form pairs of a row with one before it are left to that one."""
    row_tile = tl.program_id(0) // (block_columns // BLOCK_N)
    column_tile = tl.program_id(0) % (block_columns // BLOCK_N)
    if SELF:  # noqa: SIM102 (one is decided by the compiler, the other on the GPU)
        if first_column + (column_tile + 1) * BLOCK_N <= first_row + row_tile * BLOCK_M:
            return
    if tl.load(spoilt) != 0:
        return
    if NEAR:
        near_row = (first_row // BLOCK_M + row_tile).to(tl.int64)
        near_column = (first_column + column_tile * BLOCK_N) // BLOCK_M
        # A tile of many classes has a ball of its own class, which tells nothing about the tile's own pairs.
        own = (near_row == near_column) if SELF else False
        if (tl.load(near + near_row * near_columns + near_column) == 0) & (own == 0):
            return
    x_digits, x_bounds, x_classes, x_count = block_of(first_row, x_digits, x_bounds, x_classes, x_count, depth)
    y_digits, y_bounds, y_classes, y_count = block_of(first_column, y_digits, y_bounds, y_classes, y_count, depth)
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    # Loaded before they are asked for: the products hide how long that takes.
    x_scale = 2 * tl.load(x_bounds + row)
    y_scale = tl.load(y_bounds + column)
    x_least = tl.load(x_bounds + x_padded + row)
    y_least = tl.load(y_bounds + y_padded + column)
    if GIVEN:
        dot = tl.load(dots + row[:, None] * block_columns + column[None, :])
    else:
        k = tl.arange(0, BLOCK_K)[None, :]
        x = x_digits + row[:, None] * depth + k
        y = y_digits + column[:, None] * depth + k
        dot = products(x, y, depth, BLOCK_M, BLOCK_N, BLOCK_K)

    # A candidate has a_i < 2 s_i s_j q_i.q_j - a_j. Most tiles have none, which their rows' largest differences tell.
    beyond = tl.fma(dot.to(tl.float32) * y_scale[None, :], x_scale[:, None], -y_least[None, :])
    if SELF:
        beyond = above_diagonal(beyond, row, column, first_row, first_column)
    if tl.max((tl.max(beyond, 1) > x_least).to(tl.int32), 0) == 0:  # the masks are zeros already
        return
    candidate = pairs(x_classes, x_count, row, y_classes, y_count, column) & (beyond > x_least[:, None])
    count = tl.sum(tl.sum(candidate.to(tl.int32), 1), 0)
    if count == 0:
        return

    if SUMMED:  # noqa: SIM102
        if count >= BLOCK_M * BLOCK_N * _DENSE:
            tl.store(dense + row_tile * (block_columns // BLOCK_M) + column_tile * BLOCK_N // BLOCK_M, 1)
            return
    word = column_tile * (BLOCK_N // 32) + tl.arange(0, BLOCK_N // 32)
    tl.store(doubtful + row[:, None] * (block_columns // 32) + word[None, :], pack_columns(candidate))
    if TURNED:
        word = row_tile * (BLOCK_M // 32) + tl.arange(0, BLOCK_M // 32)
        tl.store(doubtful_turned + word[:, None] + column[None, :] * (block_rows // 32), pack_rows(candidate))


@triton.jit(do_not_specialize=["first_row", "first_column", "x_count", "y_count"])
def refine(
    first_row,  # of the block of pairs, and the rest as of the screen
    first_column,
    x_digits,
    x_bounds,
    x_classes,
    x_padded,
    y_digits,
    y_bounds,
    y_classes,
    y_padded,
    x_count,
    y_count,
    depth,
    doubtful,
    doubtful_turned,
    block_rows,
    block_columns,
    dense,
    dots,
    verdicts,  # (block rows, block columns) int8, of dense tiles: 1 for active, 2 for undecided, and 3 for undecided
    # pairs of a row that is not summed
    verdicts_turned,  # (block columns, block rows); the same tensor, if SHARED
    counts,  # (block rows,) int32: active pairs of dense tiles
    counts_turned,  # (block columns,)
    SELF: tl.constexpr,
    SHARED: tl.constexpr,
    GIVEN: tl.constexpr,
    CLEARED: tl.constexpr,  # whether the screen has left no candidates in a dense tile
    BLOCK_M: tl.constexpr,
    PART_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Decide the dense tiles by both digits; some columns at a time, whose sums fit into registers."""
    tile = tl.program_id(0)
    if tl.load(dense + tile) != 1:
        return
    tiles = block_columns // BLOCK_M
    row_tile = tile // tiles
    x_digits, x_bounds, x_classes, x_count = block_of(first_row, x_digits, x_bounds, x_classes, x_count, depth)
    y_digits, y_bounds, y_classes, y_count = block_of(first_column, y_digits, y_bounds, y_classes, y_count, depth)
    x_fine = x_digits + x_padded.to(tl.int64) * depth
    y_fine = y_digits + y_padded.to(tl.int64) * depth
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)[None, :]
    x_at = row[:, None] * depth + k
    for start in range(tile % tiles * BLOCK_M, (tile % tiles + 1) * BLOCK_M, PART_N):
        column = start + tl.arange(0, PART_N)
        y_at = column[:, None] * depth + k
        dot, crossed = both_products(
            x_digits + x_at, x_fine + x_at, y_digits + y_at, y_fine + y_at, depth, GIVEN, BLOCK_M, PART_N, BLOCK_K
        )
        at = row[:, None] * block_columns + column[None, :]
        if GIVEN:
            dot = tl.load(dots + at)
        both = dot.to(tl.float32) + crossed.to(tl.float32) * (1.0 / 254)
        both = both * tl.load(y_bounds + column)[None, :] * (2 * tl.load(x_bounds + row))[:, None]
        if SELF:
            both = above_diagonal(both, row, column, first_row, first_column)

        x_fine_bounds = x_bounds + x_padded * 3 + row
        y_fine_bounds = y_bounds + y_padded * 3 + column
        possible = tl.load(x_fine_bounds)[:, None] + tl.load(y_fine_bounds)[None, :] < both
        candidate = pairs(x_classes, x_count, row, y_classes, y_count, column) & possible
        bound = tl.load(x_fine_bounds + x_padded)[:, None] + tl.load(y_fine_bounds + y_padded)[None, :]
        active = candidate & (bound < both)
        # A row that is not summed has an infinite bound.
        left = tl.where(bound < float("inf"), 2, 3)
        verdict = tl.where(active, 1, tl.where(candidate, left, 0)).to(tl.int8)
        turned_at = column[:, None] * block_rows + row[None, :]
        if SHARED & (tile % tiles == row_tile):  # what is below the diagonal is turned
            above = column[None, :] >= row[:, None]
            tl.store(verdicts + at, verdict, mask=above)
            tl.store(verdicts_turned + turned_at, tl.trans(verdict), mask=column[:, None] > row[None, :])
        else:
            tl.store(verdicts + at, verdict)
            tl.store(verdicts_turned + turned_at, tl.trans(verdict))
        tl.atomic_add(counts + row, tl.sum(active.to(tl.int32), 1))
        tl.atomic_add(counts_turned + column, tl.sum(active.to(tl.int32), 0))
        if not CLEARED:
            nothing = tl.zeros((BLOCK_M, PART_N // 32), tl.int32)
            word = start // 32 + tl.arange(0, PART_N // 32)
            tl.store(doubtful + row[:, None] * (block_columns // 32) + word[None, :], nothing)
            nothing = tl.zeros((BLOCK_M // 32, PART_N), tl.int32)
            word = row_tile * (BLOCK_M // 32) + tl.arange(0, BLOCK_M // 32)
            tl.store(doubtful_turned + word[:, None] + column[None, :] * (block_rows // 32), nothing)
    if SHARED:
        mirrored = tile % tiles * tiles + row_tile
        tl.store(dense + mirrored, tl.where(mirrored == tile, 1, 2))
