"""The losses as functions: check the arguments once, bring them into the operator's form, call the operator."""

from __future__ import annotations

import torch
from torch import Tensor

from mmfast import _checks, backends, ops, reference


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    reduction: str = "sum",
    ignore_index: int = -100,
) -> Tensor:
    r"""Compute the pairwise hinge loss over all ordered pairs, exactly, without forming the matrix of pairs.

    .. math::
        L = \sum_{ij} y_{ij} d_{ij}^2 + (1 - y_{ij}) \max(0, m - d_{ij}^2)

    where :math:`d_{ij}` is the Euclidean distance of rows i and j, and :math:`y_{ij}` is 1 where their labels are
    equal. At :math:`d_{ij}^2 = m` the hinge's gradient is 0, as with ``relu``.

    Parameters
    ----------
    embeddings : Tensor, shape (B, D), floating point
        One row per sample. float32 and float64 are computed as they are; float16 and bfloat16 in float32.
    labels : Tensor, shape (B,), any integer dtype
        Rows with equal labels match.
    ref_emb : Tensor, shape (R, D), optional
        The cross form: rows of ``embeddings`` against rows of ``ref_emb`` (images against texts, or a memory bank).
        Left out, all ordered pairs of ``embeddings`` with itself count. Dtype and device as ``embeddings``.
    ref_labels : Tensor, shape (R,), any integer dtype
        The labels of ``ref_emb``; required with it.
    margin : float, default 1.0
        m, in units of a squared distance; finite and not negative.
    reduction : {"sum", "mean", "mean_nonzero"}, default "sum"
        "sum" is the formula. "mean" divides by the number of ordered pairs. "mean_nonzero" is the mean of the
        non-zero positive terms plus the mean of the non-zero negative terms. A mean over nothing is 0.
    ignore_index : int, default -100
        Rows with this label take no part, on either side, and are not counted by the means.

    Returns
    -------
    Tensor, scalar
        float64 for float64 embeddings, otherwise float32, also under autocast. The gradient has the dtype of the input.
        A NaN or an infinity in a row that takes part makes the loss and all gradients of such rows NaN.

    Raises
    ------
    TypeError
        An argument is not a tensor, embeddings are not floating point, labels are not integers, dtypes differ.
    ValueError
        A shape, a length, the device, the margin or the reduction is not as described.
    NotImplementedError
        The tensors are on a device without an engine, or a second derivative is asked for.
    ModuleNotFoundError
        The tensors are on a GPU and Triton is not installed.

    Notes
    -----
    Time: O(B D) for the positives, and for the negatives one product in 8-bit integers that rules out almost all pairs,
    plus O(D) for each pair that it cannot rule out. Memory: O((B + R) D), a few bytes per input element, on a GPU some
    25 and a quarter of a gigabyte. The gradient
    is computed together with the loss. Results do not depend on the number of threads.

    Tensors on a CUDA or ROCm device are computed there by the Triton kernels of :mod:`mmfast.kernels`; see
    :mod:`mmfast.backends` for the variable that forces an engine.

    Pairs are decided and summed as in float64, but for one thing: where many pairs of float32 rows are active, the
    rows are summed as integers of 26 bits, on a GPU of 31, which costs less than a rounding of float32 at the
    gradient's scale.

    Source: Hadsell, Chopra, LeCun, *Dimensionality Reduction by Learning an Invariant Mapping* (2006), with the hinge
    on the squared distance.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.1]], requires_grad=True)
    >>> loss = contrastive_loss(x, torch.tensor([0, 1, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 4), tuple(x.grad.shape)
    (3.0, (3, 2))
    """
    _checks.check_rows("embeddings", embeddings)
    _checks.check_labels("labels", labels, "embeddings", embeddings)
    margin = _checks.check_margin(margin)
    _checks.check_reduction(reduction)
    ignore_index = _checks.check_ignore_index(ignore_index)
    autocast = _checks.autocasts(embeddings)
    x, x_labels = _checks.widen(embeddings, autocast), labels.long()
    y = y_labels = None
    if ref_emb is not None or ref_labels is not None:
        if ref_emb is None or ref_labels is None:
            given, missing = ("ref_labels", "ref_emb") if ref_emb is None else ("ref_emb", "ref_labels")
            raise ValueError(f"{missing} is required when {given} is given, got None; margin and the like go by name")
        _checks.check_rows("ref_emb", ref_emb)
        _checks.check_labels("ref_labels", ref_labels, "ref_emb", ref_emb)
        if not autocast:
            _checks.check_sides(embeddings, ref_emb)
        y, y_labels = _checks.widen(ref_emb, autocast), ref_labels.long()
        _checks.check_sides(x, y)

    if backends.forced == "reference":
        options = {"margin": margin, "reduction": reduction, "ignore_index": ignore_index}
        return reference.contrastive_loss(x, x_labels, y, y_labels, **options)  # type: ignore[arg-type]
    differentiated = torch.is_grad_enabled()
    return ops.pair_hinge_loss(
        x,
        x_labels,
        y,
        y_labels,
        margin,
        reduction,
        ignore_index,
        differentiated and x.requires_grad,
        differentiated and y is not None and y.requires_grad,
    )
