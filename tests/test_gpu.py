"""The Triton kernels compiled and run on a GPU, by `make test-gpu`: the CPU engine's tests on tensors that lie there,
and what only a GPU shows: that nothing waits for it, graphs, streams, and memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import mmfast
from mmfast import reference
from tests import oracle, test_kernels
from tests import test_pair_hinge as cpu
from tests.oracle import Problem, assert_exact, cast, loss_and_gradients, problem

if os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available():
    pytest.skip("needs a GPU, and TRITON_INTERPRET=0", allow_module_level=True)

MEBIBYTE = 2**20
contrastive_loss = mmfast.contrastive_loss


@pytest.fixture(autouse=True)
def _on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loss of tensors on the CPU computed on the GPU; autograd brings the gradients back."""

    def moved(embeddings: Any, labels: Any, ref_emb: Any = None, ref_labels: Any = None, **options: Any) -> Any:
        ref = (None, None) if ref_emb is None else (ref_emb.cuda(), ref_labels.cuda())
        return contrastive_loss(embeddings.cuda(), labels.cuda(), *ref, **options).to(embeddings.device)

    monkeypatch.setattr(mmfast, "contrastive_loss", moved)
    monkeypatch.setattr(oracle, "ROUNDINGS", test_kernels.kernel_roundings())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ref_rows", [None, 0, 1, 129])
def test_every_shape(ref_rows: int | None, dtype: torch.dtype) -> None:
    for rows, features in [(64, 64), (63, 65), (200, 130), (1, 1), (0, 16), (5, 0), (130, 1)]:
        for reduction, margin in (("sum", 1.9), ("mean", 50.0), ("mean_nonzero", 1.0), ("sum", 0.0)):
            assert_exact(problem(rows, features, ref_rows=ref_rows, margin=margin, reduction=reduction), dtype)


test_ignored_rows_take_no_part = cpu.test_ignored_rows_take_no_part
test_labels_of_any_integer_dtype = cpu.test_labels_of_any_integer_dtype
test_all_labels_equal_and_all_different = cpu.test_all_labels_equal_and_all_different
test_views_and_read_only_storage = cpu.test_views_and_read_only_storage
test_inputs_stay_as_they_are = cpu.test_inputs_stay_as_they_are
test_what_is_not_finite_makes_the_result_nan = cpu.test_what_is_not_finite_makes_the_result_nan
test_any_shape_labels_scale_and_margin = cpu.test_any_shape_labels_scale_and_margin
test_no_less_accurate_than_the_eager_idiom = cpu.test_no_less_accurate_than_the_eager_idiom
test_residuals_that_meet_the_bound_prove_nothing = cpu.test_residuals_that_meet_the_bound_prove_nothing
test_digits_of_16_bits_that_are_off_by_up_to_a_half = cpu.test_digits_of_16_bits_that_are_off_by_up_to_a_half


class TestAdversarial(cpu.TestAdversarial):
    test_denormals_that_the_caller_flushes = None  # type: ignore[assignment]  # a mode of the CPU's threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ref_rows", [None, 1100])
def test_many_tiles(ref_rows: int | None, share: float, dtype: torch.dtype) -> None:
    """Tiles without, with few and with many active pairs, beside classes that are far apart."""
    p = problem(1600, 40, classes=200, ref_rows=ref_rows, reduction="mean_nonzero")
    centres = torch.randn(200, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.1
    p["embeddings"] += centres[p["labels"]]
    if ref_rows:
        p["ref_emb"] += centres[p["ref_labels"]]
    d2 = torch.pdist(p["embeddings"][:500]).square()
    assert_near({**p, "margin": 1e-9 + float(d2.quantile(share))}, dtype)


def assert_near(p: Problem, dtype: torch.dtype) -> None:
    """Compare with float64 on the GPU by the largest error of a row, for batches too large for assert_exact."""
    rounded = cast(p, dtype)
    loss, gradients = loss_and_gradients(mmfast.contrastive_loss, rounded)
    wide = {k: v.cuda() if isinstance(v, Tensor) else v for k, v in cast(rounded, torch.float64).items()}
    expected, expected_gradients = loss_and_gradients(reference.contrastive_loss, wide)
    half = dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), expected.cpu(), rtol=4e-6 if half else 5e-7, atol=0.0)
    tolerance = 2.0**-8 if half else 2.0**-22
    for ours, exact in zip(gradients, expected_gradients, strict=True):
        error = (ours.double() - exact.cpu()).norm(dim=1) / exact.cpu().norm(dim=1).max()
        assert float(error.max()) < tolerance


