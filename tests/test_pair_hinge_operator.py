"""mmfast.contrastive_loss inside PyTorch: the operator, compile, autocast, transforms, replicas, threads, memory."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mmfast
from mmfast import ops, reference
from tests.oracle import cast, loss_and_gradients, problem

SIDES = [(True, None), (True, True), (True, False), (False, True), (False, False)]  # which sides require a gradient


def leaves(p: dict[str, Any], x_needs: bool, y_needs: bool | None) -> tuple[Tensor, Tensor | None]:
    x = p["embeddings"].clone().requires_grad_(x_needs)
    return x, None if y_needs is None else p["ref_emb"].clone().requires_grad_(y_needs)


def alone(p: dict[str, Any]) -> dict[str, Any]:
    return {**p, "ref_emb": None, "ref_labels": None}


@pytest.mark.parametrize(("x_needs", "y_needs"), SIDES)
def test_opcheck(x_needs: bool, y_needs: bool | None) -> None:
    p = problem(20, 8, ref_rows=13)
    x, y = leaves(p, x_needs, y_needs)
    y_labels = None if y is None else p["ref_labels"]
    arguments = (x, p["labels"], y, y_labels, 1.5, "sum", -100, x_needs, bool(y_needs))
    torch.library.opcheck(ops.pair_hinge, arguments)


@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_nonzero"])
@pytest.mark.parametrize(("x_needs", "y_needs"), SIDES[:4])
def test_gradcheck(x_needs: bool, y_needs: bool | None, reduction: str) -> None:
    p = problem(12, 5, classes=3, ref_rows=9)
    x, y = leaves(p, x_needs, y_needs)

    def loss(x: Tensor, y: Tensor | None) -> Tensor:
        y_labels = None if y is None else p["ref_labels"]
        return mmfast.contrastive_loss(x, p["labels"], y, y_labels, margin=1.7, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (x, y))  # type: ignore[arg-type]


@pytest.mark.parametrize(("x_needs", "y_needs"), SIDES)
def test_gradients_only_where_they_are_required(x_needs: bool, y_needs: bool | None) -> None:
    p = problem(30, 8, ref_rows=20, margin=1.8)
    _, expected = loss_and_gradients(mmfast.contrastive_loss, p if y_needs is not None else alone(p))
    x, y = leaves(p, x_needs, y_needs)
    loss = mmfast.contrastive_loss(x, p["labels"], y, None if y is None else p["ref_labels"], margin=1.8)
    assert loss.requires_grad == (x_needs or bool(y_needs))
    if loss.requires_grad:
        (3 * loss).backward()
    for leaf, gradient in zip([x] if y is None else [x, y], expected, strict=True):
        assert (leaf.grad is not None) == leaf.requires_grad
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, 3 * gradient)


def test_no_gradient_is_computed_under_no_grad() -> None:
    p = problem(30, 8)
    with torch.no_grad():
        loss = mmfast.contrastive_loss(p["embeddings"].requires_grad_(), p["labels"])
    assert not loss.requires_grad


class Recorder(TorchDispatchMode):
    """Remember which operators were called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("ref_rows", [None, 13])
