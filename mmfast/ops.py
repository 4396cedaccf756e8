"""The torch.library operators: one per operation, with its fake and its derivative.

An operator returns the loss together with the gradients, which share all of its work; they are computed only for the
inputs that require them, and backward scales them. A second derivative is an error, never a silent zero: where
the backward pass is itself recorded, what it returns is tied to the inputs by a function that cannot be differentiated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmfast import _C, backends
from mmfast._forks import alone_after_fork

HALF = (torch.float16, torch.bfloat16)

_PLAIN = (Tensor, torch.nn.Parameter)
_is_transformed = torch._C._are_functorch_transforms_active


def computed_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that rows of a dtype are computed in."""
    return torch.float32 if dtype in HALF else dtype


def _engine(*arguments: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the loss and those of its gradients with respect to x and y that are asked for."""
    if backends.backend(arguments[0].device) != "triton":  # the definition is no operator: functional.py calls it
        return _on_cpu(*arguments)
    from mmfast.kernels import pair_hinge as on_gpu  # imports Triton

    with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        return on_gpu.pair_hinge(*arguments)  # type: ignore[no-any-return]


@alone_after_fork
def _on_cpu(
    x: Tensor,
    x_labels: Tensor,
    y: Tensor | None,
    y_labels: Tensor | None,
    margin: float,
    reduction: str,
    ignore_index: int,
    x_needs_gradient: bool,
    y_needs_gradient: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    device = x.device
    x, x_labels = _readable(x), _readable(x_labels)
    x_gradient = torch.empty_like(x) if x_needs_gradient else None
    y_gradient = None
    if y is not None and y_labels is not None:
        y, y_labels = _readable(y), _readable(y_labels)
        y_gradient = torch.empty_like(y) if y_needs_gradient else None
    value = _C.pair_hinge(
        x.numpy(),
        x_labels.numpy(),
        None if y is None else y.numpy(),
        None if y_labels is None else y_labels.numpy(),
        margin,
        reduction,
        ignore_index,
        None if x_gradient is None else x_gradient.numpy(),
        None if y_gradient is None else y_gradient.numpy(),
        torch.get_num_threads(),
    )
    loss = x.new_full((), value)
    if device.type != "cpu":
        loss = loss.to(device)
        x_gradient = None if x_gradient is None else x_gradient.to(device)
        y_gradient = None if y_gradient is None else y_gradient.to(device)
    return loss, x_gradient, y_gradient


def _readable(tensor: Tensor) -> Tensor:
    """Bring a tensor to where the CPU engine reads it, half precision as float32."""
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    return (tensor.float() if tensor.dtype in HALF else tensor).contiguous()


@torch.library.custom_op("mmfast::pair_hinge", mutates_args=())
def pair_hinge(
    x: Tensor,  # (B, D), computed in float32 if half precision
    x_labels: Tensor,  # (B,) int64
    y: Tensor | None,  # (R, D) like x; None: the self form
    y_labels: Tensor | None,  # (R,)
    margin: float,
    reduction: str,
    ignore_index: int,
    x_needs_gradient: bool,
    y_needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its gradients for x and y in the dtype computed in; a gradient not asked for is empty."""
    loss, x_gradient, y_gradient = _engine(
        x, x_labels, y, y_labels, margin, reduction, ignore_index, x_needs_gradient, y_needs_gradient
    )
    return (
        loss,
        loss.new_empty(0) if x_gradient is None else x_gradient,
        loss.new_empty(0) if y_gradient is None else y_gradient,
    )


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
    loss = x.new_empty((), dtype=computed_dtype(x.dtype))
    x_gradient = loss.new_empty(x.shape if x_needs_gradient else 0)
    y_gradient = loss.new_empty(y.shape if y is not None and y_needs_gradient else 0)
    return loss, x_gradient, y_gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, x_gradient, y_gradient = output
    ctx.mark_non_differentiable(x_gradient, y_gradient)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], inputs[2], x_gradient, y_gradient)


def _backward(ctx: Any, loss_gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    x_out, y_out = _scaled(ctx, loss_gradient)
    return x_out, None, y_out, None, None, None, None, None, None


def _scaled(ctx: Any, loss_gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    x, y, x_gradient, y_gradient = ctx.saved_tensors
    x_out = y_out = None
    if loss_gradient is not None:
        x_out = _scale(loss_gradient, x_gradient, x)
        y_out = _scale(loss_gradient, y_gradient, y)
    return x_out, y_out


@alone_after_fork
def _scale(loss_gradient: Tensor, gradient: Tensor | None, rows: Tensor) -> Tensor | None:
    if gradient is None or gradient.dim() != 2:
        return None
    scaled = loss_gradient * gradient
    if scaled.dtype != rows.dtype:
        scaled = scaled.to(rows.dtype)
    # Gradients are recorded here only with create_graph=True.
    return _DifferentiableOnce.apply(scaled, rows) if torch.is_grad_enabled() else scaled  # type: ignore[no-untyped-call]


class _DifferentiableOnce(torch.autograd.Function):
    """The identity on a gradient, tied to the rows that it belongs to, so that a second derivative meets an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient: Tensor, rows: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "mmfast.contrastive_loss has no second derivative: its gradient is computed with the loss and cannot be "
            "differentiated again; use mmfast.reference.contrastive_loss where create_graph=True is needed"
        )


pair_hinge.register_autograd(_backward, setup_context=_setup_context)


class _PairHinge(torch.autograd.Function):
    """The operator and its derivative in the form that the transforms of torch.func ask for."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _outputs(*arguments)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        batches = [
            _outputs(*(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*batches, strict=True)), (0, 0, 0)


class _PlainPairHinge(torch.autograd.Function):
    """The same around the engine itself: the dispatcher takes longer than the engine does for a small batch.

    So do binding the arguments of a ``setup_context``, arguments that are no tensors, and more outputs than one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, arguments: tuple[Any, ...]) -> Tensor:
        loss, x_gradient, y_gradient = _engine(*arguments)
        ctx.save_for_backward(x, y, x_gradient, y_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        return *_scaled(ctx, loss_gradient), None


def pair_hinge_loss(*arguments: Any) -> Tensor:
    """Call the operator with its derivative, under ``torch.func`` too; see :func:`pair_hinge` for the arguments."""
    loss: Tensor
    if not torch.compiler.is_compiling() and not _is_transformed() and _nobody_watches(arguments):
        loss = _PlainPairHinge.apply(arguments[0], arguments[2], arguments)  # type: ignore[no-untyped-call]
    else:
        loss = _outputs(*arguments)[0]
    return loss


def _outputs(*arguments: Any) -> Any:
    if _is_transformed() and not torch.compiler.is_compiling():
        return _PairHinge.apply(*arguments)  # type: ignore[no-untyped-call]
    return pair_hinge(*arguments)


def _nobody_watches(arguments: tuple[Any, ...]) -> bool:
    """Tell whether plain tensors are computed with, and no mode or tracer has to see an operator of a name."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and all(type(a) in _PLAIN and a.device.type != "meta" for a in arguments[:4] if a is not None)
    )
