"""The negative pairs: prune and screen their tiles block by block, sum what is left by products and pair by pair."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.kernels.choice import products_given
from mmfast.kernels.configs import Config, tuned
from mmfast.kernels.frame import Frame
from mmfast.kernels.prune import LEAST_TILES, RUNS, make_balls
from mmfast.kernels.rows import WIDE, Side
from mmfast.kernels.screen import screen
from mmfast.kernels.sums import add_digits, add_pairs, add_totals

BLOCK_ROWS = 16384  # on either side of a block of pairs, whose four masks take 128 MB
CHUNK_ROWS = 2048  # against BLOCK_ROWS where products are given, which take 128 MB


class Negatives(NamedTuple):
    """Of unordered pairs in the self form, of all pairs across."""

    loss: Tensor  # () float64
    active: Tensor  # () int64
    x_sums: Tensor | None  # (N padded, D padded) float64; None: not wanted
    y_sums: Tensor | None  # in the self form None, as x_sums holds both


def negative_sums(
    x: Side, y: Side, self_form: bool, frame: Frame, margin: float, x_wanted: bool, y_wanted: bool, config: Config
) -> Negatives:
    """Screen block by block of pairs; add what is active to the sums of both sides."""
    x_sums = _sums(x) if x_wanted else None
    y_sums = x_sums if self_form else _sums(y) if y_wanted else None
    loss = x.rows.new_zeros((), dtype=torch.float64)
    active = x.rows.new_zeros((), dtype=torch.int64)
    near = near_tiles(x, y, frame, margin, config) if min(x.padded, y.padded) >= LEAST_TILES * config.tile_m else None
    given = products_given(lambda given: screen_block(x, y, False, 0, 0, None, given, config), x.digits)
    block_rows = CHUNK_ROWS if given else BLOCK_ROWS
    for first_row in range(0, x.padded, block_rows):
        for first_column in range(first_row // BLOCK_ROWS * BLOCK_ROWS if self_form else 0, y.padded, BLOCK_ROWS):
            masks = screen_block(x, y, self_form, first_row, first_column, near, given, config)
            own, other = Part(x, first_row, x_sums), Part(y, first_column, y_sums)
            if x.summed:
                squares = add_dense(
                    masks.certain, masks.active, own, other, frame, config.tile_m, config.tile_n, config
                )
                squares += add_dense(
                    masks.certain_turned, masks.active.T, other, own, frame, config.tile_n, config.tile_m, config
                )
                certain = masks.active.sum()
                loss += margin * certain.double() - squares / frame.constants[0].square()
                active += certain
            losses, actives = add_sparse(masks.doubtful, own, other, frame, True, config)
            loss += losses.sum()
            active += actives.sum()
            if y_sums is not None:
                add_sparse(masks.doubtful_turned, other, own, frame, False, config)
    return Negatives(loss, active, x_sums, None if self_form else y_sums)


class Part(NamedTuple):
    """Rows of a side from ``first`` on, and where their differences are added."""

    side: Side
    first: int
    sums: Tensor | None


class Masks(NamedTuple):
    """What the screen says of a block of pairs; zeros where it is not asked."""

    certain: Tensor  # (rows, columns / 32) int32
    doubtful: Tensor
    certain_turned: Tensor  # (columns, rows / 32)
    doubtful_turned: Tensor
    active: Tensor  # (row tiles, column tiles) int32, of the certain pairs


def near_tiles(x: Side, y: Side, frame: Frame, margin: float, config: Config) -> Tensor:
    """Tell which tiles, of tile_m rows on either side, can hold an active pair: those of which two balls can."""
    x_balls = make_balls(x, frame, margin, config)
    y_balls = x_balls if y is x else make_balls(y, frame, margin, config)
    near = x_balls.crowded[:, None] | y_balls.crowded[None, :]
    rows, columns = x_balls.side, y_balls.side
    for first_row in range(0, rows.padded, BLOCK_ROWS):
        for first_column in range(0, columns.padded, BLOCK_ROWS):
            words = screen_block(rows, columns, False, first_row, first_column, None, False, config).doubtful
            some = words.view(torch.uint8).ne(0).unflatten(0, (-1, RUNS)).any(dim=1)
            here = near[first_row // RUNS :, first_column // RUNS :][: some.shape[0], : some.shape[1]]
            here |= some[: here.shape[0], : here.shape[1]]
    return near


def screen_block(
    x: Side,
    y: Side,
    self_form: bool,
    first_row: int,
    first_column: int,
    near: Tensor | None,
    given: bool,
    config: Config,
) -> Masks:
    """Screen a block of rows, or what is left of them, with BLOCK_ROWS columns; of the tiles only those that are near.

    ``given``: the vendor's library computes the products of the first digits, for the whole block.
    """
    rows = min(CHUNK_ROWS if given else BLOCK_ROWS, x.padded - first_row)
    columns = min(BLOCK_ROWS, y.padded - first_column)
    row_tiles, column_tiles = rows // config.tile_m, columns // config.tile_n

    def zeros(*shape: int) -> Tensor:
        return x.digits.new_zeros(shape, dtype=torch.int32)

    masks = Masks(
        zeros(rows, columns // 32),
        zeros(rows, columns // 32),
        zeros(columns, rows // 32),
        zeros(columns, rows // 32),
        zeros(row_tiles, column_tiles),
    )
    if near is not None:
        near = near[first_row // config.tile_m :, first_column // config.tile_m :][:row_tiles]
        near = near.repeat_interleave(config.tile_m // config.tile_n, dim=1)[:, :column_tiles]
    behind = first_row - first_column if self_form else None
    tiles, count = _tiles(row_tiles, column_tiles, behind, near, config, x.rows.device)
    dots = masks.active
    if given:
        own, other = x.digits[0, first_row : first_row + rows], y.digits[0, first_column : first_column + columns]
        dots = torch._int_mm(own, other.T)
    choices = [choice.options(x.depth) for choice in (config.screen, *config.other_screens)]
    screen_tiles, options = tuned(screen, choices, ["depth", "SELF", "SUMMED", "GIVEN"])
    screen_tiles[(tiles.shape[0],)](
        tiles,
        count,
        column_tiles,
        first_row,
        first_column,
        x.digits,
        x.bounds,
        x.classes,
        x.padded,
        y.digits,
        y.bounds,
        y.classes,
        y.padded,
        x.rows.shape[0],
        y.rows.shape[0],
        x.depth,
        masks.certain,
        masks.doubtful,
        masks.certain_turned,
        masks.doubtful_turned,
        rows,
        columns,
        masks.active,
        dots,
        SELF=self_form,
        SUMMED=x.summed,
        GIVEN=given,
        BLOCK_M=config.tile_m,
        BLOCK_N=config.tile_n,
        **options,
    )
    return masks


def _sums(side: Side) -> Tensor:
    return side.rows.new_zeros((side.padded, side.depth), dtype=torch.float64)


def _tiles(
    row_tiles: int, column_tiles: int, behind: int | None, near: Tensor | None, config: Config, device: torch.device
) -> tuple[Tensor, Tensor]:
    """List the tiles to screen, and say how many these are; the list is as long as if they were all.

    In the self form the first row is ``behind`` rows after the first column, and pairs of a row with one before it are
    left to that one.
    """
    row, column = torch.meshgrid(
        torch.arange(row_tiles, device=device), torch.arange(column_tiles, device=device), indexing="ij"
    )
    wanted = torch.ones_like(row, dtype=torch.bool) if near is None else near
    if behind is not None:
        wanted = wanted & ((column + 1) * config.tile_n > row * config.tile_m + behind)
    wanted = wanted.flatten()
    place = torch.where(wanted, wanted.cumsum(0) - 1, wanted.shape[0])
    index = torch.arange(wanted.shape[0], dtype=torch.int32, device=device)
    tiles = torch.empty(wanted.shape[0] + 1, dtype=torch.int32, device=device).scatter_(0, place, index)
    return tiles[:-1], wanted.sum(dtype=torch.int32).reshape(1)


def add_dense(
    words: Tensor, active: Tensor, own: Part, other: Part, frame: Frame, tile: int, other_tile: int, config: Config
) -> Tensor:
    """Add the differences of the certain pairs to the sums of the own rows; return the sum of their products with z."""
    some = (active > 0).contiguous()
    tile_order = some.sort(dim=1, descending=True, stable=True).indices.to(torch.int32)
    tile_counts = some.sum(dim=1, dtype=torch.int32)
    rows, depth = words.shape[0], own.side.depth
    totals, pairs = words.new_empty((WIDE, rows, depth)), words.new_empty(rows)
    choices = [choice.options(depth, other_tile) for choice in (config.products, *config.other_products)]
    add, options = tuned(add_digits, choices, ["depth", "TILE"])
    add[(active.shape[0], depth // options["BLOCK_D"], WIDE)](
        words,
        words.shape[1],
        tile_order,
        tile_counts,
        active.shape[1],
        other.side.steps,
        other.side.padded,
        other.first,
        depth,
        totals,
        pairs,
        TILE=other_tile,
        BLOCK_M=tile,
        **options,
    )
    options = config.rows.options(depth)
    slices = -(-depth // options["BLOCK_D"])
    dots = frame.constants.new_zeros((slices, rows))
    add_totals[(rows // options["BLOCK_R"], slices)](
        totals,
        pairs,
        tile_counts,
        rows,
        own.side.rows,
        own.side.rows.shape[0],
        own.first,
        own.side.rows.shape[1],
        frame.centre,
        frame.constants,
        dots if own.sums is None else own.sums,
        depth,
        dots,
        KEPT=own.sums is not None,
        WIDE=WIDE,
        TILE=tile,
        **options,
    )
    return dots.sum()


def add_sparse(
    words: Tensor, own: Part, other: Part, frame: Frame, counted: bool, config: Config
) -> tuple[Tensor, Tensor]:
    """Decide the doubtful pairs and add the active ones to the sums; return loss and number by row, if counted."""
    losses = frame.constants.new_zeros(words.shape[0] if counted else 0)
    actives = words.new_zeros(words.shape[0] if counted else 0)
    add_pairs[(words.shape[0],)](
        words,
        words.shape[1],
        own.side.rows,
        own.side.rows.shape[0],
        own.first,
        other.side.rows,
        other.first,
        own.side.rows.shape[1],
        frame.constants,
        frame.constants if own.sums is None else own.sums,
        own.side.depth,
        losses,
        actives,
        KEPT=own.sums is not None,
        COUNTED=counted,
        **config.pairs.options(own.side.rows.shape[1]),
    )
    return losses, actives
