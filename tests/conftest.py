"""What several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep small tensors on one thread: where the cores are busy, every barrier of two threads costs milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
