"""Launch kernels; those that were launched before without asking Triton for them again.

For every launch Triton binds the arguments, finds how each is to be compiled and looks the kernel up by a text of all
that, and asks the driver whose memory each pointer is. Here a kernel is looked up by what its code depends on, and
pointers are handed on as numbers. What Triton is told to do otherwise after the first launch, as to debug, is not done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

# On AMD the code also depends on how much memory lies behind a pointer.
_REPEATS = torch.version.hip is None

# A kernel by what its code depends on, with the constants that a launch of it takes after the values.
_compiled: dict[tuple[Any, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *values: Tensor | int, **named: Any) -> None:
    """Launch on the current device, which is that of the values; ``named`` are constants and Triton's options."""
    tensor = next(value for value in values if not isinstance(value, int))
    if not (_REPEATS and tensor.is_cuda and type(kernel) is JITFunction):
        kernel[grid](*values, **named)
        return
    key: list[Any] = [kernel, tensor.get_device(), *named, *named.values()]
    numbers = []
    for value in values:
        if isinstance(value, int):
            key.append((value & 15 == 0, value == 1, -(2**31) <= value < 2**31))
            number = value
        else:
            number = value.data_ptr()
            key += value.dtype, number & 15 == 0
        numbers.append(number)
    known = tuple(key)
    found = _compiled.get(known)
    if found is None:
        compiled = kernel[grid](*values, **named)
        if type(compiled) is CompiledKernel:
            _compiled[known] = compiled, tuple(named[p.name] for p in kernel.params[len(values) :])
        return
    compiled, constants = found
    compiled[(*grid, 1, 1)[:3]](*numbers, *constants)
