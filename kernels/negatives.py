"""The negative pairs: prune and screen their tiles block by block, sum what is left by products and pair by pair."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmfast.kernels.choice import products_given
from mmfast.kernels.configs import SMALL, Config, Pairs, next_power_of_2, tuned
from mmfast.kernels.frame import Frame
from mmfast.kernels.launch import launch
from mmfast.kernels.pairs import QUEUE, add_pairs, decide
from mmfast.kernels.prune import LEAST_TILES, RUNS, make_balls
from mmfast.kernels.rows import Side
from mmfast.kernels.screen import refine, screen
from mmfast.kernels.sums import add_digits, add_totals, list_tiles

BLOCK_ROWS = 16384  # on either side of a block of pairs, of which each mask takes 32 MB and verdicts 256 MB
CHUNK_ROWS = 2048  # against BLOCK_ROWS where products are given, which take 128 MB


class Sums(NamedTuple):
    """What is summed over the active pairs of each row of a side."""

    differences: Tensor | None  # (N padded, D padded) float64; None: not wanted
    losses: Tensor  # (slices, N padded) float64, of which only the total means something
    actives: Tensor  # (N padded,) int32; of the other side zeros


class Part(NamedTuple):
    """Rows of a side from ``first`` on, and where their sums are."""

    side: Side
    first: int
    sums: Sums


class Masks(NamedTuple):
    """What the screen says of a block of pairs; zeros where it is not asked, but for verdicts, which are not read."""

    doubtful: Tensor  # (rows, columns / 32) int32, of tiles with few candidates
    doubtful_turned: Tensor  # (columns, rows / 32)
    dense: Tensor  # (row tiles, column tiles) int32, of tile_m on either side
    counts: Tensor  # (rows,) int32: active pairs of the dense tiles
    counts_turned: Tensor  # (columns,)
    verdicts: Tensor  # (rows, columns) int8, of the dense tiles
    verdicts_turned: Tensor  # (columns, rows); in a block that is its own other side the same tensor

    @property
    def shared(self) -> bool:
        return self.verdicts_turned is self.verdicts


def negative_sums(
    x: Side,
    y: Side,
    spoilt: Tensor,
    frame: Frame,
    margin: float,
    x_wanted: bool,
    y_wanted: bool,
    config: Config,
) -> tuple[Sums, Sums]:
    """Screen block by block of pairs; add what is active to the sums of both sides.

    In the self form these are one, and pairs are counted in one of their two orders.
    """
    self_form = y is x
    x_sums = _sums(x, x_wanted, config)
    y_sums = x_sums if self_form else _sums(y, y_wanted, config)
    near = None
    if min(x.padded, y.padded) >= LEAST_TILES * config.tile_m:
        near = near_tiles(x, y, spoilt, frame, margin, config)
    given = products_given(lambda given: screen_block(x, y, False, 0, 0, spoilt, None, given, True, config), x.digits)
    block_rows = CHUNK_ROWS if given else BLOCK_ROWS
    for first_row in range(0, x.padded, block_rows):
        for first_column in range(first_row // BLOCK_ROWS * BLOCK_ROWS if self_form else 0, y.padded, BLOCK_ROWS):
            masks = screen_block(x, y, self_form, first_row, first_column, spoilt, near, given, True, config)
            add_block(masks, Part(x, first_row, x_sums), Part(y, first_column, y_sums), frame, config)
            del masks  # before the next block has its own
    return x_sums, y_sums


def add_block(masks: Masks, own: Part, other: Part, frame: Frame, config: Config) -> None:
    """Add what is active in a block of pairs to the sums of both sides."""
    if own.side.summed:
        add_dense(masks, own, other, frame, config)
    add_sparse(masks.doubtful, own, other, frame, True, config)
    if other.sums.differences is not None:
        add_sparse(masks.doubtful_turned, other, own, frame, False, config)


def _sums(side: Side, wanted: bool, config: Config) -> Sums:
    slices = -(-side.depth // config.rows.options(side.depth)["BLOCK_D"])
    return Sums(
        side.rows.new_zeros((side.padded, side.depth), dtype=torch.float64) if wanted else None,
        side.rows.new_zeros((slices, side.padded), dtype=torch.float64),
        side.rows.new_zeros(side.padded, dtype=torch.int32),
    )


def near_tiles(x: Side, y: Side, spoilt: Tensor, frame: Frame, margin: float, config: Config) -> Tensor:
    """Tell by bytes which tiles, of tile_m rows on either side, can hold an active pair: those of which two balls can.

    A tile is not told to be near itself where it should be; it is always screened.
    """
    rows = make_balls(x, False, frame, margin, config)
    columns = rows if y is x else make_balls(y, True, frame, margin, config)
    near = rows.digits.new_empty((rows.padded // RUNS, columns.padded // RUNS), dtype=torch.uint8)
    for first_row in range(0, rows.padded, BLOCK_ROWS):
        for first_column in range(0, columns.padded, BLOCK_ROWS):
            masks = screen_block(rows, columns, False, first_row, first_column, spoilt, None, False, False, config)
            some = masks.doubtful.view(torch.uint8).unflatten(0, (-1, RUNS))
            here = near[first_row // RUNS :, first_column // RUNS :][: some.shape[0], : some.shape[2]]
            torch.amax(some, dim=1, out=here)
    return near


def screen_block(
    x: Side,
    y: Side,
    self_form: bool,
    first_row: int,
    first_column: int,
    spoilt: Tensor,
    near: Tensor | None,
    given: bool,
    turned: bool,
    config: Config,
) -> Masks:
    """Screen a block of rows, or what is left of them, with BLOCK_ROWS columns; of the tiles only those that are near.

    ``given``: the vendor's library computes the products of the first digits, for the whole block.
    """
    rows = min(CHUNK_ROWS if given else BLOCK_ROWS, x.padded - first_row)
    columns = min(BLOCK_ROWS, y.padded - first_column)
    row_tiles, column_tiles = rows // config.tile_m, columns // config.tile_n
    shared = self_form and first_row == first_column and rows == columns
    masks = _masks(x.digits, rows, columns, config.tile_m, x.summed, turned, shared)
    dots = masks.dense
    if given:
        own, other = x.digits[0, first_row : first_row + rows], y.digits[0, first_column : first_column + columns]
        dots = torch._int_mm(own, other.T)
    sides = (
        first_row,
        first_column,
        *(x.digits, x.bounds, x.classes, x.padded),
        *(y.digits, y.bounds, y.classes, y.padded),
        x.rows.shape[0],
        y.rows.shape[0],
        x.depth,
        *(masks.doubtful, masks.doubtful_turned, rows, columns, masks.dense, dots),
    )
    choices = [choice.options(x.depth) for choice in (config.screen, *config.other_screens)]
    kernel, options = tuned(screen, choices, ["depth", "SELF", "SUMMED", "GIVEN"])
    launch(
        kernel,
        (row_tiles * column_tiles,),
        spoilt,
        spoilt if near is None else near,
        0 if near is None else near.shape[1],
        *sides,
        NEAR=near is not None,
        SUMMED=x.summed,
        TURNED=turned,
        SELF=self_form,
        GIVEN=given,
        BLOCK_M=config.tile_m,
        BLOCK_N=config.tile_n,
        **options,
    )
    if x.summed:
        choices = [choice.options(x.depth) for choice in (config.refine, *config.other_refines)]
        kernel, options = tuned(refine, choices, ["depth", "SELF", "SHARED", "GIVEN"])
        launch(
            kernel,
            (masks.dense.numel(),),
            *sides,
            *(masks.verdicts, masks.verdicts_turned, masks.counts, masks.counts_turned),
            SELF=self_form,
            SHARED=shared,
            GIVEN=given,
            CLEARED=config.tile_n == config.tile_m,
            BLOCK_M=config.tile_m,
            PART_N=config.part_n,
            **options,
        )
    return masks


def _masks(like: Tensor, rows: int, columns: int, tile: int, summed: bool, turned: bool, shared: bool) -> Masks:
    """Cut what is cleared at once into masks; those that are not wanted are empty."""
    shapes = [
        (rows, columns // 32),
        (columns if turned else 0, rows // 32),
        (rows // tile if summed else 0, columns // tile),
        (rows if summed else 0,),
        (columns if summed else 0,),
    ]
    lengths = [math.prod(shape) for shape in shapes]
    pieces = like.new_zeros(sum(lengths), dtype=torch.int32).split(lengths)
    verdicts = like.new_empty((rows if summed else 0, columns))
    verdicts_turned = verdicts if shared else like.new_empty((columns if summed else 0, rows))
    doubtful, doubtful_turned, dense, counts, counts_turned = (
        piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)
    )
    return Masks(doubtful, doubtful_turned, dense, counts, counts_turned, verdicts, verdicts_turned)


def add_dense(masks: Masks, own: Part, other: Part, frame: Frame, config: Config) -> None:
    """Decide what is left of the dense tiles, and add the differences of their active pairs to the sums of both sides.

    In a block that is its own other side that is one sum, in which each pair is added to the sums of both of its rows.
    """
    (row_tiles, column_tiles), (rows, columns) = masks.dense.shape, masks.verdicts.shape
    places = _places(config.decide)
    launch(
        decide,
        (row_tiles * column_tiles,),
        *(masks.dense, masks.verdicts, masks.verdicts_turned, rows, columns),
        *(own.side.rows, own.first, other.side.rows, other.first, own.side.rows.shape[1], frame.constants),
        *(masks.counts, masks.counts_turned, masks.doubtful, masks.doubtful_turned),
        masks.dense.new_empty((row_tiles * column_tiles, places), dtype=torch.int16),
        SHARED=masks.shared,
        TILE=config.tile_m,
        PLACES=places,
        **config.decide.options(own.side.rows.shape[1]),
    )
    order = masks.dense.new_empty((2, row_tiles * column_tiles))
    row_counts, column_counts = masks.dense.new_empty(row_tiles), masks.dense.new_empty(column_tiles)
    launch(
        list_tiles,
        (row_tiles + (0 if masks.shared else column_tiles),),
        masks.dense,
        row_tiles,
        column_tiles,
        order,
        row_counts,
        column_counts,
        BLOCK=256,
        **SMALL,
    )
    counts = masks.counts, masks.counts_turned
    _add_digits(masks.verdicts, counts, order[0], row_counts, own, other, frame, masks.shared, True, config)
    if not masks.shared:
        turned = masks.verdicts_turned, counts[::-1], order[1], column_counts
        _add_digits(*turned, other, own, frame, False, False, config)


def _add_digits(
    verdicts: Tensor,
    counts: tuple[Tensor, Tensor],
    tile_order: Tensor,
    tile_counts: Tensor,
    own: Part,
    other: Part,
    frame: Frame,
    shared: bool,
    counted: bool,
    config: Config,
) -> None:
    (rows, columns), depth = verdicts.shape, own.side.depth
    digits = other.side.steps.shape[0]
    totals = tile_counts.new_empty((digits, rows, depth))
    choices = [choice.options(depth, config.tile_m) for choice in (config.products, *config.other_products)]
    add, options = tuned(add_digits, choices, ["depth"])
    launch(
        add,
        (depth // options["BLOCK_D"], digits, rows // config.tile_m),
        *(verdicts, columns, tile_order, tile_counts, columns // config.tile_m),
        *(other.side.steps, other.side.padded, other.first, depth),
        frame.constants,
        totals,
        TILE=config.tile_m,
        **options,
    )
    options = config.rows.options(depth)
    sums = own.sums.differences
    launch(
        add_totals,
        (rows // options["BLOCK_R"], -(-depth // options["BLOCK_D"])),
        totals,
        *counts,
        tile_counts,
        rows,
        own.side.rows,
        own.side.rows.shape[0],
        own.first,
        own.side.rows.shape[1],
        frame.centre,
        frame.constants,
        own.sums.losses if sums is None else sums,
        depth,
        own.sums.losses,
        own.sums.actives,
        own.side.padded,
        KEPT=sums is not None,
        SHARED=shared,
        COUNTED=counted,
        DIGITS=digits,
        TILE=config.tile_m,
        **options,
    )


def add_sparse(words: Tensor, own: Part, other: Part, frame: Frame, counted: bool, config: Config) -> None:
    """Decide the doubtful pairs and add the active ones to the sums; loss and number too, if counted."""
    rows = words.shape[0]
    programs, places = min(rows, config.pairs.programs), _places(config.pairs)
    sums = own.sums.differences
    launch(
        add_pairs,
        (programs,),
        words,
        rows,
        words.shape[1],
        own.side.rows,
        own.side.rows.shape[0],
        own.first,
        other.side.rows,
        other.first,
        own.side.rows.shape[1],
        frame.constants,
        own.sums.losses if sums is None else sums,
        own.side.depth,
        own.sums.losses,
        own.sums.actives,
        words.new_empty((programs, places), dtype=torch.int16),
        KEPT=sums is not None,
        COUNTED=counted,
        PLACES=places,
        **config.pairs.options(own.side.rows.shape[1]),
    )


def _places(pairs: Pairs) -> int:
    return next_power_of_2(QUEUE * 32 * pairs.words)
