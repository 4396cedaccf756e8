"""The losses as modules: the functions of :mod:`mmfast.functional` with their options held."""

from __future__ import annotations

from torch import Tensor, nn

from mmfast import _checks
from mmfast.functional import contrastive_loss


class ContrastiveLoss(nn.Module):
    r"""Compute the pairwise hinge loss over all ordered pairs: :func:`mmfast.contrastive_loss` as a module.

    Parameters
    ----------
    margin : float, default 1.0
        In units of a squared distance.
    reduction : {"sum", "mean", "mean_nonzero"}, default "sum"
    ignore_index : int, default -100

    Raises
    ------
    TypeError, ValueError
        As the function, the options already here.

    Examples
    --------
    >>> import torch
    >>> loss = ContrastiveLoss(margin=1.0)(torch.tensor([[0.0], [0.5]]), torch.tensor([0, 1]))
    >>> loss
    tensor(1.5000)
    """

    def __init__(self, margin: float = 1.0, reduction: str = "sum", ignore_index: int = -100) -> None:
        super().__init__()
        _checks.check_reduction(reduction)
        self.margin = _checks.check_margin(margin)
        self.reduction = reduction
        self.ignore_index = _checks.check_ignore_index(ignore_index)

    def forward(
        self,
        embeddings: Tensor,  # (B, D)
        labels: Tensor,  # (B,)
        ref_emb: Tensor | None = None,  # (R, D)
        ref_labels: Tensor | None = None,  # (R,)
    ) -> Tensor:
        """Return the scalar loss; the arguments are those of :func:`mmfast.contrastive_loss`."""
        return contrastive_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            margin=self.margin,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"
