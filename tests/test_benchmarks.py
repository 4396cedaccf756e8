"""The benchmarks compare what they claim to: every provider is the loss, every batch is as dense as its name says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the benchmarks are not installed

from benchmarks import gpu, machine
from benchmarks.data import DENSITIES, EMBEDDINGS_VARIABLE, Problem, exact, make_problem
from benchmarks.providers import PROVIDERS, UnavailableError, WrongResultError, check, set_up
from mmfast import reference

COMPILING = [pytest.param(name, marks=pytest.mark.slow) for name, p in PROVIDERS.items() if p.compiles]
SYNTHETIC = [name for name in DENSITIES if name != "embeddings"]


pytestmark = pytest.mark.usefixtures("one_thread")


def small_problem(density: str) -> Problem:
    return make_problem(density, rows=33, features=64, seed=3)


@pytest.mark.parametrize("provider", [*(name for name, p in PROVIDERS.items() if not p.compiles), *COMPILING])
def test_provider_is_the_loss(provider: str) -> None:
    for density in SYNTHETIC:
        problem = small_problem(density)
        try:
            step = set_up(PROVIDERS[provider], problem)
        except UnavailableError as reason:
            pytest.skip(str(reason))
        step()  # a second step must not add to the first one's gradient
        loss, gradient = step()
        x = problem.embeddings.double().requires_grad_()
        expected = reference.contrastive_loss(x, problem.labels, margin=problem.margin)
        expected.backward()
        assert x.grad is not None
        # fp32 sums of 33² terms; no pair of these batches is within fp32 rounding of the margin.
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=0)
        scale = x.grad.norm(dim=1).max()
        torch.testing.assert_close(gradient.double() / scale, x.grad / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("density", SYNTHETIC)
def test_exact_is_the_reference(density: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.data.BLOCK_ELEMENTS", 7 * 33)  # blocks of seven rows, the last of five
    problem = small_problem(density)
    truth = exact(problem)
    x = problem.embeddings.double().requires_grad_()
    expected = reference.contrastive_loss(x, problem.labels, margin=problem.margin)
    expected.backward()
    d2 = torch.cdist(x.detach(), x.detach()).square()
    negative = problem.labels[:, None] != problem.labels[None, :]
    assert truth.loss == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(truth.gradient, x.grad, rtol=0, atol=1e-11)
    assert truth.active == pytest.approx((d2[negative] < problem.margin).double().mean().item(), abs=1e-12)


@pytest.mark.parametrize(
    ("density", "low", "high"),
    [
        ("sparse", 0.0002, 0.002),
        ("separated", 0.0, 0.0),
        ("tenth", 0.09, 0.11),
        ("half", 0.49, 0.51),
        ("full", 1.0, 1.0),
    ],
)
@pytest.mark.parametrize(("rows", "features"), [(512, 256), (2048, 128)])
def test_density_is_as_named(density: str, low: float, high: float, rows: int, features: int) -> None:
    problem = make_problem(density, rows, features)
    assert low <= exact(problem).active <= high
    torch.testing.assert_close(problem.embeddings.norm(dim=1), torch.ones(rows))
    assert 100 <= len(problem.labels.unique()) <= 500


def test_same_arguments_same_batch() -> None:
    first, second, other = (make_problem("half", 64, 64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.embeddings, second.embeddings)
    assert torch.equal(first.labels, second.labels)
    assert first.margin == second.margin
    assert not torch.equal(first.embeddings, other.embeddings)


def test_embeddings_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(600, 64)).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.delenv(EMBEDDINGS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=EMBEDDINGS_VARIABLE):
        make_problem("embeddings", 512, 64)
    monkeypatch.setenv(EMBEDDINGS_VARIABLE, str(tmp_path / "rows.npy"))
    problem = make_problem("embeddings", 512, 64)
    unit = rows.astype(np.float32) / np.linalg.norm(rows.astype(np.float32), axis=1, keepdims=True)
    assert ((problem.embeddings.numpy() @ unit.T).max(axis=1) > 1 - 1e-6).all()
    assert 0.0005 <= exact(problem).active <= 0.002
    with pytest.raises(ValueError, match="32 features"):
        make_problem("embeddings", 512, 32)


def test_wrong_result_is_refused() -> None:
    problem = small_problem("half")
    truth = exact(problem)
    loss, gradient = set_up(PROVIDERS["eager"], problem)()
    check("eager", (loss, gradient), truth)
    off_by_one_row = gradient.clone()
    off_by_one_row[5] = 0
    for wrong in [(loss * 1.001, gradient), (loss, gradient / 2), (loss, off_by_one_row), (loss * torch.nan, gradient)]:
        with pytest.raises(WrongResultError, match="eager"):
            check("eager", wrong, truth)


def test_too_many_rows_are_refused_with_the_reason() -> None:
    with pytest.raises(UnavailableError, match="at most 128 rows"):
        set_up(PROVIDERS["double loop"], make_problem("sparse", 129, 64))


def test_peak_memory_sees_the_matrices() -> None:
    rows = 1536
    matrix = 4 * rows**2
    eager = machine.peak_extra_memory(PROVIDERS["eager"], "sparse", rows, 64)
    assert 3 * matrix < eager < 12 * matrix  # d², where's two branches, and what backward holds at a time


def test_machine_is_described() -> None:
    described = machine.describe()
    assert described["threads"] == torch.get_num_threads()
    assert {"cpu", "cores", "tier", "torch", "commit"} <= described.keys()
    assert (machine.dense_flops(10, 3), machine.dense_bytes(10, 3)) == (1800, 1960)


def test_the_benchmark_for_gpus_runs_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "CONTESTANTS", [p for p in gpu.CONTESTANTS if not p.compiles])
    monkeypatch.setattr(gpu, "CHUNK_ROWS", 20)
    path = tmp_path / "gpu.json"
    case = ["--rows", "65", "--features", "32", "--density", "half", "--dtype", "float32", "bfloat16", "--rounds", "1"]
    assert gpu.main(["--device", "cpu", *case, "--json", str(path)]) == 0
    records = json.loads(path.read_text())["results"]
    names = {"mmfast", "eager", "cdist", "chunked"}
    assert names <= {record["provider"] for record in records if record["dtype"] == "float32"}
    assert names - {"cdist"} <= {record["provider"] for record in records if record["dtype"] == "bfloat16"}
    for record in records:
        assert record["gradient_error"] < (1e-5 if record["dtype"] == "float32" else 0.1)
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main([])
        assert "torch finds no GPU" in capsys.readouterr().err
