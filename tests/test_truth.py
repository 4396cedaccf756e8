"""The durable store: what goes in comes out, readers see commits, one writer at a time, and damage is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmfast.search.conditions import col
from mmfast.search.truth import Truth
from tests.stores import SETTINGS, ids_where, keys_of, rows

DTYPES = {"f32": np.float32, "bf16": np.int16, "f16": np.float16, "i8": np.int8}  # as arrays.encode returns them


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_as_they_went_in(dtype: str, kind: str, folder: Path) -> None:
    stored = (np.random.default_rng(0).standard_normal((3000, 5)) * 30).astype(DTYPES[dtype])
    keys = keys_of(kind, np.random.default_rng(1).permutation(3000))
    with Truth.open(folder, {"ndim": 5, "metric": "cos", "dtype": dtype}, key_kind=kind) as truth:
        assert truth.add(keys, stored) == truth.version == 1
    with Truth.open(folder) as truth:
        order = np.random.default_rng(2).integers(0, 3000, 5000)  # keys more than once
        got = truth.get([keys[n] for n in order])
        assert got.dtype == stored.dtype
        assert got.flags.writeable
        np.testing.assert_array_equal(got, stored[order])
        assert len(truth) == 3000
        assert truth.verify() == []
        assert truth.settings == {"ndim": 5, "metric": "cos", "dtype": dtype, "key_kind": kind}


def test_non_contiguous_rows_and_no_rows(truth: Truth, kind: str) -> None:
    stored = rows(40, ndim=8)[::2, ::2]
    truth.add(keys_of(kind, range(20)), stored)
    np.testing.assert_array_equal(truth.get(keys_of(kind, range(20))), stored)
    version = truth.version
    assert truth.add([], rows(0)) == truth.upsert([], rows(0), []) == truth.remove([]) == version
    assert truth.update_metadata([], []) == version
    assert truth.get([]).shape == (0, 4)
    assert truth.metadata([]) == []
    assert len(truth.ids([])) == 0


def test_adding_held_keys_names_them_and_adds_none(truth: Truth, kind: str) -> None:
    truth.add(keys_of(kind, range(10)), rows(10))
    with pytest.raises(ValueError, match=r"keys must be new, but the index already holds .*3.*; remove them first"):
        truth.add(keys_of(kind, [*range(100, 2000), 3, 4]), rows(1902))
    assert (len(truth), truth.version) == (10, 1)
    assert truth.held(keys_of(kind, [3, 100])).tolist() == [True, False]
    with pytest.raises(ValueError, match="keys must be distinct"):
        truth.add(keys_of(kind, [50, 50]), rows(2))


def test_upsert_adds_and_replaces(truth: Truth, kind: str) -> None:
    before, after = rows(1000), rows(1500, 1)
    truth.add(keys_of(kind, range(1000)), before, [{"n": n} for n in range(1000)])
    ids = truth.ids(keys_of(kind, range(1000)))
    truth.upsert(keys_of(kind, range(500, 2000)), after)
    assert len(truth) == 2000
    np.testing.assert_array_equal(truth.get(keys_of(kind, range(2000))), np.concatenate([before[:500], after]))
    np.testing.assert_array_equal(truth.ids(keys_of(kind, range(1000))), ids)
    assert truth.metadata(keys_of(kind, [700, 1700])) == [{"n": 700}, None]  # not given, so it stays
    truth.upsert(keys_of(kind, [700, 1700, 5000]), rows(3), [None, {"m": 1}, {"m": 2}])
    assert truth.metadata(keys_of(kind, [700, 1700, 5000])) == [{"n": 700}, {"m": 1}, {"m": 2}]
    assert len(truth) == 2001
    assert truth.verify() == []


def test_an_array_of_one_string_is_one_key(folder: Path) -> None:
    with Truth.open(folder, SETTINGS, key_kind="str") as truth:
        truth.add(np.array("abc"), rows(1))
        assert list(truth) == ["abc"]
        assert truth.held(np.array(["abc", "a"])).tolist() == [True, False]


def test_remove_takes_rows_and_metadata(truth: Truth, kind: str) -> None:
    truth.add(keys_of(kind, range(1200)), rows(1200), [{"n": n} for n in range(1200)])
    first = set(truth.ids(keys_of(kind, range(1200))).tolist())
    with pytest.raises(KeyError, match=r"does not hold .*5000.*; nothing was changed"):
        truth.remove(keys_of(kind, [5, 5000]))
    truth.remove(keys_of(kind, range(100, 1200)))
    assert len(truth) == 100
    assert ids_where(truth, col("n") >= 0).tolist() == truth.ids(keys_of(kind, range(100))).tolist()
    for read in (truth.get, truth.metadata):
        with pytest.raises(KeyError, match=r"does not hold .*100.*; nothing returned"):
            read(keys_of(kind, [5, 100]))
    truth.add(keys_of(kind, [100]), rows(1, 7))
    assert truth.metadata(keys_of(kind, [100])) == [None]
    np.testing.assert_array_equal(truth.get(keys_of(kind, [100])), rows(1, 7))
    if kind == "str":
        assert truth.ids(keys_of(kind, [100])).item() not in first  # never used again
    assert truth.verify() == []


def test_keys_ids_and_iteration(truth: Truth, kind: str) -> None:
    keys = keys_of(kind, range(0, 25_000, 2))
    truth.add(keys, rows(12_500))
    assert list(truth) == keys
    assert keys[7] in truth
    assert keys_of(kind, [1])[0] not in truth
    ids = truth.ids(keys)
    names = list(truth.names())
    assert [number for block, _ in names for number in block.tolist()] == ids.tolist()
    assert [key for _, block in names for key in block] == keys
    assert truth.ids(keys_of(kind, [1, 4])).tolist() == [-1, ids[2]]
    blocks = list(truth.rows(block=1000))
    assert [len(block[0]) for block in blocks] == [1000] * 12 + [500]
    assert [key for block in blocks for key in block[1]] == keys
    np.testing.assert_array_equal(np.concatenate([block[2] for block in blocks]), rows(12_500))


def test_metadata_of_all_kinds(truth: Truth, kind: str) -> None:
    documents: list[Any] = [
        {"s": "é\\u0000\n\"'\\😀", "i": 2**70, "f": 0.1, "b": True, "n": None, "l": [1, [2]], "d": {"": {}}},
        {},
        None,
        {'"; DROP TABLE items; --': 1, "a\\b": 2, "\n": 3},
    ]
    keys = keys_of(kind, range(4))
    truth.add(keys, rows(4), documents)
    assert truth.metadata([*keys, keys[0]]) == [*documents, documents[0]]
    truth.update_metadata(keys[:3], [{"i": 5, "new": 1}, None, {"x": 1}])
    assert truth.metadata(keys[:3]) == [{**documents[0], "i": 5, "new": 1}, {}, {"x": 1}]
    truth.update_metadata(keys[:3], [{"y": 2}, None, None], replace=True)
    assert truth.metadata(keys[:3]) == [{"y": 2}, None, None]
    with pytest.raises(KeyError, match="does not hold"):
        truth.update_metadata(keys_of(kind, [0, 99]), [{"y": 3}, {}])
    assert truth.metadata(keys[:1]) == [{"y": 2}]
    assert truth.verify() == []


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({1: 2}, TypeError),
        ({"a": [{None: 1}]}, TypeError),
        ({"a": b"x"}, TypeError),
        ({"a": np.arange(3)}, TypeError),
        ([1], TypeError),
        ("text", TypeError),
        ({"a": float("nan")}, ValueError),
        ({"a": {"b": [float("inf")]}}, ValueError),
        ({"\ud800": 1}, ValueError),
        ({"a": "\udfff"}, ValueError),
        ({"a": ["\0"]}, ValueError),
        ({"\\\0": 1}, ValueError),
    ],
)
def test_metadata_that_json_cannot_hold_is_refused(document: Any, error: type[Exception], folder: Path) -> None:
    with Truth.open(folder, SETTINGS, key_kind="int") as truth:
        with pytest.raises(error, match=r"metadata must be .*under (key )?2"):
            truth.add([1, 2], rows(2), [{}, document])
        assert len(truth) == 0
        for wrong in ({"a": 1}, "ab", 3, torch.zeros(2)):
            with pytest.raises(TypeError, match="metadata must be a sequence"):
                truth.add([1, 2], rows(2), wrong)
        with pytest.raises(ValueError, match="got 1 for 2 keys"):
            truth.add([1, 2], rows(2), [{}])


@pytest.mark.parametrize(
    ("kind", "keys", "error"),
    [
        ("int", ["a"], TypeError),
        ("int", [1.5], TypeError),
        ("int", [True], TypeError),
        ("int", [1, True], TypeError),
        ("int", True, TypeError),
        ("int", [-1], ValueError),
        ("int", [2**63 - 1], ValueError),
        ("str", [1], TypeError),
        ("str", [None], TypeError),
        ("str", b"a", TypeError),
        ("str", {"a"}, TypeError),
        ("str", ["a\0"], ValueError),
        ("str", ["\ud800"], ValueError),
        ("str", ["a", "b", "a"], ValueError),
    ],
    indirect=["kind"],
)
def test_keys_of_another_kind_are_refused(truth: Truth, keys: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="keys must"):
        truth.add(keys, rows(np.size(keys)))
    if keys != ["a", "b", "a"]:
        for read in (truth.get, truth.held, truth.metadata, truth.ids):
            with pytest.raises(error, match="keys must"):
                read(keys)


def test_rows_of_another_shape_are_refused(truth: Truth, kind: str) -> None:
    keys = keys_of(kind, range(3))
    for wrong in (rows(2), rows(3, ndim=5), rows(4)):
        with pytest.raises(ValueError, match=r"stored must have shape \(3, 4\)"):
            truth.add(keys, wrong)
    for odd in (rows(3).astype(np.float32), rows(3)[0], [[1, 2, 3, 4]] * 3):
        with pytest.raises(TypeError, match="stored must be a NumPy array"):
            truth.add(keys, odd)  # type: ignore[arg-type]


def test_the_change_log_catches_a_snapshot_up(truth: Truth, kind: str) -> None:
    """A snapshot kept by changes alone, from random versions on, equals the truth."""
    chosen = np.random.default_rng(3)
    snapshot: dict[int, tuple[Any, bytes]] = {}
    known = 0
    for step in range(120):
        held = list(truth)
        fresh = keys_of(kind, np.unique(chosen.integers(0, 300, 20)))
        match step % 4:
            case 0 | 1:
                truth.upsert(fresh, rows(len(fresh), step))
            case 2:
                truth.remove([held[n] for n in chosen.permutation(len(held))[:15]])
            case 3:
                truth.update_metadata(held[:2], [{"step": step}] * 2)
        if chosen.random() < 0.3:
            changes = truth.changes(known)
            assert changes is not None
            assert not set(changes.removed_ids.tolist()) & set(changes.ids.tolist())
            for number in changes.removed_ids.tolist():
                snapshot.pop(number, None)
            for number, key, row in zip(changes.ids.tolist(), changes.keys, changes.stored, strict=True):
                snapshot[number] = (key, row.tobytes())
            known = changes.version
            ids, keys, stored = next(truth.rows())
            pairs = zip(keys, stored, strict=True)
            assert snapshot == {n: (k, s.tobytes()) for n, (k, s) in zip(ids.tolist(), pairs, strict=True)}


def test_the_change_log_can_be_trimmed(truth: Truth, kind: str) -> None:
    truth.add(keys_of(kind, range(10)), rows(10))
    removed = truth.ids(keys_of(kind, [1, 2]))
    truth.remove(keys_of(kind, [1, 2]))
    truth.upsert(keys_of(kind, [3]), rows(1))
    changes = truth.changes(1)
    assert changes is not None
    assert changes.removed_ids.tolist() == removed.tolist()
    assert np.array_equal(changes.keys, keys_of(kind, [3]))
    truth.trim(2)
    truth.trim(1)
    assert truth.changes(1) is None
    assert truth.changes(2) is not None
    assert truth.changes(4) is None  # yet to come: of another history
    assert truth.version == 3
    for before in (-1, 4):
        with pytest.raises(ValueError, match="before must be from 0 to the version 3"):
            truth.trim(before)


def test_compacting_gives_space_back(truth: Truth, kind: str, folder: Path) -> None:
    truth.add(keys_of(kind, range(20_000)), rows(20_000), [{"n": n} for n in range(20_000)])
    truth.remove(keys_of(kind, range(100, 20_000)))
    before = sum(path.stat().st_size for path in folder.iterdir())
    ids = truth.ids(keys_of(kind, range(100)))
    truth.trim(truth.version)
    truth.compact()
    assert sum(path.stat().st_size for path in folder.iterdir()) < before / 5
    assert truth.ids(keys_of(kind, range(100))).tolist() == ids.tolist()
    np.testing.assert_array_equal(truth.get(keys_of(kind, range(100))), rows(20_000)[:100])
    truth.add(keys_of(kind, [20_001]), rows(1))
    assert truth.verify() == []


def test_threads_write_and_read_together(truth: Truth, kind: str) -> None:
    """Each batch is seen whole or not at all, and the counts agree with the rows."""
    failures: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            changes = truth.changes(0)
            assert changes is not None
            values, counts = np.unique(changes.stored[:, 0], return_counts=True)
            if (counts % 50).any() or len(changes.ids) != 50 * changes.version:
                failures.append(f"{values} {counts} {changes.version}")

    def write(number: int) -> None:
        for batch in range(5):
            start = (number * 5 + batch) * 50
            truth.add(keys_of(kind, range(start, start + 50)), np.full((50, 4), number * 5 + batch, dtype=np.int16))

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        writers = [pool.submit(write, number) for number in range(4)]
        for writer in writers:
            writer.result()
        done.set()
        for reader in readers:
            reader.result()
    assert not failures
    assert len(truth) == 1000
    assert truth.verify() == []
