"""Conditions on metadata: each gives the rows that a few lines of Python give, whatever the names and values."""

from __future__ import annotations

import copy
import operator
import pickle
import random
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmfast.search.conditions import Column, Condition, _Many, col, json_path
from mmfast.search.truth import Truth
from tests.stores import ids_where

ROWS: list[dict[str, Any] | None] = [
    None,
    {},
    {"a": None},
    {"a": True},
    {"a": False},
    {"a": 0},
    {"a": 1},
    {"a": 1.0},
    {"a": 1.5},
    {"a": -3},
    {"a": 2**53 + 1},
    {"a": 2**63 - 1},
    {"a": 0.1 + 0.2},
    {"a": 5e-324},
    {"a": 1.7976931348623157e308},
    {"a": ""},
    {"a": "1"},
    {"a": "true"},
    {"a": "[1]"},
    {"a": "x"},
    {"a": "X"},
    {"a": "é"},
    {"a": "x'); DROP TABLE items; --"},
    {"a": 'quoted "x" \\ and\nmore\t'},
    {"a": "%x_"},
    {"a": [1]},
    {"a": {"b": 1}},
    {"a": {"b": "x", "c.d": 2}},
    {"a": {"b": {"c": 7}}},
    {"b": 1},
]


def make(folder: Path, documents: list[dict[str, Any] | None], **options: Any) -> Truth:
    truth = Truth.open(folder, {"ndim": 1, "dtype": "i8"}, key_kind="int", **options)
    truth.add(range(len(documents)), np.zeros((len(documents), 1), dtype=np.int8), documents)
    return truth


@pytest.fixture(scope="module", params=[(), ("a", "a.b")], ids=["bare", "indexed"])
def truth(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Truth]:
    with make(tmp_path_factory.mktemp("conditions") / "store", ROWS, indexed_columns=request.param) as made:
        yield made


def expected(test: Callable[[Any], bool], *steps: str) -> list[int]:
    """Return the rows whose value, None where there is none, passes ``test``."""

    def value(document: Any) -> Any:
        for step in steps or ("a",):
            document = document.get(step) if isinstance(document, dict) else None
        return document

    return [number for number, document in enumerate(ROWS) if test(value(document))]


def alike(left: object, right: object) -> bool:
    """Tell whether two values are of one kind, as JSON has them."""
    kinds = (bool, (int, float), str)
    return any(isinstance(left, kind) and isinstance(right, kind) for kind in kinds) and (
        isinstance(left, bool) == isinstance(right, bool)
    )


def fulfils(compare: Callable[[Any, Any], bool], bound: object, value: object) -> bool:
    """Tell whether a value is of the kind of ``bound`` and compares with it."""
    return alike(value, bound) and compare(value, bound)


VALUES = [True, False, 0, 1, 1.0, 1.5, -3, 2**53 + 1, 2**53, 2**63 - 1, 0.1 + 0.2, 0.3, 5e-324, float("inf"), "", "1"]
VALUES += ["true", "[1]", "x", "é", "x'); DROP TABLE items; --", 'quoted "x" \\ and\nmore\t', "%x_", "1' OR '1'='1"]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_comparisons_are_pythons_within_a_kind(truth: Truth, value: Any) -> None:
    column = col("a")
    assert ids_where(truth, column == value).tolist() == expected(lambda v: alike(v, value) and v == value)
    assert ids_where(truth, column != value).tolist() == expected(lambda v: not (alike(v, value) and v == value))
    assert ids_where(truth, column.is_in([value])).tolist() == expected(lambda v: alike(v, value) and v == value)
    if isinstance(value, bool):
        return
    for compare in (operator.lt, operator.le, operator.gt, operator.ge):
        wanted = expected(partial(fulfils, compare, value))
        assert ids_where(truth, compare(column, value)).tolist() == wanted
        unwanted = sorted(set(range(len(ROWS))) - set(wanted))
        assert ids_where(truth, ~compare(column, value)).tolist() == unwanted
    if isinstance(value, str):
        assert ids_where(truth, column.contains(value)).tolist() == expected(
            lambda v: isinstance(v, str) and value in v
        )
        begins = expected(lambda v: isinstance(v, str) and v.startswith(value))
        assert ids_where(truth, column.startswith(value)).tolist() == begins


