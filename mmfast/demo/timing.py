"""Time our loss beside what one would write otherwise, on a run's own embeddings, and show that the values agree.

The double loop runs on a few rows only, since it takes a second for what the others do in a millisecond. The contenders
take turns, so that a busy machine slows all of them alike, and the best of several turns counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import mmfast

MAX_ROWS = 2048  # the eager idiom then holds some 100 MB of B × B matrices
LOOP_ROWS = 48
ROUNDS, LOOP_ROUNDS = 7, 3
SECONDS = 1.5  # for all turns of one comparison; at least one is taken
TURN_SECONDS = 0.02  # a shorter call is repeated within its turn, so that the clock and cold caches do not show

Loss = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Timing:
    """Loss and gradient of one implementation."""

    name: str
    rows: int
    milliseconds: float  # the best turn
    loss: float
    relative_difference: float  # from float64, of the loss or of its gradient, whichever is larger


def time_losses(image_embeddings: Tensor, labels: Tensor, margin: float = 1.0) -> list[Timing]:
    """Time loss and gradient in the self form: (N, D) float32 embeddings, (N,) labels.

    Of more than ``MAX_ROWS`` rows the first are taken. On them ours is compared with the eager idiom, and on the first
    ``LOOP_ROWS`` both with the double loop.
    """
    x, y = image_embeddings.detach()[:MAX_ROWS].float().contiguous(), labels[:MAX_ROWS]
    vectorised: dict[str, Loss] = {"mmfast.contrastive_loss": fused, "eager PyTorch (Gram matrix, where)": eager_idiom}
    return [
        *_compare(vectorised, x, y, margin, ROUNDS),
        *_compare(
            {**vectorised, "double loop over pairs": double_loop}, x[:LOOP_ROWS], y[:LOOP_ROWS], margin, LOOP_ROUNDS
        ),
    ]


def fused(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Call this package's loss."""
    return mmfast.contrastive_loss(x, labels, margin=margin)


def eager_idiom(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Form the matrix of squared distances from the Gram matrix, as is customary."""
    squares = x.square().sum(dim=1)
    d2 = squares[:, None] + squares[None, :] - 2 * (x @ x.T)
    same = labels[:, None] == labels[None, :]
    return torch.where(same, d2, (margin - d2).relu()).sum()


def double_loop(x: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Add up pair after pair, as tutorials do."""
    loss = x.new_zeros(())
    for i in range(len(x)):
        for j in range(len(x)):
            d2 = (x[i] - x[j]).square().sum()
            loss = loss + (d2 if labels[i] == labels[j] else (margin - d2).relu())
    return loss


def _compare(contenders: dict[str, Loss], x: Tensor, labels: Tensor, margin: float, rounds: int) -> list[Timing]:
    exact = _loss_and_gradient(eager_idiom, x.double(), labels, margin)
    # These first calls warm up as well; what they return is what is compared.
    results = {name: _loss_and_gradient(loss, x, labels, margin) for name, loss in contenders.items()}
    repeats = {name: _repeats(loss, x, labels, margin) for name, loss in contenders.items()}
    best = dict.fromkeys(contenders, float("inf"))
    deadline = time.perf_counter() + SECONDS
    for turn in range(rounds):
        if turn and time.perf_counter() > deadline:
            break
        for name, loss in contenders.items():
            best[name] = min(best[name], _seconds(loss, x, labels, margin, repeats[name]))
    return [
        Timing(
            name=name,
            rows=len(x),
            milliseconds=1000 * best[name],
            loss=loss.item(),
            relative_difference=max(_difference(loss, exact[0]), _difference(gradient, exact[1])),
        )
        for name, (loss, gradient) in results.items()
    ]


def _repeats(loss: Loss, x: Tensor, labels: Tensor, margin: float) -> int:
    return max(1, round(TURN_SECONDS / _seconds(loss, x, labels, margin, 1)))


def _seconds(loss: Loss, x: Tensor, labels: Tensor, margin: float, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        _loss_and_gradient(loss, x, labels, margin)
    return (time.perf_counter() - started) / repeats


def _loss_and_gradient(loss: Loss, x: Tensor, labels: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = loss(leaf, labels, margin)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def _difference(found: Tensor, exact: Tensor) -> float:
    """Return |found - exact| / |exact|, or the absolute difference where exact is 0."""
    scale = float(exact.norm())
    return float((found.double() - exact).norm()) / (scale or 1.0)
