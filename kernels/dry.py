"""Run the host's part of a call alone, on tensors without values: no GPU is needed, and no kernel runs.

Tensors of the meta device have shapes and no values, so that whatever waits for one raises: ``.item()``, a branch, a
length that depends on the data. :class:`Trace` raises for what is left of the things that a CUDA graph cannot hold,
copies between the host and the device, and counts what is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

DEVICE = torch.device("meta")

# Of PyTorch's operators on a GPU, where it is not one: those that only allocate, a radix sort's passes over the bytes
# of its keys with their indices and copies, and a scan's two kernels.
LAUNCHES = {"empty": 0, "empty_like": 0, "empty_strided": 0, "new_empty": 0, "sort": 8, "cumsum": 2}


class Trace(TorchDispatchMode):
    """Note each operator with the shapes of its results; one that makes the host and the device meet is an error."""

    def __init__(self, device: torch.device = DEVICE) -> None:
        super().__init__()
        self.device = device
        self.operators: list[tuple[str, tuple[torch.Size, ...]]] = []
        self.launches = 0
        self._literals = _NoLiterals()

    def __enter__(self) -> Trace:
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._literals.__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given, results = tensors((args, kwargs)), tensors(result)
        name = func.overloadpacket.__name__
        if any(t.device != self.device for t in given + results):
            raise RuntimeError(f"{name} copies between the host and the device")
        if "index" in name and any(t.dtype in (torch.bool, torch.uint8) for t in tensors(args[1])):
            raise RuntimeError(f"{name} by a mask waits for the number of its elements")
        self.operators.append((name, tuple(t.shape for t in results)))
        self.launches += 0 if func.is_view else LAUNCHES.get(name, 1)
        return result


class _NoLiterals(TorchFunctionMode):
    """Refuse tensors made of the host's numbers, whose copy to the device no operator shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        listed = name in ("__getitem__", "__setitem__") and _has_list(args[1])
        if listed or name in ("tensor", "as_tensor", "new_tensor", "from_numpy"):
            raise RuntimeError(f"{name} copies between the host and the device")
        return func(*args, **(kwargs or {}))


def _has_list(index: Any) -> bool:
    return isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(i, list) for i in index))


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def kernels_go_to(seen: Callable[..., Any]) -> Iterator[None]:
    """Have a function called with what a kernel would be launched with: kernel, arguments, grid and named arguments."""

    def run(kernel: Any, *values: Any, grid: Any, warmup: bool, **named: Any) -> None:
        seen(kernel, values, grid, named)

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(InterpretedFunction, "run", run):
        yield