def test_null_lists_and_ranges(truth: Truth) -> None:
    column = col("a")
    absent = expected(lambda v: v is None)
    for null in (column.is_null(), column == None, column.is_in([None])):  # noqa: E711
        assert ids_where(truth, null).tolist() == absent
    assert ids_where(truth, column != None).tolist() == expected(lambda v: v is not None)  # noqa: E711
    assert ids_where(truth, column.is_in([])).tolist() == []
    assert ids_where(truth, ~column.is_in([])).tolist() == list(range(len(ROWS)))
    mixed = [1, "x", False, None, 0.1 + 0.2]
    assert ids_where(truth, column.is_in(mixed)).tolist() == expected(
        lambda v: v is None or any(alike(v, m) and v == m for m in mixed)
    )
    assert ids_where(truth, column.is_in([*range(-100_000, 100_000), *map(str, range(100_000))])).tolist() == expected(
        lambda v: (alike(v, 1) and v in (0, 1, -3)) or v == "1"
    )
    assert ids_where(truth, column.between(0, 1.5)).tolist() == expected(lambda v: alike(v, 1) and 0 <= v <= 1.5)
    assert ids_where(truth, column.between("a", "z")).tolist() == expected(
        lambda v: isinstance(v, str) and "a" <= v <= "z"
    )


def test_paths_lead_into_objects(truth: Truth) -> None:
    assert ids_where(truth, col("a.b") == 1).tolist() == expected(lambda v: v == 1, "a", "b")
    assert ids_where(truth, col("a.b.c") > 6).tolist() == expected(lambda v: v == 7, "a", "b", "c")
    assert ids_where(truth, col(["a", "c.d"]) == 2).tolist() == [27]
    assert ids_where(truth, col("a.b") == "x").tolist() == [27]


def test_numpy_scalars_are_values(truth: Truth) -> None:
    assert ids_where(truth, col("a") == np.int64(-3)).tolist() == expected(lambda v: v == -3)
    assert ids_where(truth, col("a") == np.True_).tolist() == expected(lambda v: v is True)
    assert ids_where(truth, col("a").is_in(np.array([1.5, 7.0]))).tolist() == expected(lambda v: v == 1.5)
    assert ids_where(truth, 1.5 < col("a")).tolist() == expected(lambda v: alike(v, 1) and v > 1.5)  # noqa: SIM300
    assert ids_where(truth, col("a") > np.float64(1.5)).tolist() == expected(lambda v: alike(v, 1) and v > 1.5)


def test_random_combinations_are_those_of_sets(truth: Truth) -> None:
    chosen = random.Random(0)
    everything = frozenset(range(len(ROWS)))

    def build(depth: int) -> tuple[Condition, frozenset[int]]:
        if depth == 0 or chosen.random() < 0.2:
            value = chosen.choice(VALUES)
            if chosen.random() < 0.2:
                return col("a").is_null(), frozenset(expected(lambda v: v is None))
            if isinstance(value, bool) or chosen.random() < 0.5:
                return col("a") == value, frozenset(expected(lambda v: alike(v, value) and v == value))
            return col("a") >= value, frozenset(expected(lambda v: alike(v, value) and v >= value))
        left, left_rows = build(depth - 1)
        kind = chosen.randrange(3)
        if kind == 0:
            return ~left, everything - left_rows
        right, right_rows = build(depth - 1)
        return (left & right, left_rows & right_rows) if kind == 1 else (left | right, left_rows | right_rows)

    for _ in range(300):
        condition, rows = build(5)
        assert frozenset(ids_where(truth, condition).tolist()) == rows, condition
        assert frozenset(ids_where(truth, pickle.loads(pickle.dumps(condition))).tolist()) == rows


