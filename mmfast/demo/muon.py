"""Muon: steps along the orthogonalised momentum, with which layers learn in about half the epochs AdamW takes.

Every singular value of a step is about 1, so that directions in which the gradient is small are learned as fast as the
others. torch.optim.Muon is newer than the oldest torch that this package supports, takes no convolutions, and
multiplies in bfloat16, which few CPUs do in hardware.

Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

ITERATIONS = 5
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315  # the steepest at 0 that bring singular values to about 1


def orthogonalised(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix, or of convolutions as (output channels, the rest), to 0.7 to 1.2.

    Newton–Schulz iterations: those far below 1 % of the Frobenius norm stay smaller.
    """
    x = matrix.flatten(1)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=CUBIC, alpha=QUINTIC), x, beta=LINEAR)
    return (x.T if tall else x).reshape(matrix.shape)


class Muon(torch.optim.Optimizer):
    """For the weights of layers, (outputs, inputs, ...); embeddings, biases and norms are left to another optimizer.

    Parameters
    ----------
    parameters : iterable of Tensor
        Of at least two dimensions.
    lr : float
        The size of a step's singular values, times sqrt(outputs / inputs) where there are more outputs.
    momentum : float, default 0.95
        The share of the past in the running mean of the gradients; steps look ahead, as Nesterov's do.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        assert closure is None, "the loss is not evaluated again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"]
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                step = orthogonalised(parameter.grad.lerp(mean, group["momentum"]))
                widening = max(1.0, step.shape[0] / step[0].numel()) ** 0.5
                parameter.add_(step, alpha=-group["lr"] * widening)
