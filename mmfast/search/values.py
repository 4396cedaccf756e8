"""Values that columns of the metadata are compared with: numbers, text and truth values, as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Scalar = bool | int | float | str

# The kinds of values that there are, and SQLite's types of each.
KINDS = {
    "numbers": "'integer', 'real'", "text": "'text'", "truth values": "'true', 'false'", "lists": "'array'",
    "objects": "'object'",
}  # fmt: skip
_SHOWN = 200  # characters of a value, in errors


def kind(value: Scalar) -> str:
    """Return the name of the value's kind."""
    return "truth values" if isinstance(value, bool) else "text" if isinstance(value, str) else "numbers"


def scalar(column: str, value: object, *, alone: bool = True) -> Scalar:
    """Return a value to compare with, ``alone`` or as one of many, as a plain bool, int, float or str."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (bool, int, float, str)):
        hint = _hint(value) if alone else ""
        raise TypeError(f"{column} can be compared with bool, int, float and str, got {_shown(value)}{hint}")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{column} compared with NaN never holds; use is_null() for missing values")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{column} can be compared with integers of 64 bits, got {value}; compare with a float")
    if isinstance(value, str) and ("\0" in value or not encodable(value)):
        raise ValueError(f"{column} can be compared with text without NUL and lone surrogates, got {value!r}")
    return value


def text_of(method: str, value: Any) -> str:
    """Return a string that was given to a ``method``."""
    if not isinstance(value, str):
        raise TypeError(f"{method} needs a string, got {_shown(value)}")
    return value


def listed(method: str, values: object) -> list[object]:
    """Return the values that were given to a ``method`` which takes however many."""
    if isinstance(values, (np.ndarray, Tensor)):
        if isinstance(values, np.ma.MaskedArray) or (isinstance(values, Tensor) and not _is_dense(values)):
            raise TypeError(f"{method} needs an array or tensor that holds all values, got {_shown(values)}")
        if values.ndim != 1:
            raise ValueError(f"{method} needs values in one dimension, got shape {tuple(values.shape)}")
        return list(values.tolist())
    if isinstance(values, (str, bytes, int, float, np.generic)):
        raise TypeError(f"{method} needs a list of values, got {_shown(values)}; write [{values!r}]")
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{method} needs a list of values, got {_shown(values)}")
    return list(values)


def _is_dense(tensor: Tensor) -> bool:
    return not (tensor.is_nested or tensor.is_quantized or tensor.is_meta) and tensor.layout == torch.strided


def encodable(characters: str) -> bool:
    """Tell whether a string can be stored: whether it has no lone surrogates."""
    try:
        characters.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hint(value: object) -> str:
    if value is None:
        return "; use is_null()"
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0:
        return "; use .item()"
    return "; use is_in(...)" if isinstance(value, (list, tuple, set, np.ndarray, Tensor)) else ""


def _shown(value: object) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return f"{shown} ({type(value).__name__})"