def test_every_double_is_found_again(tmp_path: Path) -> None:
    chosen = random.Random(1)
    values = [chosen.random() * 10 ** chosen.randint(-300, 300) for _ in range(3000)]
    with make(tmp_path / "store", [{"x": value} for value in values]) as truth:
        for number in range(0, 3000, 30):
            assert ids_where(truth, col("x") == values[number]).tolist() == [number]
        assert len(ids_where(truth, col("x").is_in(values))) == 3000


HOSTILE = [
    "a'; DROP TABLE items; --",
    "x') OR 1=1 --",
    "a[0]",
    "$",
    "#-1",
    "a b",
    "?",
    ":name",
    "%s{}",
    "SELECT",
    "naïve 名前",
    "*",
    "a/*",
    "😀",
    "\x7f",
]


@pytest.mark.parametrize("indexed", [False, True])
def test_hostile_names_are_names(indexed: bool, tmp_path: Path) -> None:
    documents: list[dict[str, Any] | None] = [{name: name} for name in HOSTILE]
    with make(tmp_path / "store", documents, indexed_columns=HOSTILE if indexed else ()) as truth:
        for number, name in enumerate(HOSTILE):
            assert ids_where(truth, col(name) == name).tolist() == [number]
            assert ids_where(truth, col(name).is_in([name, 5])).tolist() == [number]
            assert ids_where(truth, col(name).is_null()).tolist() == [n for n in range(len(HOSTILE)) if n != number]
        assert truth.verify() == []


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\0", "", "a..b", ".a", "\ud800", [], ["a", ""]])
def test_names_that_no_path_expresses_are_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="a column's name must not"):
        col(name)


@pytest.mark.parametrize("name", [1, None, b"a", ["a", 1]])
def test_names_must_be_strings(name: Any) -> None:
    with pytest.raises(TypeError, match="a column's name must be a string"):
        col(name)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda a: a > 1 and a < 3,
        lambda a: 1 < a < 3,
        lambda a: not (a == 1),  # noqa: SIM201
        lambda a: bool(a),
        lambda a: (a == 1) & a,
        lambda a: a == 1 & a,
        lambda a: (a == 1) | True,
        lambda a: a & (a == 1),
        lambda a: a == a,
        lambda a: a == (a == 1),
        lambda a: a == [1],
        lambda a: a == b"x",
        lambda a: a < None,
        lambda a: a > True,
        lambda a: a == object(),
        lambda a: a.is_in("text"),
        lambda a: a.is_in(3),
        lambda a: a.is_in([[1]]),
        lambda a: a.contains(3),
        lambda a: a.startswith(None),
        lambda a: a.between(None, 3),
        lambda a: 1 in a,
        lambda a: {a: 1},
    ],
)
def test_misuse_is_a_type_error(misuse: Callable[[Column], object]) -> None:
    with pytest.raises(TypeError):
        misuse(col("a"))


