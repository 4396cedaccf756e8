"""The durable index: keys of both kinds, metadata and conditions, readers, and errors in the user's words."""

from __future__ import annotations

import gc
import os
import pickle
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmfast import Index, col
from mmfast.search.durable import DurableIndex
from mmfast.search.truth import Truth
from tests.test_index import gaussian

KINDS = ("int", "str")
ROWS = gaussian(400, 6)


@pytest.fixture
def index(folder: Path, kind: str) -> Iterator[DurableIndex]:
    with Index.open(folder, 6, "l2sq", "f32", key_kind=kind) as made:
        yield made


def named(kind: str, numbers: Any) -> list[Any]:
    return [int(n) for n in numbers] if kind == "int" else [f"schlüssel {n} 🦉" for n in numbers]


def brute_force(held: dict[Any, Any], queries: Any, k: int, none: Any) -> list[list[Any]]:
    keys, rows = list(held), np.array(list(held.values())).reshape(-1, 6)
    distances = ((queries[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k].tolist()
    return [[keys[i] for i in row] + [none] * (k - len(row)) for row in order]


def test_both_kinds_of_keys_through_all_changes(index: DurableIndex, kind: str, folder: Path) -> None:
    none = -1 if kind == "int" else None
    keys = named(kind, range(400))
    held: dict[Any, Any] = {}

    def check(index: DurableIndex) -> None:
        asked = ROWS[:20] + np.float32(0.01)
        for k in (1, 7, len(held) + 3):
            assert index.search(asked, k).keys.tolist() == brute_force(held, asked, k, none)
        one = index.search(asked[0], len(held) + 1)
        assert one.keys.shape == one.distances.shape == (len(held) + 1,)
        assert (one.keys[-1], one.distances[-1]) == (none, np.inf)
        assert index.keys() == list(held) if kind == "str" else set(index.keys().tolist()) == set(held)
        np.testing.assert_array_equal(index.get(list(held)), np.array(list(held.values())).reshape(-1, 6))
        around = index.range_search(asked[:2], 3.0)
        for i in range(2):
            near = {key for key, row in held.items() if ((asked[i] - row) ** 2).sum() <= 3.0}
            assert set(around.keys[around.offsets[i] : around.offsets[i + 1]].tolist()) == near
        assert index.verify() == []

    check(index)
    index.add(keys[0], ROWS[0])
    held[keys[0]] = ROWS[0]
    check(index)
    index.add(keys[1:300], ROWS[1:300])
    held.update(zip(keys[1:300], ROWS[1:300], strict=True))
    check(index)
    index.build()
    check(index)
    assert index.remove(keys[40:90]) == 50
    for key in keys[40:90]:
        del held[key]
    check(index)
    index.upsert([*keys[200:210], *keys[300:]], ROWS[290:])
    held.update(zip([*keys[200:210], *keys[300:]], ROWS[290:], strict=True))
    check(index)
    index.compact()
    check(index)
    with Index.open(folder, read_only=True) as reader:
        check(reader)


def test_keys_removed_and_added_anew(index: DurableIndex, kind: str) -> None:
    keys = named(kind, range(5))
    index.add(keys, ROWS[:5])
    assert index.remove(keys[2]) == 1
    assert index.remove(keys[:2]) == 2
    index.add(keys[:3], ROWS[5:8])
    index.upsert(keys[2:4], ROWS[10:12], [{"n": 1}, None])
    assert index.search(ROWS[[5, 6, 10, 11, 4]], 1).keys[:, 0].tolist() == keys
    assert index.get(keys[3]).tolist() == ROWS[[11]].tolist()
    assert [key in index for key in [*keys, named(kind, [9])[0]]] == [True] * 5 + [False]
    for change in (lambda: index.add(keys[4:], ROWS[:1]), lambda: index.remove(named(kind, [1, 9]))):
        with pytest.raises((KeyError, ValueError), match=r"already holds|does not hold"):
            change()
    assert len(index) == 5
    assert index.verify() == []


def test_empty_batches_change_nothing(index: DurableIndex) -> None:
    nothing = np.zeros((0, 6), dtype=np.float32)
    index.add([], nothing)
    index.upsert([], nothing, [])
    assert index.remove([]) == 0
    index.update_metadata([], [])
    assert index.get([]).shape == (0, 6)
    assert index.metadata([]) == []
    assert index.search(nothing, 3).keys.shape == (0, 3)
    assert index.stats()["version"] == 0
    index.build()
    index.compact()
    assert (len(index), index.verify()) == (0, [])


def test_keys_at_the_edges(folder: Path) -> None:
    with Index.open(folder, 6) as index:
        edges = [0, 2**63 - 2, 2**31, 2**53 + 1]
        index.add(edges, ROWS[:4])
        assert index.search(ROWS[:4], 1, exact=True).keys[:, 0].tolist() == edges
        index.build()
        assert index.search(ROWS[:4], 1, where={0, 2**63 - 2}).keys[1].tolist() == [2**63 - 2]
        for wrong in (-1, 2**63 - 1, 2**70):
            assert wrong not in index
            with pytest.raises(ValueError, match="keys must be at least 0"):
                index.add(wrong, ROWS[5])
        for key in ("0", 0.0, True, None):
            with pytest.raises(TypeError, match="key"):
                key in index  # noqa: B015
    with Index.open(folder) as index:
        assert sorted(index.keys().tolist()) == sorted(edges)
        assert index.search(ROWS[:4], 1, exact=True).keys[:, 0].tolist() == edges


def test_strings_of_all_sorts(folder: Path) -> None:
    keys = ["", " ", "a", "A", "ä", "a\u0308", "🦉" * 50, "'; DROP TABLE items; --", "%", "x" * 100_000, "0", "nul"]
    with Index.open(folder, 6, key_kind="str") as index:
        index.add(keys, ROWS[: len(keys)])
        index.upsert(np.array(["a", "new"]), ROWS[[2, 50]])
        index.add("one", ROWS[51])
        assert index.search(ROWS[: len(keys)], 1).keys[:, 0].tolist() == keys
        assert index.search(ROWS[0], 3, where={"", "ä"}).keys.tolist()[2] is None
        for wrong, error in (
            (["\0"], ValueError),
            (["\ud800"], ValueError),
            ([1], TypeError),
            (["b", "b"], ValueError),
        ):
            with pytest.raises(error, match="keys must"):
                index.add(wrong, ROWS[: len(wrong)])
        with pytest.raises(TypeError):
            3 in index  # noqa: B015
        with pytest.raises(TypeError, match="keys must be integers"):
            index.save(folder / "file")
    with Index.open(folder) as index:
        assert index.key_kind == "str"
        assert list(index) == [*keys, "new", "one"]
        assert index.search(ROWS[[50, 51, 6]], 1).keys[:, 0].tolist() == ["new", "one", keys[6]]


@pytest.mark.parametrize("wrong", ["", 1, None, np.bool_(True), torch.ones(2)], ids=repr)
def test_truth_values_must_be_some(wrong: Any, folder: Path) -> None:
    with pytest.raises(TypeError, match="read_only must be True or False"):
        Index.open(folder, 6, read_only=wrong)
    assert not folder.exists()
    with Index.open(folder, 6) as index:
        index.add(1, ROWS[0], {"a": 1})
        with pytest.raises(TypeError, match="replace must be True or False"):
            index.update_metadata(1, {"b": 2}, replace=wrong)
        assert index.metadata(1) == [{"a": 1}]


@pytest.mark.parametrize(
    "wrong", ["year", b"year", None, 1, np.array(["a", "b"]), torch.ones(2), [1], [None]], ids=repr
)
def test_indexed_columns_must_be_names(wrong: Any, folder: Path) -> None:
    with pytest.raises(TypeError, match="indexed_columns"):
        Index.open(folder, 6, indexed_columns=wrong)
    with pytest.raises(ValueError, match="indexed_columns: a column's name must not be empty"):
        Index.open(folder, 6, indexed_columns=["year", ""])
    assert not folder.exists()


def test_a_condition_that_is_remembered(index: DurableIndex, kind: str) -> None:
    keys = named(kind, range(200))
    index.add(keys[:150], ROWS[:150], [{"n": n} for n in range(150)])
    index.build()
    index.add(keys[150:], ROWS[150:200], [{"n": n} for n in range(150, 200)])
    few = col("n") >= 145

    def found() -> set[Any]:
        for _ in range(2):
            nearest = set(index.search(ROWS[0], 200, where=few).keys.tolist()) - {-1, None}
            assert nearest == set(index.range_search(ROWS[0], 1e6, where=few).keys.tolist())
        return nearest

    segments = [weakref.ref(part.segment) for part in index._engine._state.parts()]
    assert found() == set(keys[145:])
    index.remove(keys[145:147])
    assert found() == set(keys[147:])
    index.upsert(keys[145:146], ROWS[:1], [{"n": 150}])
    assert found() == {keys[145], *keys[147:]}
    index.build()
    assert found() == {keys[145], *keys[147:]}
    gc.collect()
    assert [segment() for segment in segments] == [None, None]  # what is remembered does not hold them


def test_a_comparison_with_values_of_another_kind_is_told(index: DurableIndex, kind: str) -> None:
    documents = [{"n": 1, "mixed": "1", "list": [1]}, {"n": 2.5, "mixed": True, "odd": None}, {"n": None, "odd": False}]
    index.add(named(kind, range(3)), ROWS[:3], documents)
    n, mixed, odd = col("n"), col("mixed"), col("odd")
    only = "; a comparison holds among values of one kind only$"
    for where, told in (
        (n == "1", r"text in column 'n' \(it has numbers\)"),
        (n.is_in(["1", True]), r"text or truth values in column 'n' \(it has numbers\)"),
        (n.contains("1"), r"text in column 'n' \(it has numbers\)"),
        (mixed >= 1, r"numbers in column 'mixed' \(it has text and truth values\)"),
        (odd == 0, r"numbers in column 'odd' \(it has truth values\)"),
        (col("list") == 1, r"numbers in column 'list' \(it has lists\)"),
        ((odd == 0) | (n == True), r"numbers in column 'odd' .*, or truth values in column 'n' .*"),  # noqa: E712
    ):
        with pytest.warns(UserWarning, match=f"where: no row of the index has {told}{only}"):
            assert index.search(ROWS[0], 1, where=where).keys.tolist() == [(-1, None)[kind == "str"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for where in (n == 7, (n == 7) | (n == "7"), n.is_in([7, "7"]), n.is_in([]), mixed == "2", odd == True):  # noqa: E712
            assert index.range_search(ROWS[0], 1e6, where=where).keys.tolist() == []


def test_a_mask_of_integers_is_not_taken_for_keys(index: DurableIndex, kind: str) -> None:
    keys = named(kind, range(3))
    index.add(keys, ROWS[:3], [{"n": n} for n in range(3)])
    error = ValueError if kind == "int" else TypeError
    for ask in (index.search, index.range_search):
        with pytest.raises(error, match=r"^where.* must"):
            ask(ROWS[0], 3, where=np.array([0, 1, 1]))
    for where in ([keys[0]] * 3, [keys[0], keys[1], keys[1]]) if kind == "str" else (col("n") < 2, np.array([0, 1])):
        assert set(index.search(ROWS[0], 3, where=where).keys.tolist()) - {-1, None} <= set(keys[:2])


def test_an_engine_can_be_asked_for(folder: Path, kind: str) -> None:
    rows = gaussian(2500, 6)
    keys = named(kind, range(2500))
    with Index.open(folder, 6, key_kind=kind) as index:
        index.add(keys, rows, [{"n": n} for n in range(2500)])
        index.build()
        for where, first in ((None, 0), (keys[1000:], 1000), (col("n") >= 1000, 1000)):
            exact = index.search(rows[first : first + 50], 5, engine="exact", where=where)
            assert exact.keys[:, 0].tolist() == keys[first : first + 50]
            np.testing.assert_array_equal(
                exact.keys, index.search(rows[first : first + 50], 5, exact=True, where=where)[0]
            )
            found = index.search(rows[first : first + 50], 5, engine="graph", where=where)
            assert (found.keys == exact.keys).mean() > 0.8
        index.remove(keys[:1000])
        index.build()
        with pytest.raises(ValueError, match=r"^engine='graph' needs a graph.* build\(\), .* more than 2,000"):
            index.search(rows[0], 5, engine="graph")
        with pytest.raises(ValueError, match=r"^exact=True and engine='graph' exclude each other"):
            index.search(rows[0], 5, exact=True, engine="graph")


def test_where(index: DurableIndex, kind: str) -> None:
    keys = named(kind, range(200))
    index.add(keys[:150], ROWS[:150], [{"n": n, "odd": bool(n % 2)} for n in range(150)])
    index.build()
    index.add(keys[150:], ROWS[150:200])
    index.update_metadata(keys[150:160], [{"n": n} for n in range(150, 160)])
    none = named(kind, [999])[0]

    def found(where: object) -> set[Any]:
        return set(index.search(ROWS[0], 200, where=where).keys.tolist()) - {-1, None}

    assert found(col("n") >= 145) == set(keys[145:160])
    assert found((col("n") < 10) & (col("odd") == True)) == set(keys[1:10:2])  # noqa: E712
    assert found(col("n").is_null()) == set(keys[160:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(col("n") > 999) == found((col("n") > 999) & col("odd").is_null()) == set()
        assert len(found(col("old").is_null())) == len(found(col("old") != 1)) == 200
    for where in (col("old") == 1, (col("old.er") < 1) & (col("n") > 1)):
        for ask in (lambda where=where: found(where), lambda where=where: index.range_search(ROWS[0], 1, where=where)):
            with pytest.warns(UserWarning, match="no row of the index has a column 'old.*; it has n, odd") as told:
                ask()
            assert [each.filename for each in told] == [__file__]
    with pytest.warns(UserWarning, match=r"'odds'; it has n, odd; did you mean 'odd'\?"):
        found(col("odds") == True)  # noqa: E712
    for text in ("n > 2", col("n")):
        with pytest.raises(TypeError, match=r"where must be a condition.*(mmfast\.col\(.year.\) > 2000|compare it)"):
            found(text)
    for listed in (keys[5:9], tuple(keys[5:9]), set(keys[5:9]), np.array(keys[5:9]), [*keys[5:9], none]):
        assert found(listed) == set(keys[5:9])
        around = index.range_search(ROWS[0], 1e6, where=listed)
        assert set(around.keys.tolist()) == set(keys[5:9])
    assert found([]) == found({none}) == set()
    mask = np.zeros(200, dtype=np.bool_)
    mask[3] = True
    for masked in (mask, torch.from_numpy(mask)):
        if kind == "int":
            assert found(masked) == {3}
        else:
            with pytest.raises(TypeError, match=r"where .*mask"):
                found(masked)
    with pytest.raises(TypeError, match="where"):
        found([1.5])
    index.remove(keys[:148])
    assert found(col("n") >= 145) == set(keys[148:160])
    assert found(keys[5:9]) == set()


def test_the_database_is_asked_once_for_a_key_that_is_not_there(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    ids = Truth.ids

    def asking(truth: Truth, keys: object) -> Any:
        asked.append(keys)
        return ids(truth, keys)

    with Index.open(folder, 6, key_kind=kind) as index:
        index.add(named(kind, [1]), gaussian(1, 6))
        monkeypatch.setattr(Truth, "ids", asking)
        assert named(kind, [2])[0] not in index
        assert len(asked) == 1


@pytest.mark.parametrize("kind", ["memory", *KINDS], indirect=True)
def test_keys_repeated_are_read_again_and_allowed_once(kind: str, folder: Path) -> None:
    """Neighbours of several queries may be the same; what changes an index must not be told twice."""
    index = Index(6, "l2sq", "f32") if kind == "memory" else Index.open(folder, 6, "l2sq", "f32", key_kind=kind)
    keys = named("int" if kind == "memory" else kind, range(4))
    index.add(keys, ROWS[:4])
    repeated = [keys[3], keys[1], keys[3]]
    np.testing.assert_array_equal(index.get(repeated), ROWS[[3, 1, 3]])
    assert index.search(ROWS[1], 4, where=repeated).keys.tolist()[:3] == [keys[1], keys[3], (-1, None)[kind == "str"]]
    assert sorted(index.range_search(ROWS[1], 1e6, where=repeated).keys.tolist()) == [keys[1], keys[3]]
    for change in (index.remove, lambda keys: index.add(keys, ROWS[:3]), lambda keys: index.upsert(keys, ROWS[:3])):
        with pytest.raises(ValueError, match=r"keys must be distinct; repeated: .*3"):
            change(repeated)


def test_metadata(index: DurableIndex, kind: str, folder: Path) -> None:
    keys = named(kind, range(6))
    index.add(keys[0], ROWS[0], {"a": 1})
    index.add(keys[1:2], ROWS[1:2], {"a": 2})
    index.add(keys[2:4], ROWS[2:4], [{"a": {"b": [1, None, "ü"]}}, None])
    version = index.stats()["version"]
    for wrong, error in (
        ([{}], ValueError), ([{}] * 3, ValueError), ("ab", TypeError), ([1, 2], TypeError), ({"a": 1}, TypeError),
        ([{}, {"a": float("nan")}], ValueError), ([{}, {"a": object()}], TypeError), ([{1: 2}, {}], TypeError),
        ([{}, {"a": np.float32("nan")}], ValueError), ([{}, {"a": np.datetime64("2020-01-01")}], TypeError),
        ([{}, {"a": np.longdouble(1)}], TypeError), ([{}, {"a": {"b": [np.arange(2)]}}], TypeError),
    ):  # fmt: skip
        for change in (index.add, index.upsert):
            with pytest.raises(error, match="metadata"):
                change(keys[4:], ROWS[4:6], wrong)
        with pytest.raises(error if wrong != {"a": 1} else ValueError, match="metadata"):
            index.update_metadata(keys[:2], wrong)
    with pytest.raises(TypeError, match="metadata"):
        index.update_metadata(keys[0], None)
    with pytest.raises(KeyError, match="does not hold"):
        index.update_metadata([keys[0], keys[5]], [{"a": 5}, {}])
    with pytest.raises(KeyError, match="does not hold"):
        index.metadata([keys[5]])
    assert (len(index), index.stats()["version"]) == (4, version)
    with Index.open(folder, read_only=True) as reader:
        asked = lambda: reader.search(ROWS[0], 6, where=col("a") >= 1).keys.tolist()  # noqa: E731
        assert keys[0] in asked()
        index.update_metadata(keys[0], {"b": 2})
        index.update_metadata([keys[1], keys[3]], [{"a": 0}, {"c": 1}], replace=True)
        assert reader.metadata(keys[:4]) == [{"a": 1, "b": 2}, {"a": 0}, {"a": {"b": [1, None, "ü"]}}, {"c": 1}]
        assert keys[1] not in asked()
        index.upsert(keys[:2], ROWS[:2])
        index.upsert(keys[3], ROWS[3], [None])
        assert reader.metadata(keys[:4]) == [{"a": 1, "b": 2}, {"a": 0}, {"a": {"b": [1, None, "ü"]}}, {"c": 1}]
        index.remove(keys[0])
        assert keys[0] not in asked()
        index.add(keys[0], ROWS[0])
        assert reader.metadata(keys[0]) == [None]
        assert reader.verify() == []


def test_numpy_scalars_in_metadata_become_pythons(index: DurableIndex, kind: str) -> None:
    key = named(kind, [1])[0]
    scalars: list[Any] = [
        np.int64(3),
        np.uint8(255),
        np.float32(1.5),
        np.float16(0.1),
        np.float64(0.1),
        np.bool_(True),
        np.str_("a"),
    ]
    index.add(key, ROWS[0], {"a": scalars, "b": np.int32(7), np.str_("c"): np.float32(0.1)})
    (held,) = index.metadata(key)
    assert held == {"a": [each.item() for each in scalars], "b": 7, "c": float(np.float32(0.1))}
    assert [type(each) for each in held["a"]] == [int, int, float, float, float, bool, str]
    index.update_metadata(key, {"b": np.int32(8)})
    for where in (col("b") == np.int64(8), col("c") == np.float32(0.1), col("b").is_in(np.array([8])),
                  col("b").between(np.float16(7.5), np.uint64(9))):  # fmt: skip
        assert index.search(ROWS[0], 1, where=where).keys.tolist() == [key]
    for array in (np.arange(2), np.array(1), torch.arange(2)):
        with pytest.raises(
            TypeError, match=rf"under key {key!r}: .*type (ndarray|Tensor); convert it with \.tolist\(\)"
        ):
            index.update_metadata(key, {"a": array})


def test_vectors_and_keys_are_checked_together(index: DurableIndex, kind: str) -> None:
    for rows in (ROWS[:3], np.full((2, 6), np.nan, dtype=np.float32), ROWS[:2, :5], ROWS[0]):
        with pytest.raises(ValueError, match="vector"):
            index.add(named(kind, [1, 2]), rows)
    assert len(index) == 0


def test_settings(folder: Path) -> None:
    wanting: list[dict[str, Any]] = [{}, {"metric": "ip"}, {"metric": "ip", "key_kind": "str"}, {"key_kind": "int"}]
    for each in wanting:
        with pytest.raises(FileNotFoundError, match="holds no mmfast index; to make one, give ndim"):
            Index.open(folder, **each)
        assert not folder.exists()
    with pytest.raises(ValueError, match="metric must be one of"):
        Index.open(folder, 4, "l1")
    with pytest.raises(ValueError, match="key_kind must be one of"):
        Index.open(folder, 4, key_kind="bytes")
    with pytest.raises(FileNotFoundError, match="holds no mmfast index"):
        Index.open(folder, 4, read_only=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Index.open(folder / "deeper", 4)
    Index.open(folder, np.int64(4), "ip", "f16", key_kind="str", connectivity=8).close()  # type: ignore[arg-type]
    other: list[dict[str, Any]] = [{"ndim": 5}, {"metric": "cos"}, {"dtype": "f32"}, {"connectivity": 9}]
    for each in [*other, {"key_kind": "int"}]:
        with pytest.raises(ValueError, match="was made with"):
            Index.open(folder, **each)
    with Index.open(str(folder), 4, "ip", "f16", key_kind="str", connectivity=8) as index:
        assert (index.ndim, index.metric, index.dtype) == (4, "ip", "f16")
        assert repr(folder)[11:-2] in repr(index)
    with Index.open(os.fsencode(folder)) as index:
        assert index.ndim == 4
    with pytest.raises(IsADirectoryError, match=r"index is a folder.* with mmfast\.Index\.open"):
        Index.load(folder)
    Index(4).save(folder.parent / "file")
    with pytest.raises(NotADirectoryError, match=r"file is a file; .* with mmfast\.Index\.load"):
        Index.open(folder.parent / "file", 4)
    with pytest.raises(FileExistsError):
        Index.open(folder.parent, 4)
    with pytest.raises(TypeError):
        Index.open(7, 4)  # type: ignore[arg-type]


def test_a_relative_path_means_what_it_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Index.open("index", 6) as index:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        index.add(range(10), ROWS[:10])
        index.build()
        assert (tmp_path / "index" / "snapshot.index").exists()
        assert len(pickle.loads(pickle.dumps(index))) == 10


def test_one_writer_and_what_readers_may_not(index: DurableIndex, folder: Path, kind: str) -> None:
    index.add(named(kind, range(10)), ROWS[:10])
    index.build()
    with pytest.raises(BlockingIOError, match="has it open for writing already"):
        Index.open(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if "-shm" not in path.name}
    with Index.open(folder, read_only=True) as reader:
        keys = named(kind, [1])
        for change in (
            lambda: reader.add(named(kind, [20]), ROWS[:1]),
            lambda: reader.upsert(keys, ROWS[:1]),
            lambda: reader.remove(keys),
            lambda: reader.update_metadata(keys, {"a": 1}),
            reader.compact,
        ):
            with pytest.raises(PermissionError, match="read_only=True"):
                change()
        reader.build()
        reader.search(ROWS, 3)
        assert (len(reader), reader.verify()) == (10, [])
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if "-shm" not in path.name}
