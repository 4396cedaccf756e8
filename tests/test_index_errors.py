"""What the index refuses: each error says what was received, and nothing has changed afterwards."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmfast import Index, col, exact_search
from tests.test_index import gaussian

ONES = np.ones((2, 3), dtype=np.float32)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype, and deprecated
    NESTED = torch.nested.nested_tensor([torch.ones(3), torch.ones(3)])
    QUANTIZED = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8)


@pytest.fixture
def index() -> Index:
    index = Index(3, "l2sq", "f32")
    index.add([1, 2], np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    return index


def assert_unchanged(index: Index) -> None:
    assert len(index) == 2
    found = index.search(np.array([1.0, 0.0, 0.0]), 5)
    assert found.keys.tolist() == [1, 2, -1, -1, -1]
    assert found.distances.tolist() == [0.0, 2.0, np.inf, np.inf, np.inf]


BAD_KEYS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, "keys must be an int.*got NoneType"),
    ([1.9, 3.0], TypeError, r"got 1.9 \(float\) at position 0"),
    ([5, np.nan], TypeError, r"got nan \(float\) at position 1"),
    (["77", "78"], TypeError, r"got '77' \(str\)"),
    ("77", TypeError, "got str"),
    ([True, 3], TypeError, r"got True \(bool\)"),
    (np.array([1.0, 2.0]), TypeError, "an array of float64$"),
    (np.array(["77", "78"]), TypeError, "an array of <U2$"),
    (np.array(["2020-01-01"], dtype="M8[D]"), TypeError, r"an array of datetime64\[D\]$"),
    (np.array([7, 8], dtype=object), TypeError, r"an array of object; pass keys.tolist\(\)"),
    (np.array([True, False]), TypeError, "an array of bool$"),
    (np.ma.masked_array([7, 8], mask=[False, True]), TypeError, "got MaskedArray"),
    (torch.tensor([1.0, 2.0]), TypeError, "a tensor of torch.float32"),
    (torch.tensor([True, False]), TypeError, "a tensor of torch.bool"),
    (torch.empty(2, dtype=torch.int64, device="meta"), TypeError, "on meta"),
    (torch.tensor([3, 4]).to_sparse(), TypeError, "an int, or .* dense torch tensor of integers, got a sparse tensor"),
    (NESTED.long(), TypeError, "dense torch tensor of integers, got a nested tensor"),
    (QUANTIZED[0], TypeError, "dense torch tensor of integers, got a quantized tensor"),
    ([3, -1], ValueError, "got -1 at position 1"),
    (np.array([3, -1]), ValueError, "got -1 at position 1"),
    (np.array([-1, 3], dtype=np.int8), ValueError, "got -1 at position 0"),
    (np.array([2**64 - 1, 3], dtype=np.uint64), ValueError, "got 18446744073709551615 at position 0"),
    ([3, 2**63], ValueError, "got 9223372036854775808 at position 1"),
    ([3, 2**63 - 1], ValueError, "below 2\\*\\*63 - 1, got 9223372036854775807"),
    (np.array([3, 2**63 - 1]), ValueError, "got 9223372036854775807 at position 1"),
    ([3, 2**100], ValueError, "at position 1"),
    (-1, ValueError, "got -1"),
    (np.array([[3, 4]]), ValueError, r"got shape \(1, 2\)"),
    ([3], ValueError, "got 1 keys for 2 vectors"),
    (3, ValueError, "got 1 keys for 2 vectors"),
    ([3, 4, 5], ValueError, "got 3 keys for 2 vectors"),
    ([7, 7], ValueError, "must be distinct; repeated: 7$"),
    ([3, 2], ValueError, "already holds 2; remove"),
]


@pytest.mark.parametrize(("keys", "error", "message"), BAD_KEYS)
def test_bad_keys(index: Index, keys: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        index.add(keys, ONES)
    assert_unchanged(index)


BAD_VECTORS: list[tuple[Any, type[Exception], str]] = [
    ([[1.0, 2.0, 3.0]] * 2, TypeError, "NumPy array or a torch tensor, got list; convert with numpy.asarray"),
    (ONES.astype(np.uint8), TypeError, "got uint8; convert with"),
    (ONES.astype(np.int8), TypeError, "got int8; convert with"),
    (ONES.astype(np.complex64), TypeError, "got complex64"),
    (ONES.astype(np.longdouble), TypeError, "float16, float32 or float64, got"),
    (ONES.astype(object), TypeError, "got object"),
    (ONES.astype(bool), TypeError, "got bool"),
    (np.ma.masked_array(ONES, mask=ONES > 0), TypeError, "got MaskedArray"),
    (torch.ones(2, 3, dtype=torch.uint8), TypeError, "got torch.uint8"),
    (torch.ones(2, 3).to_sparse(), TypeError, "be dense"),
    (torch.ones(2, 3).to(torch.float8_e4m3fn), TypeError, "float16, bfloat16, .* got torch.float8_e4m3fn; convert"),
    (NESTED, TypeError, "a plain tensor of float16, bfloat16, float32 or float64, got a nested one"),
    (QUANTIZED, TypeError, "a plain tensor of float16, bfloat16, float32 or float64, got a quantized one"),
    (torch.ones(2, 3, device="meta"), TypeError, "meta"),
    (np.ones((2, 4)), ValueError, r"shape \(N, 3\), or \(3,\) for one, got \(2, 4\)"),
    (np.ones((3, 2)), ValueError, r"got \(3, 2\)"),
    (np.ones((2, 1, 3)), ValueError, r"got \(2, 1, 3\)"),
    (np.float32(1.0) * np.ones(()), TypeError, "got float64"),
    (torch.tensor(1.0), ValueError, r"got \(\)"),
    (np.array([[1, 2, 3], [1, np.nan, 3]]), ValueError, "finite: rows 1 hold NaN"),
    (np.array([[1, 2, -np.inf], [1, 2, 3]]), ValueError, "finite: rows 0 hold NaN"),
    (torch.full((2, 3), torch.nan, dtype=torch.bfloat16), ValueError, "rows 0, 1 hold NaN"),
    (np.full((2, 3), 1e38), ValueError, "rows 0, 1 have a norm above"),
    (np.full((2, 3), 1e300), ValueError, "rows 0, 1 overflow float32"),
]


@pytest.mark.parametrize(("vectors", "error", "message"), BAD_VECTORS)
def test_bad_vectors_and_queries(index: Index, vectors: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="vectors must.*" + message):
        index.add([8, 9], vectors)
    with pytest.raises(error, match="queries must.*" + message):
        index.search(vectors, 1)
    assert_unchanged(index)


def test_one_bad_row_late_in_a_large_batch_leaves_nothing_behind(index: Index) -> None:
    rows = np.ones((10_000, 3), dtype=np.float32)
    rows[9_000] = np.nan
    with pytest.raises(ValueError, match="rows 9000 hold NaN"):
        index.add(np.arange(10_000) + 10, rows)
    keys = np.arange(10_000) + 10
    keys[-1] = keys[0]
    with pytest.raises(ValueError, match="keys must be distinct; repeated: 10"):
        index.add(keys, ONES[[0] * 10_000])
    keys[-1] = 2
    with pytest.raises(ValueError, match="already holds 2"):
        index.add(keys, ONES[[0] * 10_000])
    assert_unchanged(index)


@pytest.mark.parametrize("step", ["mmfast._C.encode_rows", "mmfast._C.VectorSet"])
def test_a_failure_while_adding_is_undone(index: Index, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(step, fail)
    with pytest.raises(MemoryError):
        index.add(range(10, 14), np.eye(4, 3) + 1)
    monkeypatch.undo()
    assert_unchanged(index)
    index.add(range(10, 14), np.eye(4, 3) + 1)
    assert len(index) == 6
    assert sorted(index.search(np.ones(3), 9).keys.tolist()) == [-1] * 3 + [1, 2, 10, 11, 12, 13]


@pytest.mark.parametrize("dtype", ["bf16", "f32", "f16", "i8"])
def test_zero_has_no_cosine(dtype: str) -> None:
    index = Index(3, "cos", dtype)
    with pytest.raises(ValueError, match="vectors must not be zero: rows 1 are zero vectors, which have no cosine"):
        index.add([0, 1], np.array([[1.0, 0, 0], [0, -0.0, 0]]))
    with pytest.raises(ValueError, match="queries must not be zero"):
        index.search(np.zeros(3), 1)
    assert len(index) == 0


@pytest.mark.parametrize("metric", ["ip", "l2sq"])
def test_half_precision_overflow_is_refused(metric: str) -> None:
    index = Index(1, metric, "f16")
    with pytest.raises(ValueError, match="rows 1 overflow the storage dtype f16"):
        index.add([0, 1], np.array([[65504.0], [65520.0]]))
    index.add(0, np.array([65504.0]))
    assert index.search(np.array([-1e5]), 1).keys.tolist() == [0]  # queries are not rounded
    assert np.isfinite(index.search(np.array([-65504.0]), 1).distances).all()


@pytest.mark.parametrize("metric", ["ip", "l2sq"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_the_longest_rows_have_finite_distances(metric: str, dtype: str) -> None:
    row = np.full((1, 9), 3.0e18, dtype=np.float64)  # a norm of 9.0e18
    index = Index(9, metric, dtype)
    index.add(0, row)
    assert np.isfinite(index.search(np.concatenate([row, -row]), 1).distances).all()


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"ef": 50}, {"where": [1, 2]}])
@pytest.mark.parametrize("rows", [0, 10, 2500, 2600])  # of which the first 2,500 get a graph
def test_room_is_made_for_k_in_the_results_alone(rows: int, options: dict[str, Any]) -> None:
    vectors = gaussian(max(rows, 1), 3)
    index = Index(3)
    index.add(range(min(rows, 2500)), vectors[: min(rows, 2500)])
    index.build()
    index.add(range(2500, max(rows, 2500)), vectors[2500:rows] if rows > 2500 else vectors[:0])
    expected = index.search(vectors[:1], 2600, **options)
    tracemalloc.start()
    try:
        found = index.search(vectors[:1], 10**7, **options)
        assert tracemalloc.get_traced_memory()[1] < 12.5 * 10**7  # 12 bytes a neighbour
    finally:
        tracemalloc.stop()
    assert np.array_equal(found.keys[:, :2600], expected.keys)
    assert np.array_equal(found.distances[:, :2600], expected.distances)
    assert (found.keys[:, 2600:] == -1).all()
    assert np.isposinf(found.distances[:, 2600:]).all()


def test_results_that_no_memory_can_be_had_for(tmp_path: Path) -> None:
    queries = gaussian(10_000, 3)  # 160 TiB: more than processors can address, whatever the system promises
    message = r"k must be smaller, got 2,147,483,647: results of shape \(10,000, 2,147,483,647\) do not fit into memory"
    index = Index(3)
    for _ in range(2):
        with pytest.raises(MemoryError, match=message):
            index.search(queries, 2**31 - 1)
        index.upsert([1, 2], queries[:2])
    with pytest.raises(MemoryError, match=message):
        exact_search(queries, queries[:5], 2**31 - 1)
    with Index.open(tmp_path / "index", 3, key_kind="str") as durable:
        durable.add("a", queries[0], {"year": 3})
        with pytest.raises(MemoryError, match=message):
            durable.search(queries, 2**31 - 1, where=col("year") > 2)
        assert durable.search(queries[0], 2).keys.tolist() == ["a", None]


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-1, ValueError), (2**40, ValueError), (1.5, TypeError), (True, TypeError),
                     (None, TypeError), ("3", TypeError), (np.float64(2), TypeError), (np.True_, TypeError),
                     (torch.tensor(True), TypeError)]
)  # fmt: skip
def test_bad_k(index: Index, k: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="k must be"):
        index.search(ONES, k)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ndim": 0}, ValueError, "ndim must be from 1"),
        ({"ndim": 2.0}, TypeError, "ndim must be an int, got 2.0"),
        ({"ndim": True}, TypeError, "ndim must be an int, got True"),
        ({"ndim": 10**6}, ValueError, "ndim must be from 1 to 65,536, got 1,000,000"),
        ({"metric": "cosine"}, ValueError, "metric must be one of 'cos', 'ip', 'l2sq', got 'cosine'; write \"cos\"$"),
        ({"metric": "Euclidean"}, ValueError, 'write "l2sq"$'),
        ({"metric": "l2"}, ValueError, 'write "l2sq"$'),
        ({"metric": "dot"}, ValueError, 'write "ip"$'),
        ({"metric": "hamming"}, ValueError, "got 'hamming'$"),
        ({"metric": None}, ValueError, "metric must be"),
        ({"dtype": "float32"}, ValueError, "dtype must be one of .*'f32'.* got 'float32'; write \"f32\"$"),
        ({"dtype": torch.bfloat16}, ValueError, 'got torch.bfloat16; write "bf16"$'),
        ({"dtype": np.float16}, ValueError, 'write "f16"$'),
        ({"dtype": np.dtype(np.int8)}, ValueError, 'write "i8"$'),
        ({"dtype": "float64"}, ValueError, "got 'float64'$"),
        ({"dtype": "i8", "metric": "ip"}, ValueError, "needs metric \"cos\", got 'ip'"),
        ({"dtype": "i8", "metric": "l2sq"}, ValueError, 'needs metric "cos"'),
        ({"connectivity": 1}, ValueError, "connectivity must be from 2"),
        ({"expansion_add": 0}, ValueError, "expansion_add must be from 1"),
        ({"expansion_add": "64"}, TypeError, "expansion_add must be an int"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Index(**{"ndim": 3, **arguments})


def test_bad_removals(index: Index) -> None:
    with pytest.raises(KeyError, match="does not hold the keys 3, 4; nothing removed"):
        index.remove([1, 3, 4])
    with pytest.raises(ValueError, match="keys must be distinct; repeated: 1"):
        index.remove([1, 1])
    with pytest.raises(TypeError, match="at position 0"):
        index.remove([1.0])
    with pytest.raises(ValueError, match="got -1"):
        index.remove(-1)
    assert_unchanged(index)


@pytest.mark.parametrize("key", [1.0, "1", None, True, np.True_, torch.tensor(True), np.array([1, 2]), [1]])
def test_only_integers_can_be_asked_for(index: Index, key: Any) -> None:
    with pytest.raises(TypeError, match="a key is an int"):
        key in index  # noqa: B015


@pytest.mark.parametrize("option", ["radius", "copy", "log", "progress"])
def test_options_of_usearch_that_are_not_ours_are_refused(index: Index, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        index.search(ONES, 1, **{option: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=option):
        index.add([3, 4], ONES, **{option: False})


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i8"])
def test_denormal_rows_that_pytorch_flushes_are_refused(dtype: str) -> None:
    rows = np.ones((3, 4), np.float32)
    rows[1] = 1e-40
    index = Index(4, "cos", dtype)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        with pytest.raises(ValueError, match=r"rows 1 are zero to PyTorch after torch.set_flush_denormal\(True\)"):
            index.add(range(3), rows)
    finally:
        torch.set_flush_denormal(False)
    index.add(range(3), rows)
    assert index.search(rows[1], 1).keys.tolist() == [0]
