"""Everything a user could pick for the pairwise hinge loss, behind one set-up function.

    L = Σ_ij  y_ij d²_ij + (1 - y_ij) max(0, m - d²_ij)        over ordered pairs, d² the squared Euclidean distance

Libraries are imported and set to this formula, never copied; the idioms are written as one meets them in training
code. A provider that cannot run here says why and is left out; none gets a batch beyond its stated number of rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import mmfast
from benchmarks.data import Exact, Problem
from mmfast.demo.timing import double_loop, eager_idiom

Loss = Callable[[Tensor], Tensor]  # embeddings (B, D) -> scalar
Result = tuple[Tensor, Tensor]  # loss, gradient (B, D)
Step = Callable[[], Result]

# One fp32 sum over B² terms; the peers stay below 1e-5.
LOSS_TOLERANCE = 1e-4
# fp32 puts single pairs on the wrong side of the margin, and each moves its two rows by 4 √m. With the margin at the
# median, where they are likeliest, that is up to 0.5 % of a row's gradient at 512 rows. A wrong formula is far above.
GRADIENT_TOLERANCE = 1e-2
HALF_LOSS_TOLERANCE, HALF_GRADIENT_TOLERANCE = 0.1, 0.5


class Provider(NamedTuple):
    """One way to compute the loss; ``build`` imports, binds labels and margin, and compiles where that is needed."""

    name: str
    build: Callable[[Problem], Loss]
    max_rows: int
    why_max: str
    compiles: bool = False  # and so may fail where there is no compiler


class UnavailableError(Exception):
    """Why a provider cannot run on this machine or on this problem."""


class WrongResultError(Exception):
    """A provider's result is not the loss: its time would mean nothing."""


class Errors(NamedTuple):
    """Relative to float64; the gradient's is the largest row error over the largest row."""

    loss: float
    gradient: float


def set_up(provider: Provider, problem: Problem) -> Step:
    """Return the step to time: loss and gradient of the problem. All that is done once happens here."""
    if problem.rows > provider.max_rows:
        raise UnavailableError(f"{provider.name}: at most {provider.max_rows} rows ({provider.why_max})")
    embeddings = problem.embeddings.clone().requires_grad_()

    def step() -> Result:
        embeddings.grad = None
        loss = loss_of(embeddings)
        loss.backward()
        assert embeddings.grad is not None
        return loss.detach(), embeddings.grad

    try:
        loss_of = provider.build(problem)
    except ImportError as error:
        raise UnavailableError(f"{provider.name}: {error}") from error
    except (RuntimeError, OSError) as error:
        if not provider.compiles:
            raise
        raise UnavailableError(f"{provider.name} does not compile here: {str(error).partition(chr(10))[0]}") from error
    return step


def check(provider: str, result: Result, truth: Exact, exact_dtype: bool = True) -> Errors:
    """Return how far a result is from float64; raise WrongResultError where that is more than rounding explains.

    Not ``exact_dtype``: distances were rounded to bfloat16, which for the peers puts many pairs across the margin.
    """
    loss, gradient = result
    loss_error = abs(float(loss) - truth.loss) / max(abs(truth.loss), 1e-300)
    largest = truth.gradient.norm(dim=1).max().clamp(min=1e-300)
    errors = Errors(loss_error, float((gradient.double() - truth.gradient).norm(dim=1).max() / largest))
    loss_tolerance = LOSS_TOLERANCE if exact_dtype else HALF_LOSS_TOLERANCE
    gradient_tolerance = GRADIENT_TOLERANCE if exact_dtype else HALF_GRADIENT_TOLERANCE
    if not (errors.loss <= loss_tolerance and errors.gradient <= gradient_tolerance):  # NaN is wrong as well
        raise WrongResultError(
            f"{provider}: error of the loss {errors.loss:.1e}, of the gradient {errors.gradient:.1e}"
        )
    return errors


def _mmfast(problem: Problem) -> Loss:
    return lambda x: mmfast.contrastive_loss(x, problem.labels, margin=problem.margin)


