"""Files of a bare USearch index: their rows are read, within bounds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from usearch.index import Index as NativeIndex

from mmfast import _C, Index
from mmfast.search.native import Native
from tests.test_index import gaussian


def saved(path: Path, metric: str = "l2sq", dtype: str = "f32") -> NativeIndex:
    native = NativeIndex(ndim=8, metric=metric, dtype=dtype, connectivity=9)
    native.add(np.arange(60) * 3, gaussian(60, 8))
    native.remove(6)
    native.save(str(path))
    return native


@pytest.mark.parametrize("metric", ["cos", "ip", "l2sq"])
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_rows_and_settings_are_taken_over(metric: str, dtype: str, tmp_path: Path) -> None:
    saved(tmp_path / "bare", metric, dtype)
    index = Index.from_usearch(tmp_path / "bare")
    assert (index.metric, index.dtype, index.connectivity) == (metric, "f32" if dtype == "f64" else dtype, 9)
    assert sorted(index.keys().tolist()) == [3 * i for i in range(60) if i != 2]
    rows = gaussian(60, 8)
    same = Index(8, metric, index.dtype)
    same.add([3 * i for i in range(60) if i != 2], np.delete(rows, 2, axis=0))
    # Under "cos" rows of half precision are rounded once more when they are brought to unit length.
    assert (index.search(rows, 5).keys == same.search(rows, 5).keys).mean() > (0.95 if metric == "cos" else 0.9999)


def test_directions_of_int8(tmp_path: Path) -> None:
    native = NativeIndex(ndim=8, metric="cos", dtype="i8")
    native.add(np.arange(60), gaussian(60, 8))
    native.save(str(tmp_path / "bare"))
    found = Index.from_usearch(tmp_path / "bare").search(gaussian(60, 8), 1)
    assert (found.keys[:, 0] == np.arange(60)).mean() > 0.9


def test_what_is_none_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "bare")
    content = (tmp_path / "bare").read_bytes()
    for length in [*range(200), *range(200, len(content), 97)]:
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut is not an index of USearch that mmfast can read"):
            Index.from_usearch(tmp_path / "cut")
    with pytest.raises(FileNotFoundError):
        Index.from_usearch(tmp_path / "missing")
    NativeIndex(ndim=8, metric="pearson").save(str(tmp_path / "odd"))
    with pytest.raises(
        ValueError, match=r"odd is not an index of USearch that mmfast can read .*: it has .* metric 'p'"
    ):
        Index.from_usearch(tmp_path / "odd")
    several = NativeIndex(ndim=2, multi=True)
    several.add(np.array([7, 7]), np.eye(2))
    several.save(str(tmp_path / "several"))
    with pytest.raises(ValueError, match="several: keys must be distinct; repeated: 7"):
        Index.from_usearch(tmp_path / "several")


def test_a_head_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    saved(tmp_path / "bare")
    content = bytearray((tmp_path / "bare").read_bytes())
    at = content.index(b"usearch") + 64 + 16  # slots
    assert int.from_bytes(content[at : at + 8], "little") == 18
    content[at : at + 8] = (8192).to_bytes(8, "little")
    (tmp_path / "bare").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match="the graph is truncated"):
        Index.from_usearch(tmp_path / "bare")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    saved(tmp_path / "bare")
    content = np.frombuffer((tmp_path / "bare").read_bytes(), np.uint8)
    for seed in range(200):
        damaged = content.copy()
        damaged[np.random.default_rng(seed).integers(0, len(content), 1 + seed % 20)] ^= 1 << (seed % 8)
        (tmp_path / "damaged").write_bytes(damaged.tobytes())
        try:
            index = Index.from_usearch(tmp_path / "damaged")
        except (ValueError, MemoryError):
            continue
        assert index.search(np.ones(index.ndim), 3).keys.shape == (3,)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """USearch writes version 3."""
    real = _C.usearch_graph

    def read(content: np.ndarray) -> object:
        changed = content.copy()
        head = bytes(content).index(b"usearch")
        changed[head + 7] = 3
        return real(changed)

    monkeypatch.setattr("mmfast._C.usearch_graph", read)


@pytest.mark.parametrize(("metric", "dtype"), [("cos", "bf16"), ("cos", "i8"), ("ip", "f16"), ("l2sq", "f32")])
def test_a_version_to_come_is_searched_by_usearch(
    metric: str, dtype: str, newer: None, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    rows = gaussian(4600, 8)
    rows[4000:4500] = rows[:500]
    rows[4500:] = rows[7]
    index = Index(8, metric, dtype)
    index.add(range(4600), rows)
    index.build()
    assert "the graph has USearch's version 3, not 2: USearch searches by itself" in caplog.text
    assert (index.stats()["graph"], index.stats()["tail"]) == (4600, 0)
    assert max(point.recall for point in index.recall_curve()[10]) > 0.85
    index.remove([11, 7])
    index.add([4600], rows[7:8])
    queries, allowed = gaussian(100, 8), np.arange(4601) % 3 > 0
    for where in (None, allowed, range(2, 4600, 100)):
        exact = index.search(queries, 5, exact=True, where=where)
        found = index.search(queries, 5, ef=120, where=where)
        assert float((found.keys == exact.keys).mean()) > 0.85
        same = found.keys == exact.keys
        np.testing.assert_array_equal(found.distances[same], exact.distances[same])
    if metric != "ip":  # under an inner product longer rows beat the copies
        assert index.search(rows[7], 100, ef=20).keys.tolist() == index.search(rows[7], 100, exact=True).keys.tolist()
    assert index.search(queries, 3, recall=0.9).keys.shape == (100, 3)

    index.save(tmp_path / "saved")
    again = Index.load(tmp_path / "saved")
    assert again.stats() == index.stats()
    np.testing.assert_array_equal(again.search(queries, 5, ef=50).keys, index.search(queries, 5, ef=50).keys)


def test_what_a_version_to_come_cannot_read_is_searched_exactly(
    newer: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index, rows = Index(8), gaussian(2600, 8)
    index.add(range(2600), rows)
    index.build()
    index.save(tmp_path / "saved")
    monkeypatch.setattr(Native, "save", lambda _: np.zeros(64, np.uint8))
    index.save(tmp_path / "damaged")
    again = Index.load(tmp_path / "damaged")
    assert "no graph, searches are exact until the next is built" in caplog.text
    assert again.stats()["graph"] == 0
    assert again.search(rows, 1).keys[:, 0].tolist() == list(range(2600))
