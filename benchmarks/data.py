"""Batches to measure with, by how many negatives are active, and their exact result.

Density decides the cost of the loss: an engine that rules out pairs is fast where few negatives are active, and the
margin at the median of the squared distances is its worst case. So the density is part of the data's name, and what
is reported with a time is the density measured on that very batch, not the one intended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

EMBEDDINGS_VARIABLE = "MMFAST_BENCH_EMBEDDINGS"  # path of an .npy file, (N, D), for the density "embeddings"

ROWS_PER_CLASS = 5  # until there are MAX_CLASSES: batches of 512 to 2,500 rows have 100 to 500 classes
MAX_CLASSES = 500
SPARSE_SHARE = 0.001  # of the negatives: half of the 0.2 % that still counts as sparse
SAMPLED_ROWS = 1024  # for quantiles of d²: half a million pairs, a quantile to ± 0.1 %
BLOCK_ELEMENTS = 1 << 22  # of float64 distances at a time in `exact`: 32 MiB per intermediate


class Problem(NamedTuple):
    """The arguments of one call of the loss."""

    density: str
    embeddings: Tensor  # (B, D) float32
    labels: Tensor  # (B,) int64
    margin: float

    @property
    def rows(self) -> int:
        return self.embeddings.shape[0]

    @property
    def features(self) -> int:
        return self.embeddings.shape[1]


class Exact(NamedTuple):
    """What the loss is on a problem, in float64, and how many of its negatives are active."""

    loss: float
    gradient: Tensor  # (B, D) float64
    active: float  # share of the negative pairs with d² < margin


def make_problem(density: str, rows: int, features: int, seed: int = 0) -> Problem:
    """Return the same batch for the same arguments; ``density`` is one of :data:`DENSITIES`."""
    if density not in DENSITIES:
        raise ValueError(f"density must be one of {', '.join(DENSITIES)}, got {density!r}")
    if rows < 2 or features < 1:
        raise ValueError(f"rows must be at least 2 and features at least 1, got {rows} and {features}")
    generator = torch.Generator().manual_seed(seed)
    embeddings, labels, margin = DENSITIES[density](rows, features, generator)
    return Problem(density, embeddings, labels, margin)


def exact(problem: Problem) -> Exact:
    """Compute loss, gradient and density in float64, in blocks of rows, so that large batches fit."""
    x, labels, margin = problem.embeddings.double(), problem.labels, problem.margin
    square = x.square().sum(1)
    gradient = torch.empty_like(x)
    loss, active_pairs, negative_pairs = 0.0, 0, 0
    height = max(1, BLOCK_ELEMENTS // len(x))
    for start in range(0, len(x), height):
        rows = slice(start, start + height)
        d2 = torch.addmm(square[None, :], x[rows], x.T, alpha=-2).add_(square[rows, None])
        same = labels[rows, None] == labels[None, :]
        active = ~same & (d2 < margin)
        weight = same.double() - active.double()  # dL/dd²
        loss += float((weight * d2).sum()) + margin * int(active.sum())
        gradient[rows] = 4 * (weight.sum(1, keepdim=True) * x[rows] - weight @ x)  # both orders of a pair
        active_pairs += int(active.sum())
        negative_pairs += same.numel() - int(same.sum())
    return Exact(loss, gradient, active_pairs / max(1, negative_pairs))


def _sparse(rows: int, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Unit rows around class centres; a few classes have a twin, half of whose rows are within the margin.

    Rows at random are all about √2 apart, so that no negative is active at margin 1. Real data has classes that look
    alike. With noise s, rows of centres at cosine c are expected at d² = 2 - 2c / (1 + s²): 1 for twins, 0.4 within a
    class. C²/1000 twins among C classes make SPARSE_SHARE of the pairs active, for any number of classes.
    """
    labels = _balanced_labels(rows, generator)
    classes = _classes(rows)
    centres = _unit(torch.randn(classes, features, generator=generator))
    spread, cosine = 0.5, 0.625
    twins = int(classes**2 * SPARSE_SHARE)
    centres[:twins] = _unit(cosine * centres[twins : 2 * twins] + (1 - cosine**2) ** 0.5 * centres[:twins])
    return _around(centres, labels, spread, generator), labels, 1.0


def _separated(rows: int, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Classes as training leaves them: narrow and far apart; from 128 features no negative is active at margin 1."""
    labels = _balanced_labels(rows, generator)
    centres = _unit(torch.randn(_classes(rows), features, generator=generator))
    return _around(centres, labels, 0.1, generator), labels, 1.0


def _at_quantile(share: float) -> Callable[[int, int, torch.Generator], tuple[Tensor, Tensor, float]]:
    def make(rows: int, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
        """Put the margin at a quantile of the negatives' d² of the same rows."""
        embeddings, labels, _ = _sparse(rows, features, generator)
        return embeddings, labels, _quantile(embeddings, labels, share)

    return make


def _full(rows: int, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Put the margin above every distance: two unit rows have d² ≤ 4."""
    embeddings, labels, _ = _sparse(rows, features, generator)
    return embeddings, labels, 4.1


def _real(rows: int, features: int, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Take rows of the file that the environment names; a row's class is its nearest of some rows taken as anchors."""
    path = os.environ.get(EMBEDDINGS_VARIABLE)
    if path is None:
        raise ValueError(f"density 'embeddings' needs the environment variable {EMBEDDINGS_VARIABLE}: an .npy file")
    stored = np.load(path, mmap_mode="r")
    if stored.ndim != 2 or stored.shape[0] < rows or stored.shape[1] != features:
        raise ValueError(f"{path} must hold at least {rows} rows of {features} features, got shape {stored.shape}")
    chosen = torch.randperm(stored.shape[0], generator=generator)[:rows].numpy()
    embeddings = _unit(torch.from_numpy(stored[np.sort(chosen)].astype(np.float32)))
    embeddings = embeddings[torch.randperm(rows, generator=generator)]  # neighbours in a file are often alike
    labels = (embeddings @ embeddings[: _classes(rows)].T).argmax(dim=1)
    return embeddings, labels, _quantile(embeddings, labels, SPARSE_SHARE)


DENSITIES = {
    "sparse": _sparse,
    "tenth": _at_quantile(0.1),
    "half": _at_quantile(0.5),
    "full": _full,
    "separated": _separated,
    "embeddings": _real,
}


def _classes(rows: int) -> int:
    return min(MAX_CLASSES, max(2, rows // ROWS_PER_CLASS))


def _balanced_labels(rows: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(rows, generator=generator) % _classes(rows)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def _around(centres: Tensor, labels: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Return unit rows around their classes' centres; ``spread`` is the expected length of the noise."""
    noise = torch.randn(len(labels), centres.shape[1], generator=generator) * (spread * centres.shape[1] ** -0.5)
    return _unit(centres[labels] + noise)


def _quantile(embeddings: Tensor, labels: Tensor, share: float) -> float:
    """Return the quantile of the negatives' d², between two of them; of the first rows where there are many."""
    x, classes = embeddings[:SAMPLED_ROWS].double(), labels[:SAMPLED_ROWS]
    negative = (classes[:, None] != classes[None, :]).triu()
    d2 = torch.cdist(x, x).square()[negative].sort().values
    place = int(share * len(d2))
    return float(d2[place - 1 : place + 1].mean())
