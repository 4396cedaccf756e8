"""What ``where=`` must not be, and warnings where it allows no row, most likely by mistake."""

from __future__ import annotations

import sys
import warnings

from mmfast.search.conditions import Column, Condition
from mmfast.search.filters import Filter
from mmfast.search.state import State


class EmptyFilterWarning(UserWarning):
    """A mask marks no key that is held, or a condition that no row fulfils asks for what no row has."""


def refuse_condition(where: object) -> None:
    """Refuse what only a durable index takes, and what :func:`refuse_text` does."""
    refuse_text(where)
    if isinstance(where, Condition):
        raise TypeError(
            f"where must be keys or a mask, got the condition {where!r}; metadata needs a durable index, as "
            "mmfast.Index.open makes it"
        )


def refuse_text(where: object) -> None:
    """Refuse what was meant as a condition and is none."""
    if isinstance(where, str):
        raise TypeError(
            f"where must be a condition, keys or a mask, got the text {where!r}; a condition is written "
            'mmfast.col("year") > 2000, for an index of mmfast.Index.open, and one key goes in a list'
        )
    if isinstance(where, Column):
        raise TypeError(f"where must be a condition, got the column {where!r}: compare it, as in {where!r} == True")


def refuse_mask_of_integers(allowed: Filter | None, state: State) -> None:
    """Refuse a mask by row that is not of bool: it would be read as the keys 0 and 1, over and over."""
    keys = allowed.keys if allowed else None
    if allowed and keys is not None and len(keys) > 2 and allowed.largest <= 1 and len(keys) == state.size():
        raise ValueError(
            f"where must list keys or be a mask of bool, got {len(keys):,} integers, one for each row, that are all 0 "
            "or 1: pass booleans for a mask, which is read by key, where[key], or each key once"
        )


def warn_of_mask(allowed: Filter, state: State) -> None:
    """Warn of a mask that allows none of the rows held; it may have been made by row."""
    mask = allowed.mask
    if mask is None or not state.size() or not mask.any():
        return
    if not any(allowed.rows(part).any() for part in state.parts()):
        warn(
            f"where marks {int(mask.sum()):,} of {len(mask):,} keys, of which the index holds none: a mask is read by "
            "key, where[key], not by row; list the keys to be found, or index the mask by them"
        )


def warn(message: str) -> None:
    """Warn of the line outside this package that called."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("mmfast."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, EmptyFilterWarning, stacklevel=level)