@pytest.mark.parametrize("value", [float("nan"), np.float32("nan"), 2**63, -(2**63) - 1, "a\0b", "\ud800"], ids=repr)
def test_values_that_never_compare_are_refused(value: Any) -> None:
    for build in (lambda: col("a") == value, lambda: col("a").is_in([1, value]), lambda: col("a") >= value):
        with pytest.raises(ValueError, match=r"col\('a'\)"):
            build()


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a prototype
    NESTED = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ("text", TypeError, r"got 'text' \(str\); write \['text'\]$"),
        (b"text", TypeError, r"got b'text' \(bytes\)"),
        (3, TypeError, r"got 3 \(int\); write \[3\]$"),
        (float("nan"), TypeError, r"got nan \(float\)"),
        (None, TypeError, r"got None \(NoneType\)$"),
        ({"x": 1}, TypeError, r"got \{'x': 1\} \(dict\)$"),
        (col("b"), TypeError, r"got col\('b'\) \(Column\)$"),
        (np.array(3), ValueError, r"one dimension, got shape \(\)"),
        (np.ones((2, 3)), ValueError, r"one dimension, got shape \(2, 3\)"),
        (torch.tensor(3), ValueError, r"one dimension, got shape \(\)"),
        (torch.ones(2, 3), ValueError, r"one dimension, got shape \(2, 3\)"),
        (NESTED, TypeError, "that holds all values, got nested_tensor"),
        (torch.ones(3).to_sparse(), TypeError, "that holds all values"),
        (torch.ones(3, device="meta"), TypeError, "that holds all values"),
        (np.ma.array([1, 2], mask=[False, True]), TypeError, "that holds all values"),
        ([range(10**6)] * 10**4, TypeError, r"got range\(0, 1000000\) \(range\)$"),
        ([[1, 2], [3]], TypeError, r"got \[1, 2\] \(list\)$"),
        ([list(range(10**5))], TypeError, r"got \[0, 1, .*\.\.\. \(list\)$"),
        ([1, np.nan], ValueError, "NaN never holds"),
        (torch.tensor([1, np.nan]), ValueError, "NaN never holds"),
        (np.array([1j]), TypeError, r"got 1j \(complex\)"),
        (np.array(["2020-01-01"], dtype="M8[D]"), TypeError, r"got datetime.date\(2020, 1, 1\)"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_values_is_refused(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"^col\('a'\).*{message}") as caught:
        col("a").is_in(values)
    assert len(str(caught.value)) < 400


def test_values_in_whatever_yields_them(truth: Truth) -> None:
    given = [1.5, 7.0]
    for values in (
        given,
        (each for each in given),
        set(given),
        dict.fromkeys(given).keys(),
        np.array(given),
        np.array([*given, None], dtype=object)[:2],
        torch.tensor(given, requires_grad=True),
        torch.tensor(given, dtype=torch.bfloat16),
    ):
        assert ids_where(truth, col("a").is_in(values)).tolist() == expected(lambda v: v == 1.5)


def test_messages_say_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"write & \| ~ for and, or, not"):
        bool(col("a") == 1)
    with pytest.raises(TypeError, match="put parentheses around them"):
        col("a") == 1 & col("b")  # noqa: B015
    with pytest.raises(TypeError, match=r'written col\("name"\) == True'):
        (col("a") == 1) & col("b")
    with pytest.raises(TypeError, match=r"use is_in"):
        col("a") == [1, 2]  # noqa: B015
    with pytest.raises(TypeError, match=r"write \['x'\]"):
        col("a").is_in("x")
    with pytest.raises(TypeError, match=r"\(ndarray\); use is_in"):
        col("a") == np.array([1, 2])  # noqa: B015
    for name, meant in (("isin", "col('a').is_in([...])"), ("isnull", "col('a').is_null()"),
                        ("notnull", "~col('a').is_null()"), ("near", "it has is_null, is_in, between")):  # fmt: skip
        with pytest.raises(AttributeError, match=rf"col\('a'\) has no {name}; .*{re.escape(meant)}"):
            getattr(col("a"), name)
    assert repr(copy.deepcopy(col("a"))) == repr(pickle.loads(pickle.dumps(col("a")))) == "col('a')"


def test_many_conditions(truth: Truth) -> None:
    many = [col("a") == value for value in range(-3, 2000)]
    assert ids_where(truth, reduce(operator.or_, many)).tolist() == expected(lambda v: alike(v, 1) and v in (-3, 0, 1))
    assert ids_where(truth, reduce(operator.and_, [~one for one in many])).tolist() == expected(
        lambda v: not (alike(v, 1) and v in (-3, 0, 1))
    )
    with pytest.raises(ValueError, match="condition is too large for SQLite"):
        ids_where(truth, _Many("OR", tuple(many * 50)))
    for depth in (60, 300):
        deep: Condition = col("a") == 1
        for _ in range(depth):
            deep = ~(deep & (col("a") == 1)) | (col("a") == 2)
        with pytest.raises(ValueError, match="condition is too large for SQLite"):
            ids_where(truth, deep)
    with pytest.raises(TypeError, match=r"condition must be built with mmfast\.col"):
        ids_where(truth, "a = 1")  # type: ignore[arg-type]


