"""Recall@k in both directions, next to what chance would reach, through the package's own index."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
import torch
from torch import Tensor

import mmfast

AT = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """The share of queries with a match among their k nearest candidates, for each k, and the same by chance."""

    split: str
    direction: str  # "text → image" or "image → text"
    candidates: int
    at: dict[int, float]
    chance: dict[int, float]


def score(split_name: str, image_embeddings: Tensor, text_embeddings: Tensor, labels: Tensor) -> list[Recall]:
    """Search every text among the images and every image among the texts; equal labels match."""
    return [
        _recall(split_name, "text → image", text_embeddings, image_embeddings, labels),
        _recall(split_name, "image → text", image_embeddings, text_embeddings, labels),
    ]


def _recall(split: str, direction: str, queries: Tensor, candidates: Tensor, labels: Tensor) -> Recall:
    index = mmfast.Index(candidates.shape[1], metric="cos", dtype="f32")
    index.add(torch.arange(len(candidates)), candidates)
    found = np.asarray(index.search(queries, max(AT)).keys)  # (Q, k), rows padded with -1
    row_labels = labels.numpy()
    matches = (row_labels[found] == row_labels[:, None]) & (found >= 0)
    relevant = torch.unique(labels, return_inverse=True, return_counts=True)
    return Recall(
        split=split,
        direction=direction,
        candidates=len(candidates),
        at={k: float(matches[:, :k].any(axis=1).mean()) for k in AT},
        chance={k: _chance(relevant[2][relevant[1]].tolist(), len(candidates), k) for k in AT},
    )


def _chance(relevant: list[int], candidates: int, k: int) -> float:
    """Average over queries, with so many relevant candidates each, 1 - P(none among k drawn without replacement)."""
    k = min(k, candidates)
    missed = {count: comb(candidates - count, k) / comb(candidates, k) for count in set(relevant)}
    return 1 - sum(missed[count] for count in relevant) / len(relevant)
