"""Every loss of the package in a few lines of plain PyTorch: the definition, and the oracle of the tests.

Written to be read. Differences are formed directly, so near-duplicates lose nothing to cancellation, at the price
of O(B² D) time and memory. For anything but small batches use the functions of :mod:`mmfast.functional`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(
    embeddings: Tensor,  # (B, D)
    labels: Tensor,  # (B,)
    ref_emb: Tensor | None = None,  # (R, D)
    ref_labels: Tensor | None = None,  # (R,)
    *,
    margin: float = 1.0,
    reduction: str = "sum",
    ignore_index: int = -100,
) -> Tensor:
    """Define :func:`mmfast.contrastive_loss`; the same arguments and the same result.

    >>> contrastive_loss(torch.tensor([[0.0], [0.5]]), torch.tensor([0, 1]))
    tensor(1.5000)
    """
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
        ref_emb = None if ref_emb is None else ref_emb.float()
    taking_part = labels != ignore_index
    x, x_labels = embeddings[taking_part], labels[taking_part]
    y, y_labels = x, x_labels
    if ref_emb is not None and ref_labels is not None:
        ref_taking_part = ref_labels != ignore_index
        y, y_labels = ref_emb[ref_taking_part], ref_labels[ref_taking_part]

    d2 = (x[:, None, :] - y[None, :, :]).square().sum(dim=2)  # (B, R)
    same = x_labels[:, None] == y_labels[None, :]
    positive = torch.where(same, d2, 0.0)
    negative = torch.where(same, 0.0, (margin - d2).relu())
    total = positive.sum() + negative.sum()
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / max(1, d2.numel())
    if reduction == "mean_nonzero":
        return positive.sum() / (positive > 0).sum().clamp(min=1) + negative.sum() / (negative > 0).sum().clamp(min=1)
    raise ValueError(f"reduction must be 'sum', 'mean' or 'mean_nonzero', got {reduction!r}")