def test_an_indexed_column_is_looked_up(tmp_path: Path) -> None:
    documents: list[dict[str, Any] | None] = [{"it's": number, "b": number % 7} for number in range(100)]
    with (
        make(tmp_path / "store", documents, indexed_columns=["it's", "b.c"]) as truth,
        truth._database.read() as reader,
    ):
        expressions = dict(reader.execute("SELECT path, expression FROM indexed"))
        assert set(expressions) == {json_path("it's"), json_path("b.c")}
        for condition in (col("it's") == 3, col("it's").is_in([3, 4]), col("it's") < 2.5, col("it's") == "x"):
            text, parameters = condition.sql(expressions)
            plan = reader.execute(f"EXPLAIN QUERY PLAN SELECT id FROM documents WHERE {text}", parameters).fetchall()
            assert any("USING INDEX documents_by_" in line[-1] for line in plan), plan
    with Truth.open(tmp_path / "store", indexed_columns=["b", "it's"]) as truth:
        assert ids_where(truth, col("b") == 3).tolist() == list(range(3, 100, 7))


def test_what_conditions_allow_is_remembered_until_something_changes(tmp_path: Path) -> None:
    fulfil = col("a") >= 1
    with make(tmp_path / "index", ROWS) as truth, Truth.open(tmp_path / "index", read_only=True) as reader:
        changes: list[Callable[[], object]] = [
            lambda: truth.add([100], np.zeros((1, 1), dtype=np.int8), [{"a": 7}]),
            lambda: truth.upsert([100], np.zeros((1, 1), dtype=np.int8), [{"a": 0}]),
            lambda: truth.update_metadata([100, 0], [{"a": 9}, {"a": 9}]),
            lambda: truth.update_metadata([0], [None], replace=True),
            lambda: truth.remove([100]),
        ]
        wanted: list[set[int]] = [{100}, set(), {0, 100}, {100}, set()]
        before = set(ids_where(truth, fulfil).tolist())
        for change, more in zip(changes, wanted, strict=True):
            for each in (truth, reader):
                assert each.filter(fulfil) is each.filter(col("a") >= 1)
            change()
            for each in (truth, reader):
                assert set(ids_where(each, fulfil).tolist()) == before | more
        # Values that are equal in Python, and columns whose names are equal when joined.
        alike = [col("a") == 1, col("a") == True, col("a") == "1", col("a.b") == 1, col(["a.b"]) == 1]  # noqa: E712
        assert len({tuple(ids_where(truth, each).tolist()) for each in alike * 2}) == len(alike)
        first = truth.filter(fulfil)
        for n in range(2, 9):
            truth.filter(col("a") >= n)
        assert truth.filter(fulfil) is first
        for n in range(2, 10):
            truth.filter(col("a") >= n)
        assert truth.filter(fulfil) is not first  # that of eight others
        first = truth.filter(col("z") != 1)  # every row; there is room for two ids a row
        truth.filter(col("z") != 2)
        assert truth.filter(col("z") != 1) is first
        truth.filter(col("z") != 3)
        assert truth.filter(col("z") != 1) is first
        truth.filter(col("z") != 2)
        truth.filter(col("z") != 3)
        assert truth.filter(col("z") != 1) is not first
        with pytest.raises(ValueError, match="read-only"):
            ids_where(truth, fulfil)[0] = 3


def test_conditions_tell_what_they_are() -> None:
    condition = ((col("year") > 2019) | col(["a.b"]).is_null()) & ~col("tag").is_in([1, None])
    assert repr(condition) == "((col('year') > 2019) | col(['a.b']).is_null()) & ~col('tag').is_in([1, None])"
