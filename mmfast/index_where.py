"""A condition on metadata from a line of text: ``year > 2019 and "noir" in title``.

Python's grammar reads the text into a tree, and the few kinds of nodes that are known here are turned into the
conditions of :func:`mmfast.col`. Nothing is evaluated.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable
from functools import reduce
from typing import Any

from mmfast.cli import UserError
from mmfast.search.conditions import Column, Condition, col

EXAMPLE = "year > 2019 and genre in ['noir', 'drama']"
GRAMMAR = """conditions of --where, as in Python:
  year >= 2019, genre == 'noir', seen == True     ==, !=, <, <=, >, >= with a number, text, True or False
  1990 <= year < 2000                             several in a row
  genre in ['noir', 'drama'], year not in [1999]  one of these values, or none of them
  'noir' in title, title.startswith('The ')       text that contains it, or begins with it
  year is None, year is not None                  no value, or no such column; or some value
  not (year > 2000 and seen == True) or year < 3  and, or, not, and parentheses
  author.name == 'Lem', col('class no') == 1      what is inside a column, and any name

!=, not in and not make the exact opposite of a comparison, so that they match rows without the column as well.
To leave those out, add: and year is not None"""
_COMPARISONS: dict[type[ast.cmpop], tuple[Callable[..., Any], Callable[..., Any]]] = {
    # as written, and with its sides exchanged
    ast.Eq: (operator.eq, operator.eq),
    ast.NotEq: (operator.ne, operator.ne),
    ast.Lt: (operator.lt, operator.gt),
    ast.LtE: (operator.le, operator.ge),
    ast.Gt: (operator.gt, operator.lt),
    ast.GtE: (operator.ge, operator.le),
}
_IN_LOWER_CASE = ("and", "or", "not", "in", "is")
_LIKE = "write 'noir' in title for text that contains it, or title.startswith('A') for how it begins"
_BETWEEN = "write 1990 <= year <= 1999"
_OF_SQL = {"like": _LIKE, "ilike": _LIKE, "between": _BETWEEN}
_CONSTANTS = {"true": "True", "false": "False", "null": "None", "none": "None"}
_WORDS = "write and, or, not in place of & | ~"
_SHOWN = 40  # characters of the text that an error repeats
_TOKENS = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[\w.]+")  # texts, and words with their dots


def parse(text: str) -> Condition:
    """Read a condition; UserError says at which character it is none."""
    line = " ".join(text.splitlines()).rstrip()
    begin = len(line) - len(line.lstrip())
    if not line:
        raise UserError(f"--where is empty; write a comparison such as {EXAMPLE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            tree = ast.parse(line[begin:], mode="eval")
        return _Reader(line[begin:], begin).condition(tree.body)
    except SyntaxError as error:
        raise UserError(_syntax(line, begin, error)) from error
    except (RecursionError, MemoryError) as error:
        raise UserError("--where is nested too deep; use in [...] for many values") from error
    except ValueError as error:  # of ast.parse, for what no text may hold
        raise UserError(f"--where cannot be read: {error}") from error


def _syntax(line: str, begin: int, error: SyntaxError) -> str:
    """Say where a text is no expression at all, and why if it is a common slip."""
    at = begin + error.offset - 1 if error.offset else len(line)
    hints = {
        "=": "write == to compare", "&": "write and", "|": "write or", "!": "write not, or != to compare",
        "<>": "write != to compare",
    }  # fmt: skip
    wrong = line[at : at + 2] if line[at : at + 2] in hints else line[at : at + 1]
    if wrong not in hints and "unterminated" not in error.msg and (slip := _slip_of(line)) is not None:
        at, word, hint = slip
        return f"--where, character {at + 1} ({word}): {hint}"
    what = error.msg.partition(" (detected")[0] if wrong else "the text ends too early"
    return f"--where, character {at + 1}: {what}; {hints.get(wrong, f'write it as in {EXAMPLE}')}"


def _slip_of(line: str) -> tuple[int, str, str] | None:
    """Return the first word outside of quotation marks that is SQL's, where it is, and what to write."""
    for found in _TOKENS.finditer(line):
        if (hint := _hint(found[0])) is not None:
            return found.start(), found[0], hint
    return None


def _hint(word: str) -> str | None:
    """Say what to write in place of a word of SQL."""
    lower = word.lower()
    return f"write {lower}, in lower case" if word != lower and lower in _IN_LOWER_CASE else _OF_SQL.get(lower)


