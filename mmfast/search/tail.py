"""The rows added since the last segment was built: searched exactly, and grown in place.

A reader holds the rows that there were when it looked. Later ones are written behind them, into room that no reader
sees, so neither waits for the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search.segment import Image, Segment, encode
from mmfast.search.settings import Settings

_LEAST_ROOM = 256
_PADDING = 64  # readable behind digits and terms


class Tail:
    """Room for rows, and what was written into it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._count = 0
        self._keys = np.zeros(0, dtype=np.int64)
        self._stored: npt.NDArray[Any] | None = None
        self._image: Image | None = None

    def append(self, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int) -> Segment:
        """Write rows behind those that are there, and return all of them."""
        fresh = encode(stored, self._settings, threads, self._image)
        self._make_room(self._count + len(keys), stored, fresh)
        assert self._image is not None
        assert self._stored is not None
        begin, end = self._count, self._count + len(keys)
        depth = _C.code_depth(stored.shape[1])
        self._keys[begin:end] = keys
        self._stored[begin:end] = stored
        self._image.digits[begin * depth : end * depth] = fresh.digits[: len(keys) * depth]
        self._image.terms[:, begin:end] = fresh.terms[:, : len(keys)]
        segment = Segment(self._settings, self._keys[:end], self._stored[:end], self._image)
        self._count = end  # last: after an error the rows are not there
        return segment

    def _make_room(self, rows: int, stored: npt.NDArray[Any], fresh: Image) -> None:
        """Move everything to a larger place where it does not fit; readers keep the old one."""
        if self._stored is not None and rows <= len(self._keys):
            return
        room = (max(2 * self._count, rows, _LEAST_ROOM) + _PADDING - 1) // _PADDING * _PADDING
        depth = _C.code_depth(stored.shape[1])
        keys = np.zeros(room, dtype=np.int64)
        vectors = np.zeros((room, stored.shape[1]), dtype=stored.dtype)
        digits = np.zeros(room * depth + _PADDING, dtype=np.int8)
        terms = np.zeros((4, room + _PADDING), dtype=np.float32)
        if self._stored is not None and self._image is not None:
            used = self._count
            keys[:used], vectors[:used] = self._keys[:used], self._stored[:used]
            digits[: used * depth] = self._image.digits[: used * depth]
            terms[:, :used] = self._image.terms[:, :used]
        self._keys, self._stored = keys, vectors
        self._image = Image(digits, terms, fresh.centre, fresh.unit)
