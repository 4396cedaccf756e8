"""Exact search against brute force in float64, on data made to defeat its 8-bit screen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmfast
from mmfast import _C

Floats = npt.NDArray[np.float32]
METRICS = ("cos", "ip", "l2sq")


@pytest.fixture(autouse=True, params=_C.cpu_tiers_available())
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _C.cpu_tier()
    _C.select_cpu_tier(request.param)
    yield request.param
    _C.select_cpu_tier(before)


def distances(queries: Floats, rows: Floats, metric: str) -> npt.NDArray[np.float64]:
    """Compute all distances in float64, differences first."""
    q, x = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2sq":
        return np.stack([((each - x) ** 2).sum(axis=1) for each in q])
    if metric == "cos":
        q, x = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (q, x))
    products: npt.NDArray[np.float64] = q @ x.T
    return 1 - products


def check(queries: Floats, rows: Floats, metric: str, k: int, mask: npt.NDArray[np.bool_] | None = None) -> None:
    """Check keys and distances; keys may differ only where float64 itself cannot tell which is nearer."""
    found = mmfast.exact_search(queries, rows, k, metric=metric, mask=mask)
    truth = distances(queries, rows, metric)
    if mask is not None:
        truth[:, ~mask] = np.inf
    count = min(k, len(rows) if mask is None else int(mask.sum()))
    assert (found.keys[:, count:] == -1).all()
    assert np.isinf(found.distances[:, count:]).all()
    order = np.argsort(truth, axis=1, kind="stable")[:, :count]
    expected = np.take_along_axis(truth, order, axis=1)
    got = np.take_along_axis(truth, found.keys[:, :count], axis=1)
    # Rounding in float64 of sums of D products, by the size of what is summed.
    lengths = (
        np.linalg.norm(queries.astype(np.float64), axis=1)[:, None],
        np.linalg.norm(rows.astype(np.float64), axis=1),
    )
    size = 1.0 if metric == "cos" else lengths[0] * lengths[1].max() + (lengths[0] ** 2 if metric == "l2sq" else 1)
    slack = rows.shape[1] * 2.0**-51 * size
    assert (np.abs(got - expected) <= slack).all()
    same = found.keys[:, :count] == order
    assert (same | (np.abs(got - expected) <= slack)).all()
    assert all(len(set(each)) == count for each in found.keys[:, :count].tolist())
    np.testing.assert_allclose(found.distances[:, :count], got, rtol=2**-23, atol=float(np.max(slack)) + 2**-149)


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("rows", "features", "queries", "k"),
    [(1, 1, 1, 1), (3, 2, 2, 5), (64, 64, 13, 64), (65, 63, 12, 10), (193, 65, 14, 3), (700, 130, 150, 10),
     (2500, 24, 3, 2500), (1000, 7, 600, 1)],
)  # fmt: skip
def test_shapes(metric: str, rows: int, features: int, queries: int, k: int) -> None:
    check(normal(0, queries, features), normal(1, rows, features), metric, k)


def hostile(name: str) -> tuple[Floats, Floats]:
    """Return queries and rows on which 8 bits say little."""
    rows, queries = normal(2, 900, 48), normal(3, 30, 48)
    if name == "offset":
        return queries + 1e4, rows + 1e4
    if name == "outlier features":
        rows[:, 5] *= 300
        rows[:, 17] += 500
    if name == "outlier rows":
        rows[::50] *= 1e6
        queries[3] *= 1e6
    if name == "norms over decades":
        rows *= np.logspace(-12, 12, len(rows), dtype=np.float32)[:, None]
        queries *= np.logspace(-9, 9, len(queries), dtype=np.float32)[:, None]
    if name == "copies":
        rows[100:] = rows[np.arange(800) % 7]
        queries[:10] = rows[:10]
    if name == "all equal":
        rows[:] = rows[0]
    if name == "ties of integers":
        return np.sign(queries) * 2, np.sign(rows) * (np.arange(48) < 6) + (np.arange(48) == 6)
    if name == "near ties":
        rows[1:] = rows[0] + 1e-7 * rows[1:]
    if name == "one spike each":
        rows[:] = 1e-6 * rows
        rows[np.arange(900), np.arange(900) % 48] += 1
    if name == "zeros":
        rows[::3] = 0
        queries[::2] = 0
    return queries, rows


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "name",
    ["offset", "outlier features", "outlier rows", "norms over decades", "copies", "all equal", "ties of integers",
     "near ties", "one spike each", "zeros"],
)  # fmt: skip
def test_hostile_data(metric: str, name: str) -> None:
    if (metric, name) == ("cos", "zeros"):
        pytest.skip("zero has no cosine")
    queries, rows = hostile(name)
    for asked in (queries, queries[:5]):  # in panels, and one by one
        check(asked, rows, metric, 10)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_differ_in_the_lower_four_bits_alone(metric: str) -> None:
    # With 127 as the largest number digits are the numbers themselves. Those from 0 to 15 have the same upper bits, and
    # what is lost with the others points along the query: the bound is needed to the last bit. Negatives centre all.
    rows = np.zeros((240, 33), dtype=np.float32)
    rows[:, 0] = 127
    rows[:, 1:] = 14
    rows[-2:, 1:] = 15
    rows[np.arange(240) % 2 == 1] *= -1
    query = np.full((1, 33), 1, dtype=np.float32)
    query[0, 0] = 0
    check(query, rows, metric, 1)
    check(np.repeat(query, 20, axis=0), rows, metric, 1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e15])
def test_scales(metric: str, scale: float) -> None:
    rows = normal(4, 500, 33)
    queries = normal(5, 20, 33)
    check((queries * scale).astype(np.float32), (rows * scale).astype(np.float32), metric, 7)
    check((queries / scale**0.5).astype(np.float32), (rows * scale).astype(np.float32), metric, 7)


@pytest.mark.parametrize("metric", METRICS)
def test_radii_as_small_as_rounding_find_what_is_there(metric: str) -> None:
    # Digits stand for these rows without loss, so no bound hides an error of the threshold.
    rows = np.concatenate([np.eye(16), -np.eye(16)]).astype(np.float32)
    for scale in (1.0, 3.0):
        index = mmfast.Index(16, metric, "f32")
        index.add(range(32), rows)
        for count in (5, 32):  # one by one, and in panels
            least = 1 - scale if metric == "ip" else (scale - 1) ** 2 if metric == "l2sq" else 0
            for radius in (1e-12, 1e-9, 1e-6, 1e-4):
                found = index.range_search(scale * rows[:count], least + radius)
                assert found.keys.tolist() == list(range(count))


def test_a_radius_of_two_finds_every_direction() -> None:
    index = mmfast.Index(15)
    index.add(range(200), normal(6, 200, 15))
    assert all(len(index.range_search(-index.get(key)[0], 2.0).keys) == 200 for key in range(20))


def test_ties_go_to_the_smaller_key() -> None:
    rows = np.repeat(normal(6, 3, 20), 400, axis=0)[np.random.default_rng(0).permutation(1200)]
    found = mmfast.exact_search(rows[:40], rows, 200, metric="l2sq")
    for query, keys in zip(rows[:40], found.keys, strict=True):
        assert keys.tolist() == np.flatnonzero((rows == query).all(axis=1))[:200].tolist()


@pytest.mark.parametrize("share", [0.0, 0.002, 0.1, 0.7, 1.0])
def test_masks(share: float) -> None:
    rng = np.random.default_rng(7)
    mask = rng.random(3000) < share
    for count in (3, 100):
        check(normal(8, count, 40), normal(9, 3000, 40), "cos", 10, mask)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    rows, features = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 200))
    queries, k = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 320))
    scale = 10.0 ** data.draw(st.integers(-12, 12))
    offset = 10.0 ** data.draw(st.integers(-3, 5)) * data.draw(st.sampled_from([0, 1]))
    seed = data.draw(st.integers(0, 2**30))
    x = ((normal(seed, rows, features) + offset) * scale).astype(np.float32)
    q = ((normal(seed + 1, queries, features) + offset) * scale).astype(np.float32)
    x[:: data.draw(st.integers(1, 50))] = x[0]
    check(q, x, data.draw(st.sampled_from(METRICS)), k)


@pytest.mark.parametrize("metric", METRICS)
def test_the_number_of_queries_does_not_matter(metric: str) -> None:
    """One by one, and packed into columns of which the last are filled with none."""
    queries, rows = normal(0, 130, 21), normal(1, 333, 21)
    mask = np.arange(333) % 3 != 1
    expected = mmfast.exact_search(queries, rows, 4, metric=metric, mask=mask)
    for count in range(1, 130):
        found = mmfast.exact_search(queries[:count], rows, 4, metric=metric, mask=mask)
        np.testing.assert_array_equal(found.keys, expected.keys[:count])
        np.testing.assert_array_equal(found.distances, expected.distances[:count])


def test_queries_far_beyond_the_rows_order_ties_by_key() -> None:
    """Rounding of float64 makes most rows equally far; bounds that were closer would leave out some with small keys."""
    rows = normal(0, 900, 16) + 1
    queries = np.stack([normal(1, 16), np.ones(16, np.float32)]) * np.float32(3e15)
    everything = mmfast.exact_search(queries, rows, 900, metric="l2sq")
    assert len(np.unique(everything.distances)) < 20
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for count in (1, 2, 40):
                found = mmfast.exact_search(np.repeat(queries, count, axis=0), rows, 7, metric="l2sq")
                np.testing.assert_array_equal(found.keys[::count], everything.keys[:, :7])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("offset", [1e10, 1e14, 1e18])
def test_products_with_an_offset_that_rounds_away_the_rest_tie_by_key(offset: float) -> None:
    rows = normal(0, 900, 16)
    rows[:, 0] = offset
    queries = np.abs(normal(1, 60, 16))
    everything = mmfast.exact_search(queries, rows, 900, metric="ip")
    for count in (1, 60):
        found = mmfast.exact_search(queries[:count], rows, 7, metric="ip")
        np.testing.assert_array_equal(found.keys, everything.keys[:count, :7])


def test_threads_and_tiers_do_not_matter() -> None:
    rows, queries = normal(10, 5000, 96), normal(11, 300, 96)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results += [mmfast.exact_search(asked, rows, 10) for asked in (queries, queries[:4])]
    finally:
        torch.set_num_threads(before)
    for result in results[2:]:
        like = results[len(result.keys) == 4]
        np.testing.assert_array_equal(result.keys, like.keys)
        np.testing.assert_array_equal(result.distances, like.distances)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_taken_as_they_are(dtype: torch.dtype) -> None:
    rows, queries = torch.from_numpy(normal(12, 400, 30)).to(dtype), torch.from_numpy(normal(13, 25, 30)).to(dtype)
    found = mmfast.exact_search(queries, rows, 5, metric="l2sq")
    same = mmfast.exact_search(queries.float(), rows.float(), 5, metric="l2sq")
    np.testing.assert_array_equal(found.keys, same.keys)
    np.testing.assert_array_equal(found.distances, same.distances)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(dtype: torch.dtype, value: float) -> None:
    rows = torch.ones(40, 21, dtype=dtype)
    rows[7, 18] = value
    for metric in METRICS:
        with pytest.raises(ValueError, match="vectors must be finite: rows 7 hold"):
            mmfast.exact_search(rows[:1], rows, 3, metric=metric)
        with pytest.raises(ValueError, match="queries must be finite: rows 7 hold"):
            mmfast.exact_search(rows, rows[:7], 3, metric=metric)
    with pytest.raises(ValueError, match="vectors must be finite: rows 7 hold"):
        mmfast.Index(21, "cos", "i8").add(range(40), rows)


def test_every_float16_is_widened_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 1)
    found = mmfast.exact_search(np.ones((1, 1), np.float32), finite, len(finite), metric="ip")
    expected = np.sort(1 - finite[:, 0].astype(np.float64))
    np.testing.assert_array_equal(found.distances[0], expected.astype(np.float32))


def test_layouts() -> None:
    rows, queries = normal(14, 300, 16), normal(15, 10, 16)
    expected = mmfast.exact_search(queries, rows, 4)
    wide = np.zeros((600, 32), dtype=np.float32)
    wide[::2, ::2] = rows
    read_only = rows.copy()
    read_only.flags.writeable = False
    variants: list[Any] = [wide[::2, ::2], np.asfortranarray(rows), rows.astype(">f4"), read_only, rows[::-1][::-1]]
    variants += [torch.from_numpy(rows), torch.from_numpy(rows.T.copy()).T, torch.from_numpy(rows).requires_grad_()]
    for variant in variants:
        np.testing.assert_array_equal(mmfast.exact_search(queries, variant, 4).keys, expected.keys)
    one = mmfast.exact_search(queries[0], rows, 4)
    assert one.keys.shape == (4,)
    np.testing.assert_array_equal(one.keys, expected.keys[0])
    assert mmfast.exact_search(queries[:0], rows, 4).keys.shape == (0, 4)
    assert mmfast.exact_search(queries, rows[:0], 2).keys.tolist() == [[-1, -1]] * 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be from 1"),
        ({"k": 1.5}, TypeError, "k must be an int"),
        ({"metric": "dot"}, ValueError, "metric must be one of"),
        ({"queries": np.ones((2, 3))}, ValueError, r"queries must have shape \(N, 4\)"),
        ({"queries": np.full(4, np.nan)}, ValueError, "queries must be finite: rows 0"),
        ({"queries": np.zeros(4)}, ValueError, "queries must not be zero"),
        ({"vectors": np.ones(4)}, ValueError, r"vectors must have shape \(N, D\)"),
        ({"vectors": np.ones((2, 0))}, ValueError, "D from 1 to 65,536"),
        ({"vectors": np.ones((2, 4), dtype=int)}, TypeError, "vectors must be float16"),
        ({"vectors": np.array([[1, 2, 3, 4], [np.inf] * 4])}, ValueError, "vectors must be finite: rows 1"),
        ({"vectors": np.zeros((5, 4))}, ValueError, "vectors must not be zero: rows 0, 1, 2, 3, 4"),
        ({"vectors": np.full((1, 4), 1e19), "metric": "ip"}, ValueError, "vectors must be smaller: rows 0"),
        ({"mask": [True] * 5}, TypeError, "mask must be .* of bool, got list"),
        ({"mask": np.ones(5)}, TypeError, "mask must be .* of bool, got float64"),
        ({"mask": np.ma.ones(5, dtype=bool)}, TypeError, "mask must be .* of bool, got MaskedArray"),
        ({"mask": torch.ones(5, dtype=torch.bool, device="meta")}, TypeError, "mask must be a dense .* got a meta one"),
        ({"mask": torch.ones(5, dtype=torch.bool).to_sparse()}, TypeError, "mask must be a dense .* got a sparse one"),
        ({"mask": np.ones(4, dtype=bool)}, ValueError, r"mask must have shape \(5,\).* got \(4,\)"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"queries": np.ones(4), "vectors": np.ones((5, 4)), "k": 1, **change}
    with pytest.raises(error, match=message):
        mmfast.exact_search(**arguments)
