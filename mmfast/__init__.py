"""Exact contrastive losses and nearest-neighbour search in native code, without the B × B matrix.

>>> import torch, mmfast
>>> embeddings = torch.tensor([[0.0, 0.0], [0.5, 0.0]], requires_grad=True)
>>> loss = mmfast.contrastive_loss(embeddings, torch.tensor([0, 1]), margin=1.0)
>>> loss.backward()
>>> round(loss.item(), 6)
1.5
"""

from __future__ import annotations

from mmfast.functional import contrastive_loss
from mmfast.losses import ContrastiveLoss

__version__ = "0.1.0"
__all__ = ["ContrastiveLoss", "contrastive_loss"]
