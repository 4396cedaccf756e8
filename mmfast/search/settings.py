"""What an index is made with, checked: by the user, and again when a file brings it."""

from __future__ import annotations

import math
import operator
import sys
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

METRICS = ("cos", "ip", "l2sq")
STORED = {"bf16": "<i2", "f32": "<f4", "f16": "<f2", "i8": "<i1"}  # NumPy's type of each storage dtype, in files
DTYPES = tuple(STORED)
FEATURE_LIMIT = 65_536  # integer sums of 8-bit products stay below 2**31
# Keys are answered as int64 and padded with -1, so they are what int64 holds from 0 on; the largest is kept free.
KEY_LIMIT = 2**63 - 1
# What others call the choices; of "l2sq" the distances are squared.
_MEANT = {
    "bfloat16": "bf16", "float32": "f32", "float": "f32", "single": "f32", "float16": "f16", "half": "f16",
    "int8": "i8", "cosine": "cos", "angular": "cos", "euclidean": "l2sq", "l2": "l2sq", "sqeuclidean": "l2sq",
    "dot": "ip", "inner_product": "ip", "innerproduct": "ip",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The arguments of :class:`mmfast.Index`, under their names."""

    ndim: int
    metric: str
    dtype: str
    connectivity: int
    expansion_add: int

    def __post_init__(self) -> None:
        """Raise for what no index can be made with; a NumPy integer becomes an int."""
        check_choice("metric", self.metric, METRICS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.dtype == "i8" and self.metric != "cos":
            raise ValueError(
                f'dtype "i8" keeps only the direction of a vector, so it needs metric "cos", got {self.metric!r}; '
                'store "bf16" instead'
            )
        bounds = {
            "ndim": (1, FEATURE_LIMIT),
            "connectivity": (2, 1_024),  # by one link a row a graph falls apart
            "expansion_add": (1, 65_536),
        }
        for name, (low, high) in bounds.items():
            object.__setattr__(self, name, check_int(name, getattr(self, name), low, high))


class Made:
    """What was made with settings, which it answers under their names."""

    _settings: Settings

    @property
    def ndim(self) -> int:
        """Return the number of features of a vector."""
        return self._settings.ndim

    @property
    def metric(self) -> str:
        """Return "cos", "ip" or "l2sq"."""
        return self._settings.metric

    @property
    def dtype(self) -> str:
        """Return the storage dtype: "bf16", "f32", "f16" or "i8"."""
        return self._settings.dtype

    @property
    def connectivity(self) -> int:
        """Return the links of a row in the graph."""
        return self._settings.connectivity

    @property
    def expansion_add(self) -> int:
        """Return the candidates kept while the graph is built."""
        return self._settings.expansion_add


def check_int(name: str, value: object, low: int, high: int) -> int:
    """Return ``value`` as an int from ``low`` to ``high``."""
    try:
        number = as_int(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:,} to {high:,}, got {number:,}")
    return number


def as_int(value: object) -> int:
    """Return an integer of any kind as an int; raise TypeError for anything else, truth values included."""
    if type(value) is int:  # what nearly all are
        return value
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
        raise TypeError("a truth value is no integer")
    return operator.index(value)  # type: ignore[arg-type]


def check_bool(name: str, value: object) -> None:
    """Check that ``value`` is a truth value."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        word = str(getattr(value, "__name__", value)).removeprefix("torch.").lower()  # of dtypes too
        meant = _MEANT.get(word, word)
        hint = f'; write "{meant}"' if meant in choices else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")


def check_fraction(name: str, value: object) -> float:
    """Return ``value`` as a float above 0 and at most 1."""
    number = _as_float(name, value)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {number}")
    return number


def check_radius(value: object) -> float:
    """Return ``value`` as a finite float."""
    number = _as_float("radius", value)
    if not math.isfinite(number):
        raise ValueError(f"radius must be finite, got {number}")
    return number


def _as_float(name: str, value: object) -> float:
    if type(value) is float:  # what nearly all are; the rest takes a microsecond
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (Real, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    try:
        return float(value)
    except OverflowError:  # of an int, which may have more digits than can be shown
        raise ValueError(
            f"{name} must be a number that a float can hold, got one beyond {sys.float_info.max}"
        ) from None


def check_key(value: object) -> int | None:
    """Return ``value`` as a key, or None for an integer that no key can be."""
    try:
        number = as_int(value)
    except TypeError:
        raise TypeError(f"a key is an int, got {value!r} ({type(value).__name__})") from None
    return number if 0 <= number < KEY_LIMIT else None
