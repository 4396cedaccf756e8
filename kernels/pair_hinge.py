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

from mmfast.kernels import classes as positives
from mmfast.kernels.configs import architecture, config_for
from mmfast.kernels.equal_pairs import count_equal_pairs
from mmfast.kernels.frame import IGNORED, common_frame, number_classes
from mmfast.kernels.negatives import negative_sums
from mmfast.kernels.rows import make_side
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
    x_gradient = (
        torch.zeros_like(x, dtype=accurate, memory_format=torch.contiguous_format) if x_needs_gradient else None
    )
    y_gradient = None
    if y is not None and y_needs_gradient:
        y_gradient = torch.zeros_like(y, dtype=accurate, memory_format=torch.contiguous_format)
    if x.shape[0] == 0 or (y is not None and y.shape[0] == 0):
        return x.new_zeros((), dtype=accurate), x_gradient, y_gradient
    if x.shape[1] == 0:  # every distance is zero, as it is with one feature that is
        x, y = x.new_zeros(x.shape[0], 1), None if y is None else y.new_zeros(y.shape[0], 1)
        loss, _, _ = pair_hinge(x, x_labels, y, y_labels, margin, reduction, ignore_index, False, False)
        return loss, x_gradient, y_gradient

    config = config_for(x)
    _announce(x)
    x_numbers, y_numbers = number_classes(x_labels, y_labels, ignore_index)
    self_form = y is None
    x_ordered = positives.ordered(x, x_numbers)
    y_ordered = x_ordered if y is None else positives.ordered(y, y_numbers)
    x, x_classes, y, y_classes = x_ordered.rows, x_ordered.classes, y_ordered.rows, y_ordered.classes
    ranges = x_ordered.begins, x_ordered.ends
    if not self_form:
        ranges = positives.class_ranges(x_classes, y_classes)
    finite = _finite(x, x_classes) if self_form else _finite(x, x_classes) & _finite(y, y_classes)
    # Where the result is NaN in any case, no pair is looked at.
    screened = [torch.where(finite, c, IGNORED) for c in ((x_classes,) if self_form else (x_classes, y_classes))]
    frame = common_frame([(x, screened[0])] if self_form else [(x, screened[0]), (y, screened[1])], margin)
    weights = x.new_ones(2, dtype=torch.float64)
    negatives = None
    if margin > 0:
        summed = x.dtype != torch.float64  # whose sums would need more digits
        x_side = make_side(x, screened[0], frame, margin, summed, config.tile_m, config.rows)
        y_side = x_side
        if not self_form:
            y_side = make_side(y, screened[1], frame, margin, summed, config.tile_m, config.rows)
        negatives = negative_sums(
            x_side, y_side, self_form, frame, margin, x_gradient is not None, y_gradient is not None, config
        )

    if reduction == "mean":
        pairs = (x_classes != IGNORED).sum() * (y_classes != IGNORED).sum()
        weights = weights / pairs.clamp(min=1)
    elif reduction == "mean_nonzero":
        begins, ends = ranges
        matches = ((ends - begins) * (x_classes != IGNORED)).sum()
        both = (x, x_classes) if self_form else (torch.cat([x, y]), torch.cat([x_classes, y_classes]))
        nonzero = matches - count_equal_pairs(*both, x.shape[0], config.rows)
        active = negatives.active * (2 if self_form else 1) if negatives else torch.zeros_like(nonzero)
        weights = weights / torch.stack([nonzero, active]).clamp(min=1)
    weights = torch.where(finite, weights, torch.nan)

    x_sums = negatives.x_sums if negatives else None
    y_sums = negatives.y_sums if negatives else None
    positive = positives.positive_sum_and_gradient(
        x_ordered, y_ordered, ranges, x_gradient, x_sums, weights, True, config
    )
    if y_gradient is not None:
        ranges = positives.class_ranges(y_classes, x_classes)
        positives.positive_sum_and_gradient(y_ordered, x_ordered, ranges, y_gradient, y_sums, weights, False, config)
    loss = weights[0] * positive
    if negatives:
        loss = loss + weights[1] * negatives.loss * (2 if self_form else 1)
    return loss.to(accurate), x_gradient, y_gradient


def _announce(x: Tensor) -> None:
    """Log once for each kind of tensor why its first call takes longer."""
    kind = architecture(x), x.dtype
    if kind not in _announced and kind[0] != "interpreter":
        _announced.add(kind)
        _log.info("compiling the kernels for %s and %s, unless Triton's cache already holds them", *kind)


def _finite(rows: Tensor, classes: Tensor) -> Tensor:
    return (rows.isfinite().all(dim=1) | (classes == IGNORED)).all()
