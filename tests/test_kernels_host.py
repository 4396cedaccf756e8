"""The host's part of the Triton kernels never waits for the GPU, so that a step can be captured in a CUDA graph.

No GPU is needed: tensors of the meta device have no values to wait for, and kernels are not launched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

import mmfast
from mmfast import backends, ops
from tests.oracle import Problem, cast, problem

pytest.importorskip("triton")
from triton.runtime.interpreter import InterpretedFunction

from mmfast.kernels import choice, configs, negatives, roofline
from mmfast.kernels import pair_hinge as host
from mmfast.kernels.dry import DEVICE, Trace, kernels_go_to, tensors

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

ROWS, REF_ROWS, FEATURES = 1500, 1300, 40  # tiles are pruned, and there are several blocks


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[[str], None]:
    """Choose what the tensors pass for being on; the operator is called as it is where no mode watches."""
    monkeypatch.setattr(backends, "forced", "triton")
    monkeypatch.setattr(ops, "_nobody_watches", lambda _: True)
    monkeypatch.setattr(negatives, "BLOCK_ROWS", 1024)
    monkeypatch.setattr(negatives, "CHUNK_ROWS", 256)

    def choose(name: str) -> None:
        for module in (configs, host):
            monkeypatch.setattr(module, "architecture", lambda _: name)

    return choose


def step(p: Problem) -> None:
    """Compute the loss and, where they are asked for, the gradients."""
    loss = mmfast.contrastive_loss(**p)
    if loss.requires_grad:
        loss.backward()


def without_values(dtype: torch.dtype, reduction: str, ref_rows: int | None, wanted: tuple[bool, bool]) -> Problem:
    def side(rows: int, gradient: bool) -> tuple[Tensor, Tensor]:
        x = torch.empty(rows, FEATURES, dtype=dtype, device=DEVICE, requires_grad=gradient)
        return x, torch.empty(rows, dtype=torch.int64, device=DEVICE)

    embeddings, labels = side(ROWS, wanted[0])
    ref_emb, ref_labels = (None, None) if ref_rows is None else side(ref_rows, wanted[1])
    sides = {"embeddings": embeddings, "labels": labels, "ref_emb": ref_emb, "ref_labels": ref_labels}
    return {**sides, "reduction": reduction, "ignore_index": 3}


@pytest.mark.parametrize("screen", choice.NAMES)
@pytest.mark.parametrize("reduction", ["sum", "mean", "mean_nonzero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ref_rows", [None, REF_ROWS])
def test_nothing_waits_for_the_gpu(
    ref_rows: int | None,
    dtype: torch.dtype,
    reduction: str,
    screen: str,
    architecture: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(choice.VARIABLE, screen)
    architecture("sm_90")
    for wanted in ((True, True), (True, False), (False, True), (False, False)):
        kernels: list[str] = []
        p = without_values(dtype, reduction, ref_rows, wanted)
        with kernels_go_to(lambda kernel, *_: kernels.append(kernel.__name__)), Trace():  # noqa: B023
            step(p)
        assert kernels.count("combine") == 1 + (ref_rows is not None and wanted[1])
        assert kernels.count("screen") >= 4  # that of the balls, and three blocks
        assert ("add_digits" in kernels) == (dtype != torch.float64)


@pytest.mark.parametrize(
    "wait", ["item", "branch", "cpu", "nonzero", "mask", "select", "unique", "lengths", "literal", "list", "other"]
)
def test_what_waits_is_seen(wait: str, architecture: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each put where the host has the classes in hand."""
    waits: dict[str, Callable[[Tensor], Any]] = {
        "item": lambda x: x.max().item(),
        "branch": lambda x: 1 if x.any() else 0,
        "cpu": lambda x: x.cpu(),
        "nonzero": lambda x: x.nonzero(),
        "mask": lambda x: x.__setitem__(x > 0, x),
        "select": lambda x: x.masked_select(x > 0),
        "unique": lambda x: x.unique(),
        "lengths": lambda x: x.repeat_interleave(x),
        "literal": lambda x: x + torch.tensor(1, device=x.device),
        "list": lambda x: x[[0, 1]],
        "other": lambda x: x[torch.arange(2)],
    }
    architecture("sm_90")
    common_frame = host.common_frame

    def spoilt(x: Any, y: Any, margin: float) -> Any:
        waits[wait](x.classes)
        return common_frame(x, y, margin)

    p = without_values(torch.float32, "sum", None, (True, False))
    with kernels_go_to(lambda *_: None), Trace():
        step(p)
        monkeypatch.setattr(host, "common_frame", spoilt)
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta|copies between|by a mask"):
            step(p)


