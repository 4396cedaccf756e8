"""The screen: which pairs of a tile are certainly active, and which have to be looked at.

Products of digits are exact, so what they decide by the bounds of :mod:`mmfast.kernels.rows` is what float64 decides.
Both answers are bit masks of 32 columns a word, and the same with rows and columns exchanged. A tile with few
candidates has all of them looked at; one with many is refined by the second digit, which decides nearly all, and the
active ones go into sums of whole rows.
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
def crossed_products(x, x_fine, y, y_fine, depth, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """x . y_fine + x_fine . y"""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for k in range(0, depth, BLOCK_K):
        sums = tl.dot(tl.load(x + k), tl.trans(tl.load(y_fine + k)), sums, out_dtype=tl.int32)
        sums = tl.dot(tl.load(x_fine + k), tl.trans(tl.load(y + k)), sums, out_dtype=tl.int32)
    return sums


@triton.jit
def pairs(x_classes, x_count, i, y_classes, y_count, j, SELF: tl.constexpr):
    """Whether rows i and j are a negative pair, which in the self form is looked at in one order."""
    x_class = tl.load(x_classes + i, mask=i < x_count, other=_IGNORED)
    y_class = tl.load(y_classes + j, mask=j < y_count, other=_IGNORED)
    pair = (x_class[:, None] != y_class[None, :]) & (x_class != _IGNORED)[:, None] & (y_class != _IGNORED)[None, :]
    if SELF:
        pair = pair & (j[None, :] > i[:, None])
    return pair


@triton.jit(do_not_specialize=["near_columns", "column_tiles", "first_row", "first_column", "x_count", "y_count"])
def screen(
    spoilt,  # () int32: if it is not zero, nothing is screened
    near,  # (., near_columns) bytes: which tiles, of BLOCK_M rows on either side, can hold an active pair; if NEAR
    near_columns,
    column_tiles,
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
    active,  # (row tiles, column tiles) int32: -1 where the tile has to be refined, if SUMMED
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
    tile = tl.program_id(0)
    row_tile = tile // column_tiles
    column_tile = tile % column_tiles
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
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    i = (first_row + row).to(tl.int64)
    column = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    j = (first_column + column).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x = x_digits + i[:, None] * depth + k[None, :]
    y = y_digits + j[:, None] * depth + k[None, :]
    if GIVEN:
        dot = tl.load(dots + row.to(tl.int64)[:, None] * block_columns + column[None, :])
    else:
        dot = products(x, y, depth, BLOCK_M, BLOCK_N, BLOCK_K)

    # A candidate has a_i < 2 s_i s_j q_i.q_j - a_j. Most tiles have none, which their rows' largest differences tell.
    x_scale = 2 * tl.load(x_bounds + i)
    y_scale = tl.load(y_bounds + j)
    x_least = tl.load(x_bounds + x_padded + i)
    y_least = tl.load(y_bounds + y_padded + j)
    beyond = tl.fma(dot.to(tl.float32) * y_scale[None, :], x_scale[:, None], -y_least[None, :])
    if tl.max((tl.max(beyond, 1) > x_least).to(tl.int32), 0) == 0:  # the masks are zeros already
        return
    pair = pairs(x_classes, x_count, i, y_classes, y_count, j, SELF)
    candidate = pair & (beyond > x_least[:, None])
    count = tl.sum(tl.sum(candidate.to(tl.int32), 1), 0)
    if count == 0:
        return

    if SUMMED:  # noqa: SIM102
        if count >= BLOCK_M * BLOCK_N * _DENSE:
            tl.store(active + tile, -1)
            return
    word = column_tile * (BLOCK_N // 32) + tl.arange(0, BLOCK_N // 32)
    tl.store(doubtful + row.to(tl.int64)[:, None] * (block_columns // 32) + word[None, :], pack_columns(candidate))
    if TURNED:
        word = row_tile * (BLOCK_M // 32) + tl.arange(0, BLOCK_M // 32)
        at = word[:, None] + column.to(tl.int64)[None, :] * (block_rows // 32)
        tl.store(doubtful_turned + at, pack_rows(candidate))


@triton.jit(do_not_specialize=["column_tiles", "first_row", "first_column", "x_count", "y_count"])
def refine(
    column_tiles,
    first_row,  # and the rest as of the screen
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
    certain,
    doubtful,
    certain_turned,
    doubtful_turned,
    block_rows,
    block_columns,
    active,
    dots,
    SELF: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PART_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Decide the tiles with many candidates by both digits; some columns at a time, whose sums fit into registers."""
    tile = tl.program_id(0)
    if tl.load(active + tile) == 0:
        return
    row_tile = tile // column_tiles
    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    i = (first_row + row).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    x = x_digits + i[:, None] * depth + k[None, :]
    x_fine = x + x_padded.to(tl.int64) * depth
    number = 0
    for start in range(tile % column_tiles * BLOCK_N, (tile % column_tiles + 1) * BLOCK_N, PART_N):
        column = start + tl.arange(0, PART_N)
        j = (first_column + column).to(tl.int64)
        y = y_digits + j[:, None] * depth + k[None, :]
        y_fine = y + y_padded.to(tl.int64) * depth
        crossed = crossed_products(x, x_fine, y, y_fine, depth, BLOCK_M, PART_N, BLOCK_K).to(tl.float32) * (1.0 / 254)
        if GIVEN:
            dot = tl.load(dots + row.to(tl.int64)[:, None] * block_columns + column[None, :])
        else:
            dot = products(x, y, depth, BLOCK_M, PART_N, BLOCK_K)
        both = (dot.to(tl.float32) + crossed) * tl.load(y_bounds + j)[None, :] * (2 * tl.load(x_bounds + i))[:, None]

        x_fine_bounds = x_bounds + x_padded * 3 + i
        y_fine_bounds = y_bounds + y_padded * 3 + j
        possible = tl.load(x_fine_bounds)[:, None] + tl.load(y_fine_bounds)[None, :] < both
        candidate = pairs(x_classes, x_count, i, y_classes, y_count, j, SELF) & possible
        active_bound = tl.load(x_fine_bounds + x_padded)[:, None] + tl.load(y_fine_bounds + y_padded)[None, :]
        proved = candidate & (active_bound < both)
        candidate = candidate & (proved == 0)
        word = start // 32 + tl.arange(0, PART_N // 32)
        at = row.to(tl.int64)[:, None] * (block_columns // 32) + word[None, :]
        tl.store(certain + at, pack_columns(proved))
        tl.store(doubtful + at, pack_columns(candidate))
        word = row_tile * (BLOCK_M // 32) + tl.arange(0, BLOCK_M // 32)
        at = word[:, None] + column.to(tl.int64)[None, :] * (block_rows // 32)
        tl.store(certain_turned + at, pack_rows(proved))
        tl.store(doubtful_turned + at, pack_rows(candidate))
        number += tl.sum(tl.sum(proved.to(tl.int32), 1), 0)
    tl.store(active + tile, number)