def test_a_mode_sees_the_operator_and_the_same_result(ref_rows: int | None) -> None:
    p = problem(20, 8, ref_rows=ref_rows, margin=1.8)
    loss, gradients = loss_and_gradients(mmfast.contrastive_loss, p)  # nobody watches: no dispatcher
    with Recorder() as recorder:
        watched, watched_gradients = loss_and_gradients(mmfast.contrastive_loss, p)
    assert "mmfast.pair_hinge.default" in recorder.called
    assert torch.equal(loss, watched)
    for ours, theirs in zip(gradients, watched_gradients, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cross", [False, True])
def test_compile_without_a_graph_break(cross: bool) -> None:
    p = cast(problem(40, 16, ref_rows=30, margin=1.8), torch.float32)

    def step(x: Tensor, y: Tensor) -> Tensor:
        ref = (torch.tanh(y), p["ref_labels"]) if cross else (None, None)
        return mmfast.contrastive_loss(torch.tanh(x), p["labels"], *ref, margin=1.8) / 7

    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        x, y = leaves(p, True, True)
        assert y is not None
        loss = function(x, y)
        loss.backward()
        results.append((loss, x.grad, y.grad if cross else None))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype: torch.dtype) -> None:
    p = cast(problem(40, 16, ref_rows=30, margin=1.8), torch.float32)
    expected = mmfast.contrastive_loss(**p)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(mmfast.contrastive_loss(**p), expected)
        mixed = mmfast.contrastive_loss(**{**p, "ref_emb": p["ref_emb"].to(dtype)})  # autocast mixes dtypes freely
        projected = nn.Linear(16, 8)(p["embeddings"])
        assert projected.dtype == dtype
        assert mmfast.contrastive_loss(projected, p["labels"]).dtype == torch.float32
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected, rtol=0.05, atol=0)


def ours(p: dict[str, Any], function: Any = mmfast.contrastive_loss) -> Any:
    return lambda x, y: function(x, p["labels"], y, p["ref_labels"], margin=1.8)


def test_func_grad_and_vmap() -> None:
    p = problem(20, 6, ref_rows=15)
    x, y = p["embeddings"], p["ref_emb"]
    defined = ours(p, reference.contrastive_loss)
    gradient = torch.func.grad(ours(p), argnums=(0, 1))
    torch.testing.assert_close(gradient(x, y), torch.func.grad(defined, argnums=(0, 1))(x, y))
    torch.testing.assert_close(torch.func.jacrev(ours(p))(x, y), torch.func.jacrev(defined)(x, y))
    batch = torch.stack([x, 2 * x, x.flip(0)])
    expected = torch.stack([defined(one, y) for one in batch])
    torch.testing.assert_close(torch.func.vmap(ours(p), in_dims=(0, None))(batch, y), expected)
    torch.testing.assert_close(torch.func.vmap(ours(p), in_dims=(1, None))(batch.movedim(0, 1), y), expected)
    per_batch = torch.func.vmap(gradient, in_dims=(0, None))(batch, y)
    torch.testing.assert_close(per_batch[0], torch.stack([gradient(one, y)[0] for one in batch]))


def test_a_second_derivative_is_an_error_never_zero() -> None:
    p = problem(12, 4, ref_rows=9)
    x, y = leaves(p, True, True)
    assert y is not None
    first, other = torch.autograd.grad(ours(p)(x, y), (x, y), create_graph=True)
    for gradient in (first, other, first.square() + x):
        with pytest.raises(NotImplementedError, match=r"no second derivative.*mmfast\.reference"):
            gradient.sum().backward(retain_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.func.grad(lambda a: torch.func.grad(ours(p))(a, p["ref_emb"]).square().sum())(p["embeddings"])
    with pytest.raises(NotImplementedError):
        torch.func.hessian(ours(p))(p["embeddings"], p["ref_emb"])
    with pytest.raises(NotImplementedError):
        torch.func.jvp(ours(p), (p["embeddings"], p["ref_emb"]), (p["embeddings"], p["ref_emb"]))


def test_a_graph_used_again_gives_the_same_gradient_in_memory_of_its_own() -> None:
    """Whoever changes a gradient in place must not change what the graph holds, views in between included."""
    p = problem(40, 8, margin=2.0)
    x = p["embeddings"].float().unsqueeze(1).requires_grad_()
    loss = mmfast.contrastive_loss(x.squeeze(1), p["labels"], margin=2.0)
    (once,) = torch.autograd.grad(loss, x, retain_graph=True)
    expected = once.clone()
    once.mul_(2)
    x.register_hook(lambda gradient: gradient.mul_(3))
    for times in (3, 6, 9):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(x.grad, times * expected)
    batch = torch.tensor([1.0, 2.0])
    (batched,) = torch.autograd.grad(loss, x, batch, is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack([3 * expected, 6 * expected]))


def test_activation_checkpointing() -> None:
    p = problem(20, 6)
    x, plain = p["embeddings"].clone().requires_grad_(), p["embeddings"].clone().requires_grad_()
    checkpoint = torch.utils.checkpoint.checkpoint
    checkpoint(mmfast.contrastive_loss, x, p["labels"], use_reentrant=False).backward()
    mmfast.contrastive_loss(plain, p["labels"]).backward()
    assert x.grad is not None
    assert plain.grad is not None
    assert torch.equal(x.grad, plain.grad)


def test_several_python_threads_and_replicas_at_once() -> None:
    """As DataParallel runs it: a copy of the module per replica, each in a thread of its own."""
    module = nn.Sequential(nn.Linear(16, 8, dtype=torch.float64))
    criterion = mmfast.ContrastiveLoss(margin=1.5)
    problems = [problem(100 + 7 * i, 16, seed=i) for i in range(12)]

    def replica(p: dict[str, Any]) -> tuple[Tensor, Tensor]:
        own, own_criterion = copy.deepcopy(module), copy.deepcopy(criterion)
        loss = own_criterion(own(p["embeddings"]), p["labels"])
        loss.backward()
        (weight, _) = own.parameters()
        assert weight.grad is not None
        return loss.detach(), weight.grad

    alone = [replica(p) for p in problems]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(replica, problems * 3))
    for (loss, gradient), (expected, expected_gradient) in zip(together, alone * 3, strict=True):
        assert torch.equal(loss, expected)
        assert torch.equal(gradient, expected_gradient)