class _Reader:
    """Turns the nodes of one text into conditions."""

    def __init__(self, text: str, begin: int) -> None:
        self._text, self._begin = text, begin

    def condition(self, node: ast.expr) -> Condition:
        """Return the condition that ``node`` is."""
        match node:
            case ast.BoolOp(op=joined, values=values):
                combine = operator.and_ if isinstance(joined, ast.And) else operator.or_
                return reduce(combine, [self.condition(value) for value in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.condition(operand)
            case ast.Compare(left=left, ops=signs, comparators=rights):
                sides = [left, *rights]
                pairs = zip(signs, sides, sides[1:], strict=False)  # a < b < c is a < b and b < c
                return reduce(operator.and_, [self._comparison(*pair) for pair in pairs])
            case ast.Call(func=ast.Attribute(value=value, attr="startswith"), args=[begin], keywords=[]):
                return self._made(begin, lambda: self._column(value).startswith(self._value(begin)))
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()) | ast.UnaryOp(op=ast.Invert()):
                raise self._error(node, _WORDS)
            case ast.Call(func=ast.Name(id=name)) if (hint := _hint(name)) is not None:  # NOT (year > 2019)
                raise self._error(node, hint)
            case ast.Call(func=ast.Attribute(attr="contains" | "is_in")):
                raise self._error(
                    node, "write 'noir' in title for text that contains it, year in [2019, 2020] for values"
                )
        if self._is_column(node):
            raise self._error(node, "a column is no condition by itself: compare it, as in year > 2019 or seen == True")
        raise self._error(node, f"expected a comparison such as {EXAMPLE}")

    def _comparison(self, sign: ast.cmpop, left: ast.expr, right: ast.expr) -> Condition:
        if isinstance(sign, (ast.In, ast.NotIn)):
            found = self._membership(left, right)
            return ~found if isinstance(sign, ast.NotIn) else found
        if isinstance(sign, (ast.Is, ast.IsNot)):
            if not (isinstance(right, ast.Constant) and right.value is None):
                raise self._error(right, "is compares with None only; write == for values")
            null = self._column(left).is_null()
            return ~null if isinstance(sign, ast.IsNot) else null
        straight, mirrored = _COMPARISONS[type(sign)]
        if self._is_column(left) and self._is_column(right):
            self._refuse_constant(left)
            self._refuse_constant(right)
            raise self._error(
                right, "a column is compared with a value; text goes in quotation marks, as in genre == 'noir'"
            )
        if self._is_column(right):
            return self._made(left, lambda: mirrored(self._column(right), self._value(left)))
        return self._made(right, lambda: straight(self._column(left), self._value(right)))

    def _membership(self, left: ast.expr, right: ast.expr) -> Condition:
        """Return the condition of ``year in [2019, 2020]``, or of ``"noir" in title``."""
        if isinstance(right, (ast.List, ast.Tuple, ast.Set)):
            values = [self._value(each) for each in right.elts]
            return self._made(right, lambda: self._column(left).is_in(values))
        if not self._is_column(right):
            raise self._error(
                right, "in needs a list of values, as in year in [2019, 2020], or text, as in 'noir' in title"
            )
        return self._made(left, lambda: self._column(right).contains(self._value(left)))

    def _made(self, node: ast.expr, make: Callable[[], Condition]) -> Condition:
        """Return the condition; say where the value is that it cannot be made with."""
        try:
            return make()
        except (TypeError, ValueError) as error:
            raise self._error(node, str(error)) from error

    def _is_column(self, node: ast.expr) -> bool:
        match node:
            case ast.Name():
                return True
            case ast.Attribute(value=value):
                return self._is_column(value)
            case ast.Call(func=ast.Name(id="col")):
                return True
        return False

    def _column(self, node: ast.expr) -> Column:
        """Return a column: a name, with dots, or ``col("any name")``."""
        match node:
            case ast.Call(func=ast.Name(id="col"), args=[argument], keywords=[]):
                name = self._value(argument) if isinstance(argument, ast.Constant) else self._steps(argument)
            case _ if self._is_column(node) and "(" not in self._segment(node):
                self._refuse_constant(node)
                name = "".join(self._segment(node).split())
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                raise self._error(node, _WORDS)
            case ast.BinOp():
                name = "".join(self._segment(node).split())
                raise self._error(node, f"nothing is calculated here; if it is a column's name, write col({name!r})")
            case _:
                raise self._error(node, "expected a column, such as year, author.name or col('any name')")
        try:
            return col(name)
        except (TypeError, ValueError) as error:
            raise self._error(node, str(error)) from error

    def _steps(self, node: ast.expr) -> list[Any]:
        if not isinstance(node, ast.List):
            raise self._error(
                node, "col takes a name in quotation marks, or a list of steps: col(['author', 'e.mail'])"
            )
        return [self._value(each) for each in node.elts]

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
                raise self._error(node, _WORDS)
        self._refuse_constant(node)
        if self._is_column(node):
            raise self._error(node, "expected a value; text goes in quotation marks, as in genre == 'noir'")
        raise self._error(node, "expected a number, text in quotation marks, True, False or None")

    def _refuse_constant(self, node: ast.expr) -> None:
        """Refuse the constants of JSON and of SQL, which Python would take for names."""
        name = node.id.lower() if isinstance(node, ast.Name) else ""
        if name in _CONSTANTS:
            raise self._error(
                node, f"write {_CONSTANTS[name]} for the value, or col({self._segment(node)!r}) for a column"
            )

    def _segment(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or ""

    def _error(self, node: ast.expr, message: str) -> UserError:
        """Return the error that says where ``node`` is."""
        before = self._text.encode()[: node.col_offset].decode()  # the tree counts in bytes
        shown = self._segment(node)
        if len(shown) > _SHOWN:
            shown = f"{shown[:_SHOWN]}…"
        return UserError(f"--where, character {self._begin + len(before) + 1} ({shown}): {message}")
