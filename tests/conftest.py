"""What several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmfast.search.truth import Truth
from tests.stores import KINDS, SETTINGS

os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is defined; `make test-gpu` sets 0


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep small tensors on one thread: where the cores are busy, every barrier of two threads costs milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name the folder of a durable store that is not there yet."""
    return tmp_path / "index"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name a kind of keys."""
    return str(request.param)


@pytest.fixture
def truth(folder: Path, kind: str) -> Iterator[Truth]:
    """Open a store of its own for each test."""
    with Truth.open(folder, SETTINGS, key_kind=kind) as made:
        yield made
