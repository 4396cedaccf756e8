"""The pairwise hinge loss and its gradient on a GPU, as the CPU engine computes it: screen, then sum what is left.

    order by class -> quantise -> prune and screen tiles -> sums by products (dense tiles) and pair by pair -> combine

Nothing waits for the GPU: lengths that depend on the data stay there, so that a step can be captured in a CUDA graph.
Masks are made for a block of pairs at a time, BLOCK_ROWS on either side; all else is O((B + R) D). No kernel adds
floats atomically, and each row is added to by one program in a fixed order: the same input gives the same bits, given
who computes the products (choice.py), which decides how pairs are grouped.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from mmfast.kernels.classes import positive_losses_and_gradient
from mmfast.kernels.configs import Config, architecture, config_for
from mmfast.kernels.equal_pairs import count_equal_pairs
from mmfast.kernels.frame import common_frame
from mmfast.kernels.loss import make_loss, make_weights
from mmfast.kernels.negatives import Sums, negative_sums
from mmfast.kernels.order import IGNORED, Ordered, order_sides
from mmfast.kernels.rows import Side, make_side
from mmfast.ops import computed_dtype

_log = logging.getLogger("mmfast")
_announced: set[tuple[str, torch.dtype]] = set()


def pair_hinge(
    x: Tensor,
    x_labels: Tensor,
    y: Tensor | None,
    y_labels: Tensor | None,
    margin: float,
    reduction: str,
    ignore_index: int,
    x_needs_gradient: bool,
    y_needs_gradient: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss and those of its gradients with respect to x and y that are asked for."""
    accurate = computed_dtype(x.dtype)
    if x.shape[0] == 0 or (y is not None and y.shape[0] == 0):
        return _nothing(x, y, x_needs_gradient, y_needs_gradient)
    if x.shape[1] == 0:  # every distance is zero, as it is with one feature that is
        zeros = x.new_zeros(x.shape[0], 1), None if y is None else y.new_zeros(y.shape[0], 1)
        loss, _, _ = pair_hinge(zeros[0], x_labels, zeros[1], y_labels, margin, reduction, ignore_index, False, False)
        return loss, *_nothing(x, y, x_needs_gradient, y_needs_gradient)[1:]

    config = config_for(x)
    _announce(x)
    x_side, y_side = order_sides(x, x_labels, y, y_labels, ignore_index, config)
    self_form = y_side is x_side
    # Where the result is NaN in any case, no pair is looked at.
    spoilt = x_side.spoilt.amax()
    if not self_form:
        spoilt = torch.maximum(spoilt, y_side.spoilt.amax())
    x_sums = y_sums = None
    if margin > 0:
        x_sums, y_sums = _negatives(x_side, y_side, spoilt, margin, x_needs_gradient, y_needs_gradient, config)

    divisors = None
    if reduction == "mean":
        divisors = (x_side.number * y_side.number.to(torch.int64)).repeat(2)
    elif reduction == "mean_nonzero":
        divisors = _nonzero(x_side, y_side, x_sums, config)
    weights = make_weights(spoilt, divisors)

    # Every element is written.
    x_gradient = x.new_empty(x.shape, dtype=accurate) if x_needs_gradient else None
    positives = positive_losses_and_gradient(x_side, y_side, x_gradient, x_sums, weights, True, config)
    y_gradient = None
    if y is not None and y_needs_gradient:
        y_gradient = y.new_empty(y.shape, dtype=accurate)
        positive_losses_and_gradient(y_side, x_side, y_gradient, y_sums, weights, False, config)
    loss = make_loss(
        positives,
        x_sums.losses if x_sums else None,
        y_sums.losses if y_sums and not self_form else None,
        weights,
        2 if self_form else 1,
        accurate,
    )
    return loss, x_gradient, y_gradient


def _nothing(
    x: Tensor, y: Tensor | None, x_needs_gradient: bool, y_needs_gradient: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return a loss of zero, and gradients of zeros where they are asked for."""
    dtype = computed_dtype(x.dtype)
    x_gradient = x.new_zeros(x.shape, dtype=dtype) if x_needs_gradient else None
    y_gradient = y.new_zeros(y.shape, dtype=dtype) if y is not None and y_needs_gradient else None
    return x.new_zeros((), dtype=dtype), x_gradient, y_gradient


def _negatives(
    x: Ordered, y: Ordered, spoilt: Tensor, margin: float, x_wanted: bool, y_wanted: bool, config: Config
) -> tuple[Sums, Sums]:
    frame = common_frame(x, y, margin)

    def side(ordered: Ordered) -> Side:
        summed = ordered.rows.dtype != torch.float64  # whose sums would need more digits
        return make_side(ordered.rows, ordered.classes, ordered.ends, frame, margin, summed, config.tile_m, config.rows)

    x_side = side(x)
    y_side = x_side if y is x else side(y)
    return negative_sums(x_side, y_side, spoilt, frame, margin, x_wanted, y_wanted, config)


def _nonzero(x: Ordered, y: Ordered, sums: Sums | None, config: Config) -> Tensor:
    """Count the positive and the negative pairs whose loss is not zero."""
    self_form = y is x
    matches = ((x.other_ends - x.other_begins) * (x.classes != IGNORED)).sum()
    rows, classes = (
        (x.rows, x.classes) if self_form else (torch.cat([x.rows, y.rows]), torch.cat([x.classes, y.classes]))
    )
    nonzero = matches - count_equal_pairs(rows, classes, x.rows.shape[0], config.rows)
    active = sums.actives.sum() * (2 if self_form else 1) if sums else torch.zeros_like(nonzero)
    return torch.stack([nonzero, active])


def _announce(x: Tensor) -> None:
    """Log once for each kind of tensor why its first call takes longer."""
    kind = architecture(x), x.dtype
    if kind not in _announced and kind[0] != "interpreter":
        _announced.add(kind)
        _log.info("compiling the kernels for %s and %s, unless Triton's cache already holds them", *kind)