@pytest.mark.parametrize("ref_rows", [None, 66])
def test_no_size_depends_on_the_values(
    ref_rows: int | None, architecture: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same operators on the same shapes: whatever the rows and labels are, and where there are none."""
    architecture("interpreter")
    monkeypatch.setattr(negatives, "BLOCK_ROWS", 64)
    monkeypatch.setattr(negatives, "LEAST_TILES", 1)
    p = cast(problem(70, 8, ref_rows=ref_rows, margin=1.7, reduction="mean_nonzero"), torch.float32)
    apart = {**p, "embeddings": p["embeddings"] + 10 * p["labels"][:, None], "labels": torch.arange(70)}
    spoilt = {**p, "embeddings": p["embeddings"] / 0, "labels": torch.full((70,), -100)}
    run = InterpretedFunction.run

    def interpret(kernel: Any, values: Any, grid: Any, named: Any) -> None:
        if all(t.device != DEVICE for t in tensors(values)):
            with _disable_current_modes():  # what the interpreter does is not the host's
                run(kernel, *values, grid=grid, warmup=False, **named)

    traces = []
    for data in (p, apart, spoilt, {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in p.items()}):
        leaf = data["embeddings"].detach().requires_grad_()
        with kernels_go_to(interpret), Trace(leaf.device) as trace:
            step({**data, "embeddings": leaf})
        traces.append(trace.operators)
    assert len(traces[0]) > 100
    assert all(trace == traces[0] for trace in traces[1:])


def test_the_prediction_counts_launches() -> None:
    """One, three and six blocks of pairs, of which those below the diagonal are the others."""
    steps = [roofline.Step(rows * negatives.BLOCK_ROWS, 64, 0.5, 4) for rows in (1, 2, 3)]
    one, three, six = (roofline.our_launches(step) for step in steps)
    assert one.before == three.before == six.before > 0
    # A block on the diagonal more and one beside it; then one more of the former and two of the latter.
    beside = (six.all - three.all) - (three.all - one.all)
    on_diagonal = three.all - one.all - beside
    assert beside == on_diagonal + 2  # sums by products, and their totals, for either side
    assert on_diagonal > 0
    for step in steps:
        for gpu in roofline.GPUS.values():
            seconds, in_graph = roofline.seconds("mmfast", step, gpu), roofline.seconds_in_graph("mmfast", step, gpu)
            assert seconds >= in_graph + one.before * (roofline.LAUNCH - roofline.GAP)
            assert seconds >= roofline.our_launches(step).all * roofline.LAUNCH


class TestTheChoiceOfTheScreen:
    """Measured once, but not while a graph is being captured, in which nothing may be waited for."""

    digits: Any = SimpleNamespace(device=torch.device("cuda", 0), shape=(2, choice.LEAST_ROWS, 512))

    @pytest.fixture(autouse=True)
    def _nothing_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choice, "_chosen", {})
        monkeypatch.delenv(choice.VARIABLE, raising=False)

    @pytest.fixture
    def capturing(self, monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
        """Say whether a graph is being captured; events are those of a device on which given products are faster."""
        given_last = [False]

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert not state(), "an event was made to be waited for"

            def record(self) -> None:
                pass

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, _: Event) -> float:
                return 1.0 if given_last[0] else 2.0

        state = mock.Mock(return_value=False)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", state)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        self.screen = mock.Mock(side_effect=lambda given: self._screened(given_last, given))
        return state

    def _screened(self, given_last: list[bool], given: bool) -> Any:
        given_last[0] = given
        return SimpleNamespace(doubtful=torch.empty(1000, 0))

    def test_in_a_capture_it_is_fused_and_not_kept(self, capturing: mock.Mock) -> None:
        capturing.return_value = True
        assert choice.products_given(self.screen, self.digits) is False
        self.screen.assert_not_called()
        capturing.return_value = False
        assert choice.products_given(self.screen, self.digits) is True
        assert self.screen.call_count == 2 * (1 + choice.REPEATS)

    def test_a_capture_after_the_measurement_has_what_was_chosen(self, capturing: mock.Mock) -> None:
        choice.products_given(self.screen, self.digits)
        capturing.return_value = True
        self.screen.reset_mock()
        assert choice.products_given(self.screen, self.digits) is True
        self.screen.assert_not_called()

    def test_small_batches_are_not_measured(self, capturing: mock.Mock) -> None:
        small: Any = SimpleNamespace(device=self.digits.device, shape=(2, choice.LEAST_ROWS - 1, 512))
        assert choice.products_given(self.screen, small) is False
        self.screen.assert_not_called()


@pytest.mark.slow
def test_the_audit_compiles_whatever_the_autotuner_may_choose() -> None:
    """As recorded where kernels are not interpreted, in a process of its own."""
    program = """
from mmfast.kernels.configs import CONFIGS
from mmfast.kernels.launches import alternatives, record

for name, config in CONFIGS.items():
    chosen = record(config)
    for kernel, parts in (
        ("screen", (config.screen, *config.other_screens)),
        ("refine", (config.refine, *config.other_refines)),
        ("add_digits", (config.products, *config.other_products)),
    ):
        launches = [launch for launch in chosen + alternatives(config, chosen) if launch.name == kernel]
        found = set()
        for launch in launches:
            values = dict(launch.constants + launch.options)
            found.add((values["BLOCK_K"], values["num_warps"], values["num_stages"]))
        assert found == {(part.block_k, part.num_warps, part.num_stages) for part in parts}, (name, kernel, found)
"""
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], env=plain, check=True)
