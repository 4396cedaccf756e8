"""Bad input to mmfast.contrastive_loss: the error names the argument and what was received."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import mmfast
from mmfast import _C

X, LABELS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
REF = {"ref_emb": torch.zeros(5, 3), "ref_labels": torch.zeros(5, dtype=torch.int64)}

BAD = [
    ({"embeddings": [[0.0]]}, TypeError, "embeddings must be a torch.Tensor, got list"),
    ({"embeddings": X.long()}, TypeError, "embeddings must be float32, float64, float16 or bfloat16, got torch.int64"),
    ({"embeddings": X.to(torch.complex64)}, TypeError, "got torch.complex64"),
    ({"embeddings": X[0]}, ValueError, "embeddings must have two dimensions (rows, features), got shape (3,)"),
    ({"embeddings": X[None]}, ValueError, "got shape (1, 4, 3)"),
    ({"embeddings": X.to_sparse()}, TypeError, "embeddings must be dense, got layout torch.sparse_coo"),
    ({"labels": [0, 0, 1, 1]}, TypeError, "labels must be a torch.Tensor, got list"),
    ({"labels": LABELS.float()}, TypeError, "labels must have an integer dtype, got torch.float32"),
    ({"labels": LABELS.bool()}, TypeError, "labels must have an integer dtype, got torch.bool"),
    ({"labels": LABELS[:3]}, ValueError, "labels must have shape (4,), one label per row of embeddings, got (3,)"),
    ({"labels": LABELS[:, None]}, ValueError, "got (4, 1)"),
    ({"labels": LABELS.to("meta")}, ValueError, "labels must be on the device of embeddings (cpu), got meta"),
    ({"ref_emb": REF["ref_emb"]}, ValueError, "ref_labels is required when ref_emb is given"),
    ({"ref_labels": REF["ref_labels"]}, ValueError, "ref_emb is required when ref_labels is given"),
    ({**REF, "ref_emb": torch.zeros(5, 2)}, ValueError, "as many features as embeddings (3), got (5, 2)"),
    (
        {**REF, "ref_emb": torch.zeros(5, 3).double()},
        TypeError,
        "the dtype of embeddings (torch.float32), got torch.float64",
    ),
    ({**REF, "ref_emb": torch.zeros(5)}, ValueError, "ref_emb must have two dimensions"),
    ({**REF, "ref_labels": LABELS}, ValueError, "ref_labels must have shape (5,), one label per row of ref_emb"),
    ({"margin": float("nan")}, ValueError, "margin must be finite and not negative, got nan"),
    ({"margin": float("inf")}, ValueError, "margin must be finite and not negative, got inf"),
    ({"margin": -0.5}, ValueError, "margin must be finite and not negative, got -0.5"),
    ({"margin": "1"}, TypeError, "margin must be a number, got str"),
    ({"margin": True}, TypeError, "margin must be a number, got bool"),
    ({"margin": 10**400}, ValueError, "margin must be finite"),
    ({"reduction": "none"}, ValueError, "reduction must be one of 'sum', 'mean', 'mean_nonzero', got 'none'"),
    ({"reduction": None}, ValueError, "got None"),
    ({"reduction": ["sum"]}, ValueError, "got ['sum']"),
    ({"ignore_index": 0.5}, TypeError, "ignore_index must be an int, got float"),
    ({"ignore_index": 2**63}, ValueError, "ignore_index must fit into 64 bits"),
]


@pytest.mark.parametrize(("bad", "error", "message"), BAD)
def test_the_error_names_the_argument(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        mmfast.contrastive_loss(**{"embeddings": X, "labels": LABELS, **bad})
    options = {k: v for k, v in bad.items() if k in ("margin", "reduction", "ignore_index")}
    if options:
        with pytest.raises(error, match=re.escape(message)):
            mmfast.ContrastiveLoss(**options)


def test_a_meta_tensor_needs_no_engine() -> None:
    fake = torch.zeros(4, 3, device="meta")
    assert mmfast.contrastive_loss(fake, LABELS.to("meta")).device.type == "meta"


def test_numpy_scalars_are_numbers() -> None:
    np = pytest.importorskip("numpy")
    x = torch.eye(4, 3)
    expected = mmfast.contrastive_loss(x, torch.arange(4), margin=1.5)
    assert torch.equal(mmfast.contrastive_loss(x, torch.arange(4), margin=np.float32(1.5)), expected)
    assert torch.equal(mmfast.contrastive_loss(x, torch.arange(4), margin=1.5, ignore_index=np.int64(-1)), expected)


def test_the_native_function_refuses_what_the_wrapper_would_not_send() -> None:
    rows, labels = X.numpy(), LABELS.numpy()
    arguments: list[Any] = [rows, labels, None, None, 1.0, "sum", -100, None, None, 1]

    def call(position: int, value: Any) -> None:
        changed: list[Any] = [*arguments[:position], value, *arguments[position + 1 :]]
        _C.pair_hinge(*changed)

    for position, value in [
        (0, rows[0]),
        (0, rows.astype("int64")),
        (0, rows[:, ::2]),
        (1, labels[:2]),
        (1, labels.astype("int32")),
        (2, rows),
        (3, labels),
        (5, "none"),
        (7, rows[:2].copy()),
        (7, rows.astype("float64")),
    ]:
        with pytest.raises((TypeError, ValueError)):
            call(position, value)
    frozen = rows.copy()
    frozen.setflags(write=False)
    with pytest.raises(ValueError, match="writeable"):
        call(7, frozen)


def test_an_unknown_tier_is_named() -> None:
    with pytest.raises(ValueError, match=r"portable.*got 'mmx'"):
        _C.select_cpu_tier("mmx")
