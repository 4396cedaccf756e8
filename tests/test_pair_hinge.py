"""mmfast.contrastive_loss against its definition in float64."""

from __future__ import annotations

import pytest
import torch

import mmfast
from mmfast import reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_nonzero"])
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (37, 19), (200, 64), (300, 130)])
def test_self_form(rows: int, features: int, reduction: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, features, generator=generator, dtype=dtype) * features**-0.5
    labels = torch.randint(-1, 9, (rows,), generator=generator)
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    loss = mmfast.contrastive_loss(ours, labels, margin=2.0, reduction=reduction, ignore_index=-1)
    expected = reference.contrastive_loss(exact, labels, margin=2.0, reduction=reduction, ignore_index=-1)
    loss.backward()
    expected.backward()
    assert ours.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-9)
    scale = exact.grad.norm(dim=1).max().item() + 1e-30
    torch.testing.assert_close(ours.grad.double() / scale, exact.grad / scale, rtol=0, atol=1e-6)
