"""What is launched again without asking Triton, and what is not; the kernels stand for compiled ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmfast.kernels import launch as launching

Call = tuple[Any, ...]


class Compiled:
    """What Triton compiled for one call."""

    def __init__(self, launched: list[Call]) -> None:
        self.launched = launched

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        return lambda *arguments: self.launched.append((self, grid, *arguments))


class Kernel:
    """A kernel of parameters of these names, which notes what it is compiled for and what is launched again."""

    def __init__(self, *names: str) -> None:
        self.params = [SimpleNamespace(name=name) for name in names]
        self.asked: list[Compiled] = []
        self.launched: list[Call] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def call(*values: Any, **named: Any) -> Compiled:
            self.asked.append(Compiled(self.launched))
            return self.asked[-1]

        return call


class OnGpu(SimpleNamespace):
    """What a launch sees of a tensor on a GPU."""

    def __init__(self, at: int, dtype: torch.dtype = torch.float32, device: int = 0, is_cuda: bool = True) -> None:
        super().__init__(at=at, dtype=dtype, is_cuda=is_cuda, data_ptr=lambda: at, get_device=lambda: device)


@pytest.fixture(autouse=True)
def _compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "JITFunction", Kernel)
    monkeypatch.setattr(launching, "CompiledKernel", Compiled)
    monkeypatch.setattr(launching, "_compiled", {})
    monkeypatch.setattr(launching, "_REPEATS", True)


def test_a_launch_like_another_asks_triton_nothing() -> None:
    kernel = Kernel("rows", "count", "sums", "WIDE", "BLOCK")
    for at, count in ((32, 3), (64, 5)):
        launching.launch(kernel, (7, 2), OnGpu(at), count, OnGpu(2 * at), BLOCK=8, num_warps=4, WIDE=True)
    assert len(kernel.asked) == 1
    assert kernel.launched == [(kernel.asked[0], (7, 2, 1), 64, 5, 128, True, 8)]  # constants as they are declared


OTHER_CODE: dict[str, dict[str, Any]] = {
    "pointer that is not divisible by 16": {"rows": OnGpu(36)},
    "dtype": {"rows": OnGpu(32, torch.float64)},
    "device": {"rows": OnGpu(32, device=1)},
    "number that is divisible by 16": {"count": 48},
    "number that is one": {"count": 1},
    "number of 64 bits": {"count": 2**31 + 1},
    "negative number of 64 bits": {"count": -(2**31) - 1},
    "constant": {"BLOCK": 16},
    "option": {"num_warps": 8},
}


@pytest.mark.parametrize("change", OTHER_CODE.values(), ids=OTHER_CODE.keys())
def test_what_may_be_compiled_otherwise_is_left_to_triton(change: dict[str, Any]) -> None:
    kernel = Kernel("rows", "count", "BLOCK")
    first = {"rows": OnGpu(32), "count": 3, "BLOCK": 8, "num_warps": 4}
    for given in (first, first | change):
        rows, count, *_ = given.values()
        named = {name: given[name] for name in ("BLOCK", "num_warps")}
        for _ in range(2):
            launching.launch(kernel, (1,), rows, count, **named)
    assert len(kernel.asked) == 2
    assert [call[0] for call in kernel.launched] == kernel.asked
    launching.launch(Kernel("rows", "count", "BLOCK"), (1,), OnGpu(32), 3, BLOCK=8, num_warps=4)  # another kernel
    assert len(kernel.launched) == 2


def test_tensors_elsewhere_and_what_was_not_compiled_are_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("rows")
    for _ in range(2):
        launching.launch(kernel, (1,), OnGpu(32, is_cuda=False))
    monkeypatch.setattr(launching, "CompiledKernel", type(None))
    for _ in range(2):
        launching.launch(kernel, (1,), OnGpu(32))
    monkeypatch.setattr(launching, "_REPEATS", False)
    launching.launch(kernel, (1,), OnGpu(32))
    assert len(kernel.asked) == 5
    assert not kernel.launched
