"""The search benchmark's data are what was asked for, and its truth is exact."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the benchmarks are not installed

from benchmarks import search
from benchmarks.providers import WrongResultError
from benchmarks.search_data import METRICS, Data, DataError, Floats, load, synthetic
from benchmarks.search_peers import Mask
from benchmarks.search_truth import exact, recall

pytestmark = pytest.mark.usefixtures("one_thread")

K = 5


def made(metric: str = "cos", rows: int = 900, ndim: int = 24, queries: int = 40) -> Data:
    data = synthetic(rows, ndim, queries, seed=1)
    if metric == "cos":
        return data
    lengths = np.random.default_rng(2).uniform(0.5, 2, size=(rows, 1)).astype(np.float32)
    return data._replace(metric=metric, rows=data.rows * lengths)


def naive(data: Data, where: Mask | None = None) -> Any:
    """Return the ids of the K nearest, by the definition of each metric."""
    rows, queries = data.rows.astype(np.float64), data.queries.astype(np.float64)
    distances = ((queries[:, None] - rows) ** 2).sum(axis=2) if data.metric == "l2sq" else 1 - queries @ rows.T
    if where is not None:
        distances[:, ~where] = np.inf
    return distances.argsort(axis=1)[:, :K]


def test_synthetic_data_is_reproducible_and_clustered() -> None:
    first, second = synthetic(3000, 48, 50, seed=3), synthetic(3000, 48, 50, seed=3)
    assert np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.queries, second.queries)
    assert not np.array_equal(first.rows, synthetic(3000, 48, 50, seed=4).rows)
    assert first.rows.shape == (3000, 48)
    np.testing.assert_allclose(np.linalg.norm(first.rows, axis=1), 1, rtol=1e-6)
    cosines = np.sort(first.queries @ first.rows.T, axis=1)
    assert np.median(cosines[:, -1]) > 0.6 > 0.3 > np.median(cosines[:, 1500]) > 0  # neighbours, and a mean
    variances = np.linalg.eigvalsh(np.cov(first.rows.T))[::-1]
    assert variances[0] > 3 * variances[10] > 6 * variances[-1]
    with pytest.raises(DataError, match="at least 1"):
        synthetic(10, 4, 0)


def write_fvecs(path: Path, rows: Floats) -> None:
    path.write_bytes(b"".join(struct.pack("<i", len(row)) + row.astype("<f4").tobytes() for row in rows))


@pytest.mark.parametrize("suffix", [".npy", ".fvecs"])
@pytest.mark.parametrize("metric", ["cos", "l2sq"])
def test_queries_of_a_plain_file_are_held_back(tmp_path: Path, suffix: str, metric: str) -> None:
    stored = np.random.default_rng(0).normal(size=(60, 7)).astype(np.float32)
    path = tmp_path / f"rows{suffix}"
    if suffix == ".npy":
        np.save(path, stored)
    else:
        write_fvecs(path, stored)
    data = load(path, None, 15, metric)
    assert (len(data.rows), len(data.queries), data.metric) == (45, 15, metric)
    expected = stored / np.linalg.norm(stored, axis=1, keepdims=True) if metric == "cos" else stored
    both = np.concatenate([data.rows, data.queries])
    np.testing.assert_allclose(both[both[:, 0].argsort()], expected[expected[:, 0].argsort()], rtol=1e-6)
    assert load(path, 20, 15, metric).rows.shape == (20, 7)
    with pytest.raises(DataError, match="too few to hold back 60 queries"):
        load(path, None, 60, metric)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.npy", None, "does not exist"),
        ("rows.csv", b"1,2", r"ends in .hdf5, .h5, .fvecs, .npy"),
        ("rows.npy", b"no array", "no .npy file"),
        ("rows.fvecs", b"", "no .fvecs file"),
        ("rows.fvecs", b"12345", "no .fvecs file"),
        ("rows.fvecs", struct.pack("<iffiff", 2, 1, 1, 3, 1, 1), "not all of the first one's 2 features"),
        ("rows.hdf5", b"no HDF5", "no HDF5 file"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if name.endswith("hdf5"):
        pytest.importorskip("h5py")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, None, 1, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.astype(np.int32), "matrix of floating point, got int32"),
        (lambda rows: rows[0], "matrix of floating point"),
        (lambda rows: rows * np.inf, "NaN or infinity"),
        (lambda rows: rows * 0, "no direction"),
    ],
)
def test_rows_that_cannot_be_searched_are_refused(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    np.save(tmp_path / "rows.npy", change(np.ones((6, 3))))
    with pytest.raises(DataError, match=message):
        load(tmp_path / "rows.npy", None, 2, None)


def write_hdf5(path: Path, data: Data, distance: str | None = "euclidean", **replaced: Any) -> None:
    h5py = pytest.importorskip("h5py")
    parts = {"train": data.rows, "test": data.queries, "neighbors": naive(data).astype(np.int32), **replaced}
    with h5py.File(path, "w") as file:
        for name, part in parts.items():
            if part is not None:
                file[name] = part
        if distance is not None:
            file.attrs["distance"] = distance


def test_a_file_of_ann_benchmarks_is_read_with_its_own_queries(tmp_path: Path) -> None:
    data, path = made("l2sq"), tmp_path / "set.hdf5"
    write_hdf5(path, data)
    found = load(path, None, len(data.queries), None)
    assert found.metric == "l2sq"
    assert np.array_equal(found.rows, data.rows)
    assert np.array_equal(found.queries, data.queries)
    assert found.neighbours is not None
    assert np.array_equal(found.neighbours, naive(data))
    part = load(path, 100, 10, None)
    assert (part.rows.shape, len(part.queries), part.neighbours) == ((100, 24), 10, None)
    fewer = load(path, None, 10, None)
    assert fewer.neighbours is not None
    assert np.array_equal(fewer.neighbours, naive(fewer))


def test_a_damaged_file_of_ann_benchmarks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, path = made("l2sq"), tmp_path / "set.hdf5"
    write_hdf5(path, data, neighbors=None)
    with pytest.raises(DataError, match="it has no neighbors"):
        load(path, None, 9, None)
    for distance in ("jaccard", None):
        write_hdf5(path, data, distance)
        with pytest.raises(DataError, match="distance must be one of angular"):
            load(path, None, 9, None)
    write_hdf5(path, data, neighbors=naive(data)[1:])
    with pytest.raises(DataError, match="a row per row of test"):
        load(path, None, 9, None)
    write_hdf5(path, data)
    with pytest.raises(DataError, match="not for the metric 'cos'"):
        load(path, None, 9, "cos")
    write_hdf5(path, data, neighbors=np.roll(naive(data), 1, axis=0))
    with pytest.raises(SystemExit):
        search.main(["--data", str(path), "--only", "faiss-flat", "--k", str(K), "--no-memory"])
    assert "are nearest under l2sq" in capsys.readouterr().err


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("filtered", [False, True])
def test_recall_of_what_is_right_is_one(metric: str, filtered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.search_truth.BLOCK_ELEMENTS", 1000)  # blocks of 25 rows, and of 8 queries
    data = made(metric)
    where = np.random.default_rng(0).random(len(data.rows)) < 0.2 if filtered else None
    truth, ids = exact(data, K, where), naive(data, where)
    assert recall(data, truth, ids, where) == 1
    assert recall(data, truth, ids[:7], where) == 1  # of the first queries
    ids[:, 0] = ids[:, 1]  # a row found twice is one row
    assert recall(data, truth, ids, where) == pytest.approx(1 - 1 / K)
    ids[:, 0] = -1
    ids[:, 1] = 10**6
    assert recall(data, truth, ids, where) == pytest.approx(1 - 2 / K)
    if where is not None:
        ids[0, 0] = np.flatnonzero(~where)[0]
        with pytest.raises(WrongResultError, match="forbids"):
            recall(data, truth, ids, where)


def test_equal_rows_are_equally_right_and_fewer_than_k_suffice() -> None:
    data = made(rows=30)
    twice = data._replace(rows=np.concatenate([data.rows, data.rows]))
    ids = naive(data)
    assert recall(twice, exact(twice, 1), ids[:, :1]) == recall(twice, exact(twice, 1), ids[:, :1] + 30) == 1
    where = np.arange(30) < 3
    found = np.where(np.isin(ids, [0, 1, 2]), ids, -1)
    found[:, :3] = [2, 0, 1]
    found[:, 3:] = -1
    assert recall(data, exact(data, K, where), found, where) == 1