@pytest.fixture
def batch() -> Callable[..., dict[str, Any]]:
    def make(rows: int, features: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
        generator = torch.Generator("cuda").manual_seed(seed)
        x = torch.randn(rows, features, generator=generator, device="cuda", dtype=torch.float32)
        labels = torch.randint(max(2, rows // 8), (rows,), generator=generator, device="cuda")
        x = torch.nn.functional.normalize(x + 2 * torch.sin(labels[:, None] * torch.arange(features, device="cuda")))
        return {"embeddings": x.to(dtype).requires_grad_(), "labels": labels, "margin": 1.0}

    return make


def step(p: dict[str, Any]) -> tuple[Tensor, Tensor]:
    p["embeddings"].grad = None
    loss = contrastive_loss(**p)
    loss.backward()
    return loss.detach(), p["embeddings"].grad


Batch = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_every_time_and_on_every_stream(batch: Batch, dtype: torch.dtype) -> None:
    p = {**batch(5000, 160, dtype), "reduction": "mean_nonzero"}
    expected = step(p)
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    for stream in [torch.cuda.current_stream(), *streams] * 3:
        with torch.cuda.stream(stream):
            loss, gradient = step(p)
        stream.synchronize()
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])


def test_a_step_like_another_asks_triton_nothing(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    p = batch(5000, 161)
    expected = step(p)
    buffer = torch.empty(5000 * 161 + 1, device="cuda")
    elsewhere = buffer[1:].view(5000, 161).copy_(p["embeddings"].detach())  # not divisible by 16, as other code expects
    loss, gradient = step({**p, "embeddings": elsewhere.requires_grad_()})
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])
    monkeypatch.setattr("triton.runtime.jit.JITFunction.run", None)
    for rows in (p["embeddings"], elsewhere):
        loss, gradient = step({**p, "embeddings": rows})
        assert torch.equal(loss, expected[0])
        assert torch.equal(gradient, expected[1])


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[], None]]:
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("reduction", cpu.REDUCTIONS)
def test_nothing_waits_for_the_gpu(
    batch: Batch, cross: bool, reduction: str, waiting_is_an_error: Callable[[], None]
) -> None:
    p = {**batch(4500, 64), "reduction": reduction}
    if cross:
        other = batch(3000, 64, seed=1)
        p |= {"ref_emb": other["embeddings"], "ref_labels": other["labels"]}
    step(p)  # compiles, and measures who computes the products
    waiting_is_an_error()
    step(p)


@pytest.mark.parametrize("rows", [300, 5000])
def test_a_graph_replayed_on_other_rows(batch: Batch, rows: int) -> None:
    p = batch(rows, 128)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(p)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    p["embeddings"].grad = None
    with torch.cuda.graph(graph):
        loss = contrastive_loss(**p)
        loss.backward()
    gradient = p["embeddings"].grad
    for seed in (1, 2):
        other = batch(rows, 128, seed=seed)
        with torch.no_grad():
            p["embeddings"].copy_(other["embeddings"])
            p["labels"].copy_(other["labels"])
        graph.replay()
        expected_loss, expected = step(other)
        assert torch.equal(loss.detach(), expected_loss)
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile_without_a_graph_break(batch: Batch, dtype: torch.dtype) -> None:
    p = batch(600, 48, dtype)

    def loss_of(x: Tensor) -> Tensor:
        return contrastive_loss(torch.tanh(x), p["labels"], margin=1.0) / 7

    results = []
    for function in (loss_of, torch.compile(loss_of, fullgraph=True)):
        x = p["embeddings"].detach().clone().requires_grad_()
        loss = function(x)
        loss.backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_mixed_precision(batch: Batch) -> None:
    """Under autocast the rows of a linear layer are half precision, and so are their gradients."""
    p = batch(700, 64)
    layer = torch.nn.Linear(64, 96).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        rows = layer(p["embeddings"])
        assert rows.dtype == torch.bfloat16
        loss = contrastive_loss(rows, p["labels"], margin=1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
    assert bool(layer.weight.grad.isfinite().all())


def extra(p: dict[str, Any]) -> int:
    """By how many bytes a step raises what PyTorch has allocated."""
    step(p)
    torch.cuda.synchronize()
    p["embeddings"].grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(p)
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_grows_with_the_rows(batch: Batch, dtype: torch.dtype) -> None:
    """Beyond the masks of one block of pairs, a fixed number of bytes a row and feature; B = 131,072 in 2 GB."""
    features = 512
    small, large = (extra(batch(rows, features, dtype)) for rows in (32768, 131072))
    assert large < 2e9
    assert large - small < 32 * (131072 - 32768) * features


def test_more_elements_than_32_bits_count(batch: Batch) -> None:
    """The last of 2^31 and more elements, against the same rows by themselves."""
    if torch.cuda.mem_get_info()[0] < 72 * 2**30:
        pytest.skip("needs 72 GiB of free memory")
    rows, features = 2**20 + 70, 2048
    ref = batch(100, features, torch.bfloat16, seed=1)
    x = ref["embeddings"].detach().repeat(-(-rows // 100), 1)[:rows].contiguous()
    x[-70:] = batch(70, features, torch.bfloat16, seed=2)["embeddings"].detach()
    labels = torch.arange(rows, device="cuda") % 50
    p = {"labels": labels, "ref_emb": ref["embeddings"].detach(), "ref_labels": ref["labels"] % 50, "margin": 1.5}
    x.requires_grad_()
    contrastive_loss(x, **p).backward()
    last = x.detach()[-70:].clone().requires_grad_()
    contrastive_loss(last, **{**p, "labels": labels[-70:]}).backward()
    assert x.grad is not None
    assert last.grad is not None
    torch.testing.assert_close(x.grad[-70:], last.grad, rtol=2**-7, atol=1e-5)
    assert bool(last.grad.any())