def _without_pruning(problem: Problem) -> Loss:
    def loss(x: Tensor) -> Tensor:
        mmfast._C.enable_pruning(False)
        try:
            return mmfast.contrastive_loss(x, problem.labels, margin=problem.margin)
        finally:
            mmfast._C.enable_pruning(True)

    return loss


def _double_loop(problem: Problem) -> Loss:
    return lambda x: double_loop(x, problem.labels, problem.margin)


def _eager(problem: Problem) -> Loss:
    return lambda x: eager_idiom(x, problem.labels, problem.margin)


def _cdist(problem: Problem) -> Loss:
    labels, margin = problem.labels, problem.margin

    def loss(x: Tensor) -> Tensor:
        d2 = torch.cdist(x, x).square()
        return torch.where(labels[:, None] == labels[None, :], d2, (margin - d2).relu()).sum()

    return loss


def _torch_compile(problem: Problem) -> Loss:
    torch.compiler.reset()  # else a tenth shape in one process is past the recompilation limit and runs eagerly
    compiled = torch.compile(eager_idiom, fullgraph=True, dynamic=False)

    def loss(x: Tensor) -> Tensor:
        return compiled(x, problem.labels, problem.margin)

    _compile(loss, problem.embeddings)
    return loss


def _pytorch_metric_learning(problem: Problem) -> Loss:
    from pytorch_metric_learning import distances, losses, reducers

    # power=2: its margins then compare squared distances. It leaves self pairs out, whose d² and gradient are 0.
    module = losses.ContrastiveLoss(
        pos_margin=0,
        neg_margin=problem.margin,
        distance=distances.LpDistance(p=2, power=2, normalize_embeddings=False),
        reducer=reducers.SumReducer(),
    )

    def loss(x: Tensor) -> Tensor:
        value: Tensor = module(x, problem.labels)
        return value

    return loss


def _keops(problem: Problem) -> Loss:
    os.environ.setdefault("PYKEOPS_VERBOSE", "0")
    os.environ.setdefault("KEOPS_VERBOSE", "0")  # else it warns that there is no GPU
    from pykeops.torch import LazyTensor

    labels, margin = problem.labels.float()[:, None], problem.margin  # class numbers are exact in fp32

    def loss(x: Tensor) -> Tensor:
        d2 = ((LazyTensor(x[:, None, :]) - LazyTensor(x[None, :, :])) ** 2).sum(-1)
        classes = labels[: len(x)]
        same = (0.5 - (LazyTensor(classes[:, None, :]) - LazyTensor(classes[None, :, :])) ** 2).step()
        value: Tensor = (same * d2 + (1 - same) * (margin - d2).relu()).sum(dim=1).sum()
        return value

    _compile(loss, problem.embeddings[:8])  # its programs depend on the number of features alone
    return loss


def _compile(loss: Loss, embeddings: Tensor) -> None:
    loss(embeddings.clone().requires_grad_()).backward()


OURS, WITHOUT_PRUNING = "mmfast", "mmfast without pruning"
MEMORY = "B × B matrices of more than 8 GB"

PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(OURS, _mmfast, 1 << 20, "memory is linear in B; a million rows take minutes"),
        Provider("double loop", _double_loop, 128, "seconds per step"),
        Provider("eager", _eager, 16384, MEMORY),
        Provider("cdist", _cdist, 16384, MEMORY),
        Provider("torch.compile", _torch_compile, 16384, MEMORY, compiles=True),
        Provider("pytorch-metric-learning", _pytorch_metric_learning, 8192, MEMORY),
        Provider("keops", _keops, 4096, "memory is linear in B, but a step takes more than ten seconds", compiles=True),
    )
}

# Ours with a part of the engine switched off, to see what that part is worth; run where it is named.
EVERY = PROVIDERS | {WITHOUT_PRUNING: Provider(WITHOUT_PRUNING, _without_pruning, 1 << 20, "as mmfast")}
