"""The checks at the boundary of every loss: each error names the argument, what was received and what to do."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

REDUCTIONS = ("sum", "mean", "mean_nonzero")

_FLOAT = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_INTEGER = (*_SIGNED, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def check_rows(name: str, rows: Tensor) -> None:
    """Check that ``rows`` is a dense (rows, features) floating-point tensor."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(rows).__name__}")
    if rows.dtype not in _FLOAT:
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {rows.dtype}; convert it with {name}.float()"
        )
    if rows.dim() != 2:
        raise ValueError(f"{name} must have two dimensions (rows, features), got shape {tuple(rows.shape)}")
    if rows.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got layout {rows.layout}; convert it with {name}.to_dense()")


def check_labels(name: str, labels: Tensor, rows_name: str, rows: Tensor) -> None:
    """Check that ``labels`` holds one integer for each row of ``rows``."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype not in _INTEGER:
        raise TypeError(f"{name} must have an integer dtype, got {labels.dtype}; convert it with {name}.long()")
    if labels.dim() != 1 or labels.shape[0] != rows.shape[0]:
        raise ValueError(
            f"{name} must have shape ({rows.shape[0]},), one label per row of {rows_name}, got {tuple(labels.shape)}"
        )
    if labels.device != rows.device:
        raise ValueError(f"{name} must be on the device of {rows_name} ({rows.device}), got {labels.device}")


def check_sides(embeddings: Tensor, ref_emb: Tensor) -> None:
    """Check that the two sides of the cross form fit together."""
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb must have as many features as embeddings ({embeddings.shape[1]}), got {tuple(ref_emb.shape)}"
        )
    if ref_emb.device != embeddings.device:
        raise ValueError(f"ref_emb must be on the device of embeddings ({embeddings.device}), got {ref_emb.device}")
    if ref_emb.dtype != embeddings.dtype:
        raise TypeError(f"ref_emb must have the dtype of embeddings ({embeddings.dtype}), got {ref_emb.dtype}")


def check_margin(margin: float) -> float:
    """Return ``margin`` as a finite float that is not negative."""
    if type(margin) is not float and (isinstance(margin, bool) or not isinstance(margin, Real)):
        raise TypeError(f"margin must be a number, got {type(margin).__name__}")
    try:
        value = float(margin)
    except OverflowError:  # an int beyond every float
        value = math.inf
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"margin must be finite and not negative, got {margin!r}")
    return value


def check_reduction(reduction: str) -> None:
    """Check that ``reduction`` is one of the three."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, REDUCTIONS))}, got {reduction!r}")


def check_ignore_index(ignore_index: int) -> int:
    """Return ``ignore_index`` as an integer of 64 bits."""
    if type(ignore_index) is not int and (isinstance(ignore_index, bool) or not isinstance(ignore_index, Integral)):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit into 64 bits, got {ignore_index}")
    return int(ignore_index)


def autocasts(rows: Tensor) -> bool:
    """Tell whether autocast is on for the device of ``rows``."""
    device = rows.device.type
    # Both have it, and torch.compile of some versions cannot trace the question.
    return (device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)) and torch.is_autocast_enabled(device)


def widen(rows: Tensor, autocast: bool) -> Tensor:
    """Under autocast, bring all but float64 to float32, which PyTorch's own losses compute in."""
    return rows.float() if autocast and rows.dtype != torch.float64 else rows
