"""The loss of the sums of both kinds of pairs, and what they are divided by."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmfast.kernels.configs import SMALL
from mmfast.kernels.launch import launch


def make_weights(spoilt: Tensor, divisors: Tensor | None) -> Tensor:
    """Return what positives and negatives are multiplied by: NaN if a row that takes part is not finite."""
    weights = spoilt.new_empty(2, dtype=torch.float64)
    launch(
        weigh, (1,), spoilt, spoilt if divisors is None else divisors, weights, DIVIDED=divisors is not None, **SMALL
    )
    return weights


def make_loss(
    positives: Tensor, negatives: Tensor | None, others: Tensor | None, weights: Tensor, factor: int, dtype: torch.dtype
) -> Tensor:
    """Return w_p (sum of the positives) + w_n factor (sum of the negatives and of those of the other side)."""
    loss = positives.new_empty((), dtype=dtype)
    launch(
        add_losses,
        (1,),
        positives,
        positives.numel(),
        positives if negatives is None else negatives,
        0 if negatives is None else negatives.numel(),
        positives if others is None else others,
        0 if others is None else others.numel(),
        weights,
        factor,
        loss,
        BLOCK=8192,
        **{**SMALL, "num_warps": 16},
    )
    return loss


@triton.jit
def weigh(
    spoilt,  # () int32
    divisors,  # (2,) int64
    weights,  # (2,) float64
    DIVIDED: tl.constexpr,
):
    kind = tl.arange(0, 2)
    weight = tl.full((2,), 1.0, tl.float64)
    if DIVIDED:
        weight = weight / tl.maximum(tl.load(divisors + kind), 1).to(tl.float64)
    tl.store(weights + kind, tl.where(tl.load(spoilt) != 0, float("nan"), weight))


@triton.jit
def total(values, count, BLOCK: tl.constexpr):
    """The sum of all values."""
    sums = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        sums += tl.load(values + at, mask=at < count, other=0)
    return tl.sum(sums, 0)


@triton.jit(do_not_specialize=["positive_count", "negative_count", "other_count", "factor"])
def add_losses(
    positives,
    positive_count,
    negatives,
    negative_count,
    others,
    other_count,
    weights,  # (2,) float64
    factor,
    loss,  # (), rounded to its dtype
    BLOCK: tl.constexpr,
):
    negative = (total(negatives, negative_count, BLOCK) + total(others, other_count, BLOCK)) * factor
    result = tl.load(weights) * total(positives, positive_count, BLOCK) + tl.load(weights + 1) * negative
    tl.store(loss, result.to(loss.dtype.element_ty))
