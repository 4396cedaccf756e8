"""Which engine computes: the CPU's, the Triton kernels of a GPU, or the definition.

The tensors' device decides. ``MMFAST_BACKEND=cpu|triton|reference``, read when mmfast is imported, forces one: ``cpu``
and ``reference`` take tensors of any device (``reference`` is :mod:`mmfast.reference`, differentiated by PyTorch),
``triton`` those of a GPU and, with ``TRITON_INTERPRET=1``, of the CPU.
"""

from __future__ import annotations

import importlib.util
import os

import torch

VARIABLE = "MMFAST_BACKEND"
NAMES = ("cpu", "triton", "reference")

forced = os.environ.get(VARIABLE) or None


def backend(device: torch.device) -> str:
    """Name the engine for tensors of a device, or say why there is none."""
    if forced is None:
        if device.type == "cpu":
            return "cpu"
        if device.type == "cuda":  # ROCm too
            return _triton()
        raise NotImplementedError(
            f"there is no engine for tensors on {device}: mmfast computes on CPUs and on CUDA and ROCm devices; move "
            f"them with .cpu(), or set {VARIABLE}=cpu, which does so for each call"
        )
    if forced not in NAMES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(NAMES)}, got {forced!r}")
    if forced == "triton":
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise NotImplementedError(
                f"{VARIABLE}=triton computes on CUDA and ROCm devices, got tensors on {device}; set TRITON_INTERPRET=1 "
                "as well to have the kernels interpreted, which is slow"
            )
        return _triton()
    return forced


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        raise ModuleNotFoundError(
            "the kernels for GPUs need Triton, which is not installed: pip install 'mmfast[triton]'; or set "
            f"{VARIABLE}=cpu to compute on the CPU"
        )
    return "triton"
