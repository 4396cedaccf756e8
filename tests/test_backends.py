"""Which engine computes, and what is said where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import mmfast
from mmfast import backends, reference

X, LABELS = torch.eye(4, 3), torch.arange(4) % 2


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))


def test_the_device_decides() -> None:
    assert backends.backend(torch.device("cpu")) == "cpu"
    with pytest.raises(NotImplementedError, match=r"no engine for tensors on xpu:0.*\.cpu\(\).*MMFAST_BACKEND=cpu"):
        backends.backend(torch.device("xpu", 0))


@pytest.mark.usefixtures("without_triton")
def test_a_gpu_without_triton() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmfast\[triton\]'"):
        backends.backend(torch.device("cuda"))


@pytest.mark.parametrize("forced", ["cpu", "reference", "triton"])
def test_forced(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if forced == "triton":
        pytest.importorskip("triton")
    monkeypatch.setattr(backends, "forced", forced)
    for device in ("cpu", "cuda"):
        assert backends.backend(torch.device(device)) == forced
    x = X.clone().requires_grad_()
    loss = mmfast.contrastive_loss(x, LABELS, margin=3.0)
    loss.backward()
    y = X.clone().requires_grad_()
    expected = reference.contrastive_loss(y, LABELS, margin=3.0)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(x.grad, y.grad)


def test_forced_triton_needs_a_gpu_or_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "forced", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(NotImplementedError, match="got tensors on cpu; set TRITON_INTERPRET=1"):
        mmfast.contrastive_loss(X, LABELS)


def test_a_name_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "forced", "gpu")
    with pytest.raises(ValueError, match="MMFAST_BACKEND must be one of cpu, triton, reference, got 'gpu'"):
        mmfast.contrastive_loss(X, LABELS)


def run(*command: str, **environment: str) -> Any:
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, env={**plain, **environment}, capture_output=True, text=True)


def test_the_variable_is_read_and_info_shows_it() -> None:
    info = "import sys; from mmfast.cli import main; sys.exit(main(['info']))"
    shown = run(sys.executable, "-c", info, MMFAST_BACKEND="reference").stdout
    assert "tensors on the CPU: reference; on a GPU: reference (MMFAST_BACKEND=reference)" in shown
    program = "import mmfast, sys; print('triton' in sys.modules)"
    assert run(sys.executable, "-c", program, MMFAST_BACKEND="triton").stdout == "False\n"


@pytest.mark.slow
def test_the_audit_names_what_is_not_fit() -> None:
    pytest.importorskip("triton")
    audit = [sys.executable, "-m", "mmfast.kernels.audit", "--architecture", "sm_90"]
    # Tiles of 256 x 256 do not fit into the registers of 128 threads.
    program = """
        from mmfast.kernels import audit, configs, launches
        fit = configs.CONFIGS["sm_90"]
        large = fit._replace(tile_m=256, tile_n=256, screen=fit.screen._replace(num_warps=4))
        audit.CONFIGS = {"sm_90": large}
        audit.record = lambda config: [launch for launch in launches.record(config) if launch.name == "screen"][:2]
        audit.alternatives = lambda config, chosen: []
        raise SystemExit(audit.main(["--architecture", "sm_90"]))
    """
    failed = run(sys.executable, "-c", "\n".join(line.strip() for line in program.splitlines()))
    assert failed.returncode == 1
    assert "sm_90 screen" in failed.stderr
    assert "spilled" in failed.stderr
    assert "TRITON_INTERPRET is set" in run(*audit, TRITON_INTERPRET="1").stderr


def test_the_audit_reads_loops_and_loads() -> None:
    """Of NVIDIA's text and of AMD's; an outer loop is not an inner one, and code between loops is in none."""
    pytest.importorskip("triton")
    from mmfast.kernels import audit

    ptx = """
$L__BB0_1:
	ld.global.b8 %rs1, [%rd1];
$L__BB0_2:
	@%p1 ld.global.L1::evict_last.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd2 + 0 ];
	cp.async.cg.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x10, %r6;
	mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 { %r7 };
	@%p2 bra $L__BB0_2;
	@%p3 bra $L__BB0_1;
	ld.global.b16 %rs2, [%rd4];
"""
    (loop,) = audit.inner_loops(ptx)
    assert audit._loads(loop) == {16: 2}
    assert len(audit.TENSOR_CORES.findall(loop)) == 1
    assert audit._loads(ptx) == {1: 1, 2: 1, 16: 2}
    amd = """
.LBB0_1:
	global_load_dwordx4 v[0:3], v4, s[0:1]
	global_load_ubyte v5, v4, s[0:1]
	v_mfma_i32_32x32x16_i8 a[0:15], v[0:1], v[2:3], a[0:15]
	s_cbranch_scc1 .LBB0_1
"""
    (loop,) = audit.inner_loops(amd)
    assert audit._loads(loop) == {16: 1, 1: 1}
    assert len(audit.TENSOR_CORES.findall(loop)) == 1
