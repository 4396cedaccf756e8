"""The loss in other processes: forked children, DataLoader workers, and one in which every bound is checked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import mmfast
from mmfast import _C

CHECKED = """
import torch, mmfast
from mmfast import _C
generator = torch.Generator().manual_seed(0)
for tier in _C.cpu_tiers_available():
    _C.select_cpu_tier(tier)
    for rows, features in (300, 40), (130, 7), (200, 300):
        x = torch.randn(rows, features, generator=generator)
        x[::7] = x[1] + 1e-6 * x[::7]
        x[::11, 0] *= 1e4
        labels = torch.arange(rows) % (rows // 6)
        d2 = torch.cdist(x.double(), x.double()).square().flatten()
        for share in 0.01, 0.2, 0.5, 0.95, 1.0:
            margin = float(d2.quantile(share))
            for scale in 1.0, 1e-12, 1e12:
                leaf, m = (x * scale).requires_grad_(), margin * scale**2
                mmfast.contrastive_loss(leaf, labels, margin=m).backward()
                mmfast.contrastive_loss(leaf, labels, leaf[: rows // 3], labels[: rows // 3], margin=m)
"""


def _problem() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)), torch.arange(2000) % 9


def _loss(_: object = None) -> float:
    return mmfast.contrastive_loss(*_problem(), margin=30.0).item()


class _Losses(Dataset[float]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        torch.set_num_threads(2)  # a worker has one thread unless its dataset asks for more
        return _loss()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes_what_its_parent_does() -> None:
    expected = _loss()  # with as many threads as there are, none of which a child has
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_loss, range(4)).get(timeout=60) == [expected] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("layout", ["plain", "strided", "bfloat16"])
def test_a_child_shares_no_work_out_among_the_threads_of_its_parent(layout: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    rows = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    rows = {"plain": rows, "strided": rows.t().contiguous().t(), "bfloat16": rows.bfloat16()}[layout]
    labels = torch.arange(2000) % 9
    leaf = rows.requires_grad_(layout != "strided")  # the gradient of such a leaf PyTorch itself lays out anew
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with suppress(BaseException):
            loss = mmfast.contrastive_loss(leaf, labels, margin=30.0)
            if leaf.requires_grad:
                loss.backward()
            os._exit(0)
        os._exit(1)
    torch.set_num_threads(threads)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_the_workers_of_a_data_loader_compute_what_their_parent_does() -> None:
    expected = _loss()
    batches = list(DataLoader(_Losses(), batch_size=2, num_workers=2, timeout=60))
    assert torch.cat(batches).tolist() == [expected] * 4


@pytest.mark.slow
def test_float64_finds_no_decision_of_a_bound_wrong() -> None:
    environment = {**os.environ, "MMFAST_CHECK_SCREEN": "1"}
    done = subprocess.run([sys.executable, "-c", CHECKED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pruning_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1500) // 100
    x = torch.randn(15, 32, generator=generator)[labels] + 0.05 * torch.randn(1500, 32, generator=generator)
    results = []
    for enabled in (True, False):
        _C.enable_pruning(enabled)
        try:
            leaf = x.clone().requires_grad_()
            loss = mmfast.contrastive_loss(leaf, labels, margin=30.0)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        finally:
            _C.enable_pruning(True)
    for pruned, screened in zip(*results, strict=True):
        assert torch.equal(pruned, screened)
