"""Time and memory of loss + gradient, each provider by itself, across rows, features and density.

One dimension is varied at a time. For ratios use ``python -m benchmarks.interleaved``, which runs the providers in
turn; here minutes lie between two of them, and a machine changes in minutes.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.data import Exact, Problem, exact, make_problem
from benchmarks.machine import dense_bytes, dense_flops, peak_extra_memory
from benchmarks.providers import PROVIDERS, Provider, Step, UnavailableError, check, set_up

SECONDS = 1.0  # to spend on one measurement, where three rounds take less
ROUND_SECONDS = 0.01  # a shorter step is repeated within a round, so that the clock and the scheduler do not show
MIN_ROUNDS, MAX_ROUNDS = 3, 30


class Case(NamedTuple):
    rows: int
    features: int
    density: str

    def __str__(self) -> str:
        return f"{self.rows}x{self.features}-{self.density}"


ROWS = [Case(rows, 256, "sparse") for rows in (64, 512, 1024, 2048, 4096)]
FEATURES = [Case(1024, features, "sparse") for features in (64, 1024)]
DENSITY = [Case(2048, 256, density) for density in ("tenth", "half", "full", "separated")]
# It takes 10 s at 4096 rows, compiles anew for other features, and takes the same time at any density.
WITHOUT_KEOPS = {ROWS[-1], *FEATURES, *DENSITY}


@lru_cache(maxsize=1)
def _problem(case: Case) -> tuple[Problem, Exact]:
    problem = make_problem(case.density, case.rows, case.features)
    return problem, exact(problem)


def _parameters() -> list[object]:
    return [
        pytest.param(case, provider, id=f"{case}-{provider.name}")
        for case in ROWS + FEATURES + DENSITY
        for provider in PROVIDERS.values()
        if case.rows <= provider.max_rows and not (provider.name == "keops" and case in WITHOUT_KEOPS)
    ]


@pytest.mark.parametrize(("case", "provider"), _parameters())
def test_loss_and_gradient(benchmark: BenchmarkFixture, case: Case, provider: Provider) -> None:
    """Check the result, then time it."""
    problem, truth = _problem(case)
    try:
        step = set_up(provider, problem)
    except UnavailableError as reason:
        pytest.skip(str(reason))
    errors = check(provider.name, step(), truth)
    rounds, iterations = _plan(step)
    benchmark.group = str(case)
    benchmark.extra_info.update(
        provider=provider.name,
        rows=case.rows,
        features=case.features,
        density=case.density,
        active=truth.active,
        threads=torch.get_num_threads(),
        loss_error=errors.loss,
        gradient_error=errors.gradient,
        dense_flops=dense_flops(case.rows, case.features),
        dense_bytes=dense_bytes(case.rows, case.features),
    )
    benchmark.pedantic(step, rounds=rounds, iterations=iterations)
    if case in ROWS and benchmark.enabled:
        benchmark.extra_info["peak_bytes"] = peak_extra_memory(provider, case.density, case.rows, case.features)


def _plan(step: Step) -> tuple[int, int]:
    """Return rounds and iterations per round that spend about SECONDS."""
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    iterations = max(1, round(ROUND_SECONDS / seconds))
    return min(MAX_ROUNDS, max(MIN_ROUNDS, int(SECONDS / (seconds * iterations)))), iterations
