"""What the loss tests compare with: the definition in float64, and the tolerances, derived once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mmfast
from mmfast import reference

Problem = dict[str, Any]  # the arguments of contrastive_loss

# By dtype: half of the step that rows are rounded to for sums is at most 2^-unit of the largest deviation, which is at
# most the spread of the data, and 2^-margin sqrt(margin / features). The kernels for GPUs have others of their own.
_FLOAT32 = {"unit": 26, "margin": 23}
ROUNDINGS = dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), _FLOAT32)


def problem(
    rows: int, features: int, classes: int = 7, ref_rows: int | None = None, seed: int = 0, **options: Any
) -> Problem:
    """Gaussian rows of norm about 1; the cross form where ``ref_rows`` is given."""
    generator = torch.Generator().manual_seed(seed)

    def side(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, features, generator=generator, dtype=torch.float64) * max(features, 1) ** -0.5
        return x, torch.randint(0, classes, (count,), generator=generator)

    embeddings, labels = side(rows)
    ref_emb, ref_labels = (None, None) if ref_rows is None else side(ref_rows)
    return {"embeddings": embeddings, "labels": labels, "ref_emb": ref_emb, "ref_labels": ref_labels, **options}


def cast(arguments: Problem, dtype: torch.dtype) -> Problem:
    return {k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in arguments.items()}


def loss_and_gradients(function: Any, arguments: Problem) -> tuple[Tensor, list[Tensor]]:
    """Call ``function`` on leaves of its own; return the loss and the gradients of the sides that are given."""
    leaves = {
        k: v.detach().clone().requires_grad_()
        for k, v in arguments.items()
        if isinstance(v, Tensor) and v.is_floating_point()
    }
    loss = function(**{**arguments, **leaves})
    loss.backward()
    return loss.detach(), [leaf.grad for leaf in leaves.values() if leaf.grad is not None]


def assert_exact(arguments: Problem, dtype: torch.dtype = torch.float32) -> None:
    """Compare ours in ``dtype`` with the definition in float64 on the same, already rounded, values.

    The engine decides and sums in float64 (1e-13 for the sums of 1e5 terms on both sides). What is left is one rounding
    of the loss and of each element of the gradient. Where terms cancel, the roundings of the float64 sums show, on both
    sides: one per pair, each relative to the sum of the magnitudes of the terms. But for float64, dense parts of a
    batch are summed as integers, and what these are rounded by shows as well: in a gradient half a step per pair, in
    the loss twice its square for each feature.
    """
    rounded = cast(arguments, dtype)
    loss, gradients = loss_and_gradients(mmfast.contrastive_loss, rounded)
    expected, expected_gradients = loss_and_gradients(reference.contrastive_loss, cast(rounded, torch.float64))
    half = dtype in (torch.float16, torch.bfloat16)
    computed = torch.float32 if half else dtype
    unit = torch.finfo(computed).eps
    assert loss.dtype == computed
    assert loss.shape == ()
    magnitudes, weights = gradient_terms(rounded)
    half_step, squares = half_a_step(rounded, dtype)
    atol = float(torch.finfo(computed).tiny) + float(weights[0].sum()) * squares
    torch.testing.assert_close(loss.double(), expected, rtol=4 * unit + 1e-13, atol=atol)
    assert len(gradients) == len(expected_gradients)
    for ours, exact, magnitude, weight in zip(gradients, expected_gradients, magnitudes, weights, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == exact.shape
        error = (ours.double() - exact).abs()
        count = 1 + sum(side.shape[0] for side in (rounded["embeddings"], rounded["ref_emb"]) if side is not None)
        allowed = unit * exact.abs() + 4 * count * 2**-52 * magnitude + float(torch.finfo(dtype).tiny)
        allowed = allowed + weight * half_step
        if half:  # the gradient is rounded once more, to the dtype of the input
            allowed = allowed + torch.finfo(dtype).eps * exact.abs()
        assert bool((error <= allowed).all()), f"error {error.max():.3g}, allowed {allowed.min():.3g}"


def gradient_terms(arguments: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Return two sums for each side: over its pairs that of |d loss / d d_ij^2| * 2 |x_i - x_j|, (rows, features), and
    over its active negatives that of |d loss / d d_ij^2| * 2, (rows, 1).
    """
    wide = cast(arguments, torch.float64)
    margin, reduction = wide.get("margin", 1.0), wide.get("reduction", "sum")
    ignore = wide.get("ignore_index", -100)
    x, labels, self_form = wide["embeddings"], wide["labels"], wide["ref_emb"] is None
    y, ref_labels = (x, labels) if self_form else (wide["ref_emb"], wide["ref_labels"])
    difference = x[:, None, :] - y[None, :, :]
    d2 = difference.square().sum(dim=2)
    valid = (labels != ignore)[:, None] & (ref_labels != ignore)[None, :]
    positive = (labels[:, None] == ref_labels[None, :]) & valid
    negative = (labels[:, None] != ref_labels[None, :]) & valid & (d2 < margin)
    positive_weight = negative_weight = 4.0 if self_form else 2.0
    if reduction == "mean":
        positive_weight = negative_weight = negative_weight / max(1, int(valid.sum()))
    elif reduction == "mean_nonzero":
        positive_weight /= max(1, int((positive & (d2 > 0)).sum()))
        negative_weight /= max(1, int(negative.sum()))
    magnitude = (positive_weight * positive + negative_weight * negative)[:, :, None] * difference.abs()
    weight = negative_weight * negative.double()
    others = (1,) if self_form else (1, 0)
    return [magnitude.sum(dim=other) for other in others], [weight.sum(dim=other)[:, None] for other in others]


def half_a_step(arguments: Problem, dtype: torch.dtype) -> tuple[float, float]:
    """Return half of the largest step, and twice the sum of its squares over the features that the margin allows."""
    if dtype == torch.float64:
        return 0.0, 0.0
    bits, margin = ROUNDINGS[dtype], max(arguments.get("margin", 1.0), 0.0)
    rows = torch.cat([x for x in (arguments["embeddings"], arguments["ref_emb"]) if x is not None]).double()
    spread = float((rows.amax(dim=0) - rows.amin(dim=0)).max()) if rows.numel() else 0.0
    per_feature = (margin / max(rows.shape[1], 1)) ** 0.5
    half = 1.0001 * min(2.0 ** -bits["unit"] * spread, 2.0 ** -bits["margin"] * per_feature)
    return half, 2.0 * rows.shape[1] * half**2
