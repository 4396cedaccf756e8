"""Conditions on metadata, written in Python and carried out by SQLite.

A condition is a small tree. Each leaf becomes SQL that is true or false, never NULL, so that ``~`` is an exact
complement and ``&`` and ``|`` mean what they say. Names and values travel as parameters, never in the text of the SQL.

Types are JSON's: a number equals no string and no truth value, though SQLite would read ``true`` as 1 and an array as a
string. Two real numbers are compared after one and the same conversion from their text, since SQLite's may differ from
Python's in the last digit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NoReturn

from mmfast.search.values import KINDS, Scalar, encodable, kind, listed, scalar, text_of

# What columns of pandas, Polars and SQL call the methods here.
_MEANT = {
    **dict.fromkeys(("isin", "in_"), "{}.is_in([...])"),
    **dict.fromkeys(("notin", "not_in", "notin_", "is_not_in"), "~{}.is_in([...])"),
    **dict.fromkeys(("isnull", "isna", "is_na", "is_none"), "{}.is_null()"),
    **dict.fromkeys(("notnull", "notna", "not_null", "is_not_null"), "~{}.is_null()"),
    **dict.fromkeys(("starts_with", "begins_with"), "{}.startswith(...)"),
    **dict.fromkeys(("like", "str"), "{}.contains(...)"),
}


def col(name: str | Sequence[str]) -> Column:
    """Name a column of the metadata, to build a condition with.

    ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` compare with a value; :meth:`Column.is_in`, :meth:`Column.between`,
    :meth:`Column.is_null`, :meth:`Column.contains` and :meth:`Column.startswith` do what they say. Conditions combine
    with ``&``, ``|`` and ``~``, and need parentheses around comparisons.

    A comparison holds where the row has a value of the same kind, number, string or truth value, that fulfils it.
    ``!=`` and ``~`` are exact complements, so they hold also for rows without the column. ``== None`` means
    :meth:`Column.is_null`. Strings compare by code point, and case matters.

    Parameters
    ----------
    name : str, or sequence of str
        Dots lead into nested objects: ``col("author.name")``. Names that contain dots go in a sequence of steps,
        ``col(["author", "e.mail"])``.

    Returns
    -------
    Column

    Raises
    ------
    TypeError
        If the name is no string.
    ValueError
        If it is empty, or has quotation marks, backslashes or control characters, which JSON paths cannot express.

    Examples
    --------
    >>> from mmfast.search.conditions import col
    >>> (col("year") > 2019) & ~col("author.name").startswith("A")
    (col('year') > 2019) & ~col('author.name').startswith('A')
    >>> 1990 <= col("year") < 2000
    Traceback (most recent call last):
    TypeError: a condition has no truth value: write & | ~ for and, or, not, with parentheses around comparisons, and \
col.between(a, b) for a <= col <= b
    """
    return Column(json_path(name), repr(name if isinstance(name, str) else list(name)))


def json_path(name: str | Sequence[str]) -> str:
    """Return the SQLite JSON path of a column."""
    if not isinstance(name, str) and not (isinstance(name, Sequence) and all(isinstance(step, str) for step in name)):
        raise TypeError(f"a column's name must be a string or a sequence of strings, got {name!r}")
    steps = name.split(".") if isinstance(name, str) else list(name)
    if not steps or not all(steps):
        raise ValueError(f"a column's name must not be empty, nor any step between its dots, got {name!r}")
    for step in steps:
        if any(character in '"\\' or character < " " for character in step) or not encodable(step):
            raise ValueError(
                f"a column's name must not have quotation marks, backslashes, control characters or lone surrogates, "
                f"got {name!r}"
            )
    return "$" + "".join(f'."{step}"' for step in steps)


class Condition:
    """What :func:`col` and its comparisons build; combine with ``&``, ``|`` and ``~``."""

    def __and__(self, other: Condition) -> Condition:
        return _combine("AND", self, other)

    def __or__(self, other: Condition) -> Condition:
        return _combine("OR", self, other)

    def __invert__(self) -> Condition:
        return self.condition if isinstance(self, _Not) else _Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a condition has no truth value: write & | ~ for and, or, not, with parentheses around comparisons, and "
            "col.between(a, b) for a <= col <= b"
        )

    def sql(self, expressions: Mapping[str, str]) -> tuple[str, list[object]]:
        """Return SQL over the column ``metadata`` and its parameters.

        ``expressions`` gives the SQL by which an indexed path is to be extracted, so that SQLite finds the index.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Column:
    """A column of the metadata, as :func:`col` names it."""

    path: str
    name: str

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return self.is_null() if other is None else self._test("=", other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return ~(self == other)

    def __lt__(self, other: object) -> Condition:
        return self._test("<", other)

    def __le__(self, other: object) -> Condition:
        return self._test("<=", other)

    def __gt__(self, other: object) -> Condition:
        return self._test(">", other)

    def __ge__(self, other: object) -> Condition:
        return self._test(">=", other)

    def is_null(self) -> Condition:
        """Hold where the row has no such column, or null in it."""
        return _Null(self)

    def is_in(self, values: Iterable[object]) -> Condition:
        """Hold where the column equals one of ``values``, however many; None among them means :meth:`is_null`."""
        given = listed(f"{self!r}.is_in", values)
        wanted = tuple(self._value(value, alone=False) for value in given if value is not None)
        return _In(self, wanted, len(wanted) < len(given))

    def between(self, low: object, high: object) -> Condition:
        """Hold where low <= column <= high."""
        return (self >= low) & (self <= high)

    def contains(self, text: str) -> Condition:
        """Hold where the column is a string with ``text`` in it."""
        return self._test("contains", text_of(f"{self!r}.contains", text))

    def startswith(self, text: str) -> Condition:
        """Hold where the column is a string that begins with ``text``."""
        return self._test("startswith", text_of(f"{self!r}.startswith", text))

    def _test(self, operator: str, other: object) -> Condition:
        value = self._value(other)
        if isinstance(value, bool) and operator != "=":
            raise TypeError(f"{self!r} {operator} {other!r}: truth values have no order; compare with == or !=")
        return _Test(self, operator, value)

    def _value(self, value: object, *, alone: bool = True) -> Scalar:
        if isinstance(value, (Column, Condition)):
            raise TypeError(f"{self!r} can be compared with values only, got {value!r}; comparisons need parentheses")
        return scalar(repr(self), value, alone=alone)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name in ("path", "name") or name.startswith("_"):  # what copying and unpickling ask for
                raise AttributeError(name)
            known = ", ".join(each for each in vars(Column) if not each.startswith("_"))
            hint = f"write {_MEANT[name].format(self)}" if name in _MEANT else f"it has {known}"
            raise AttributeError(f"{self!r} has no {name}; {hint}")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} is a column, not a condition: compare it, as in {self!r} == True")

    def _needs_parentheses(self, other: object) -> NoReturn:
        raise TypeError(
            f"& and | bind tighter than comparisons: put parentheses around them, as in ({self!r} == 1) & (...)"
        )

    __and__ = __rand__ = __or__ = __ror__ = _needs_parentheses

    def __repr__(self) -> str:
        return f"col({self.name})"


@dataclass(frozen=True, eq=False, repr=False)
class _Test(Condition):
    """One comparison with one value."""

    column: Column
    operator: str
    value: Scalar

    def sql(self, expressions: Mapping[str, str]) -> tuple[str, list[object]]:
        path = self.column.path
        if isinstance(self.value, bool):
            return "json_type(metadata, ?) IS ?", [path, "true" if self.value else "false"]
        parameters: list[object] = [path, path]
        if path in expressions:
            extracted = expressions[path]
        else:
            extracted = "json_extract(metadata, ?)"
            parameters.append(path)
        text, values = self._compared(extracted)
        # IS NOT NULL first: where the path leads nowhere, false AND NULL is false.
        types = KINDS[kind(self.value)]
        sql = f"(json_type(metadata, ?) IS NOT NULL AND json_type(metadata, ?) IN ({types}) AND {text})"
        return sql, [*parameters, *values]

    def _compared(self, extracted: str) -> tuple[str, list[object]]:
        if self.operator == "contains":
            return f"instr({extracted}, ?) > 0", [self.value]
        if self.operator == "startswith":
            return f"substr({extracted}, 1, length(?)) = ?", [self.value, self.value]
        if isinstance(self.value, float) and math.isfinite(self.value):
            return f"{extracted} {self.operator} json_extract(?, '$')", [repr(self.value)]
        return f"{extracted} {self.operator} ?", [self.value]

    def __repr__(self) -> str:
        if self.operator in ("contains", "startswith"):
            return f"{self.column!r}.{self.operator}({self.value!r})"
        return f"({self.column!r} {'==' if self.operator == '=' else self.operator} {self.value!r})"


@dataclass(frozen=True, eq=False, repr=False)
class _Null(Condition):
    column: Column

    def sql(self, expressions: Mapping[str, str]) -> tuple[str, list[object]]:
        return "COALESCE(json_type(metadata, ?), 'null') = 'null'", [self.column.path]

    def __repr__(self) -> str:
        return f"{self.column!r}.is_null()"


@dataclass(frozen=True, eq=False, repr=False)
class _In(Condition):
    column: Column
    values: tuple[Scalar, ...]
    null: bool

    def sql(self, expressions: Mapping[str, str]) -> tuple[str, list[object]]:
        # Each list is one parameter, as JSON: SQLite limits the number of parameters.
        numbers = [v for v in self.values if not isinstance(v, (bool, str)) and math.isfinite(v)]
        texts = [v for v in self.values if isinstance(v, str)]
        path = self.column.path
        extracted, own = expressions.get(path, "json_extract(metadata, ?)"), [] if path in expressions else [path]
        parts: list[str] = []
        parameters: list[object] = []
        for name, values in (("numbers", numbers), ("text", texts)):
            if values:
                parts.append(
                    f"(json_type(metadata, ?) IS NOT NULL AND json_type(metadata, ?) IN ({KINDS[name]}) "
                    f"AND {extracted} IN (SELECT value FROM json_each(?)))"
                )
                parameters += [path, path, *own, json.dumps(values)]
        others = [_Test(self.column, "=", value) for value in {v for v in self.values if isinstance(v, bool)}]
        for condition in [*others, *([_Null(self.column)] if self.null else [])]:
            text, values_of_it = condition.sql(expressions)
            parts.append(text)
            parameters += values_of_it
        return f"({' OR '.join(parts)})" if parts else "0", parameters

    def __repr__(self) -> str:
        return f"{self.column!r}.is_in({[*self.values, *([None] if self.null else [])]!r})"


@dataclass(frozen=True, eq=False, repr=False)
class _Not(Condition):
    condition: Condition

    def sql(self, expressions: Mapping[str, str]) -> tuple[str, list[object]]:
        text, parameters = self.condition.sql(expressions)
        return f"(NOT {text})", parameters

    def __repr__(self) -> str:
        return f"~{self.condition!r}"


@dataclass(frozen=True, eq=False, repr=False)
class _Many(Condition):
    """Conditions of which all or any must hold: a flat list, since SQLite limits how deep an expression is."""

    operator: str
    conditions: tuple[Condition, ...]
    _SIGNS: ClassVar[dict[str, str]] = {"AND": " & ", "OR": " | "}

    def sql(self, expressions: Mapping[str, str]) -> tuple[str, list[object]]:
        parts = [condition.sql(expressions) for condition in self.conditions]
        return _balanced([text for text, _ in parts], self.operator), [v for _, values in parts for v in values]

    def __repr__(self) -> str:
        inner = (f"({c!r})" if isinstance(c, _Many) else repr(c) for c in self.conditions)
        return self._SIGNS[self.operator].join(inner)


def asked(condition: Condition) -> dict[str, tuple[Column, set[str]]]:
    """Return by path the columns that a condition asks for, and of which kinds the values are that it compares with."""
    found: dict[str, tuple[Column, set[str]]] = {}
    for leaf in _leaves(condition):
        values = leaf.values if isinstance(leaf, _In) else (leaf.value,) if isinstance(leaf, _Test) else ()
        _, kinds = found.setdefault(leaf.column.path, (leaf.column, set()))
        kinds.update(map(kind, values))
    return found


def _leaves(condition: Condition) -> list[_Test | _Null | _In]:
    if isinstance(condition, _Many):
        return [leaf for each in condition.conditions for leaf in _leaves(each)]
    if isinstance(condition, _Not):
        return _leaves(condition.condition)
    return [condition] if isinstance(condition, (_Test, _Null, _In)) else []


def _combine(operator: str, left: Condition, right: object) -> Condition:
    if not isinstance(right, Condition):
        what = f"the column {right!r}" if isinstance(right, Column) else f"{right!r} ({type(right).__name__})"
        raise TypeError(
            f"conditions combine with conditions, got {what}; comparisons need parentheses, and a column of truth "
            'values is written col("name") == True'
        )
    parts: list[Condition] = []
    for side in (left, right):
        parts.extend(side.conditions if isinstance(side, _Many) and side.operator == operator else [side])
    return _Many(operator, tuple(parts))


def _balanced(parts: list[str], operator: str) -> str:
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return f"({_balanced(parts[:half], operator)} {operator} {_balanced(parts[half:], operator)})"
