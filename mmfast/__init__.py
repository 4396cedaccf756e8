"""Exact contrastive losses and nearest-neighbour search in native code, without the B × B matrix.

>>> import torch, mmfast
>>> embeddings = torch.tensor([[0.0, 0.0], [0.5, 0.0]], requires_grad=True)
>>> loss = mmfast.contrastive_loss(embeddings, torch.tensor([0, 1]), margin=1.0)
>>> loss.backward()
>>> round(loss.item(), 6)
1.5
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmfast.functional import contrastive_loss
from mmfast.losses import ContrastiveLoss

if TYPE_CHECKING:
    from mmfast.search import Index, RangeResult, SearchResult, col, exact_search

__version__ = "0.1.0"
_SEARCH = ("Index", "RangeResult", "SearchResult", "col", "exact_search")
__all__ = ["ContrastiveLoss", "Index", "RangeResult", "SearchResult", "col", "contrastive_loss", "exact_search"]


def __getattr__(name: str) -> object:
    # Search loads on first use: importing the losses must stay cheap.
    if name in _SEARCH:
        import mmfast.search

        return getattr(mmfast.search, name)
    raise AttributeError(f"module 'mmfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SEARCH])
