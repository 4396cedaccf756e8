"""The torch.library operators: one per operation, with its fake and its derivative.

An operator returns the loss together with the gradients, which share all of its work; they are computed only for the
inputs that require them. Backward scales them. The gradients are outputs of the operator, so differentiating them
reaches this operator's derivative again, which refuses: a second derivative is an error, never a silent zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast import _C


@torch.library.custom_op("mmfast::pair_hinge", mutates_args=())
def pair_hinge(
    x: Tensor,  # (B, D) float32 or float64
    x_labels: Tensor,  # (B,) int64
    y: Tensor | None,  # (R, D) like x; None: the self form
    y_labels: Tensor | None,  # (R,)
    margin: float,
    reduction: str,
    ignore_index: int,
    x_needs_gradient: bool,
    y_needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients with respect to x and y; a gradient not asked for is empty."""
    x = x.detach().contiguous()
    x_gradient = torch.empty_like(x) if x_needs_gradient else x.new_empty(0)
    y_gradient = x.new_empty(0)
    if y is not None:
        y = y.detach().contiguous()
        y_gradient = torch.empty_like(y) if y_needs_gradient else y_gradient
    loss = _C.pair_hinge(
        x.numpy(),
        x_labels.contiguous().numpy(),
        None if y is None else y.numpy(),
        None if y_labels is None else y_labels.contiguous().numpy(),
        margin,
        reduction,
        ignore_index,
        x_gradient.numpy() if x_needs_gradient else None,
        y_gradient.numpy() if y_needs_gradient else None,
        torch.get_num_threads(),
    )
    return x.new_tensor(loss), x_gradient, y_gradient


@pair_hinge.register_fake
def _(
    x: Tensor,
    x_labels: Tensor,
    y: Tensor | None,
    y_labels: Tensor | None,
    margin: float,
    reduction: str,
    ignore_index: int,
    x_needs_gradient: bool,
    y_needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x_gradient = torch.empty_like(x, memory_format=torch.contiguous_format) if x_needs_gradient else x.new_empty(0)
    y_gradient = x.new_empty(0)
    if y is not None and y_needs_gradient:
        y_gradient = torch.empty_like(y, memory_format=torch.contiguous_format)
    return x.new_empty(()), x_gradient, y_gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, x_gradient, y_gradient = output
    ctx.set_materialize_grads(False)
    ctx.x_needs_gradient, ctx.y_needs_gradient = inputs[-2:]
    ctx.save_for_backward(x_gradient, y_gradient)


def _backward(
    ctx: Any, loss_gradient: Tensor | None, x_second: Tensor | None, y_second: Tensor | None
) -> tuple[Tensor | None, ...]:
    if x_second is not None or y_second is not None:
        raise NotImplementedError(
            "mmfast.contrastive_loss has no second derivative: its gradient is computed with the loss and cannot be "
            "differentiated again; use mmfast.reference.contrastive_loss where create_graph=True is needed"
        )
    x_gradient, y_gradient = ctx.saved_tensors
    x_out = y_out = None
    if loss_gradient is not None:
        x_out = loss_gradient * x_gradient if ctx.x_needs_gradient else None
        y_out = loss_gradient * y_gradient if ctx.y_needs_gradient else None
    return x_out, None, y_out, None, None, None, None, None, None


pair_hinge.register_autograd(_backward, setup_context=_setup_context)