def test_the_module_holds_its_options() -> None:
    p = problem(30, 6, ref_rows=20)
    module = mmfast.ContrastiveLoss(margin=1.7, reduction="mean", ignore_index=2)
    expected = mmfast.contrastive_loss(**p, margin=1.7, reduction="mean", ignore_index=2)
    assert torch.equal(module(**p), expected)
    assert repr(module) == "ContrastiveLoss(margin=1.7, reduction='mean', ignore_index=2)"
    assert not list(module.parameters())
    assert not module.state_dict()


def test_the_tutorial_example() -> None:
    """nn.Linear(1024, 128), SGD(lr=0.01), 10 epochs: the double loop replaced by ours, the same loss curve.

    Features are scaled so that the summed loss converges at this learning rate.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 6
    features = (torch.randn(6, 1024, generator=generator)[labels] + torch.randn(48, 1024, generator=generator)) * 0.02

    def double_loop(x: Tensor, labels: Tensor) -> Tensor:
        loss = torch.zeros(())
        for i in range(len(x)):
            for j in range(len(x)):
                d2 = (x[i] - x[j]).square().sum()
                loss = loss + (d2 if labels[i] == labels[j] else torch.clamp(1.0 - d2, min=0))
        return loss

    def train(loss_function: Any) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(1024, 128)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = []
        for _ in range(10):
            optimiser.zero_grad()
            loss = loss_function(model(features), labels)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    expected = train(double_loop)
    assert expected[-1] < 0.9 * expected[0]  # it trains
    assert train(mmfast.contrastive_loss) == pytest.approx(expected, rel=1e-5)
    assert train(mmfast.ContrastiveLoss(margin=1.0)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_memory_is_linear_in_the_batch() -> None:
    """32,768 rows of 128 features take under 300 MB beyond the inputs; one B x B matrix alone takes 4.3 GB."""
    script = """
        import resource, torch, mmfast
        x = torch.nn.functional.normalize(torch.randn(ROWS, 128)).requires_grad_()
        labels = torch.randint(0, 500, (ROWS,))
        mmfast.contrastive_loss(x[:64], labels[:64]).backward()  # threads and libraries are loaded
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mmfast.contrastive_loss(x, labels).backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """

    def extra_mib(rows: int) -> float:
        program = textwrap.dedent(script).replace("ROWS", str(rows))
        ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return int(ran.stdout) / 1024

    at_8k, at_32k = extra_mib(8192), extra_mib(32768)
    assert at_32k < 300e6 / 2**20
    assert at_32k < 4.5 * at_8k + 8
