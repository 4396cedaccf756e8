"""The rows added since the last segment was built: searched exactly, and grown in place.

A reader holds the rows that there were when it looked. Later ones are written behind them, into room that no reader
sees, so neither waits for the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search.image import Image, aligned
from mmfast.search.segment import Segment
from mmfast.search.settings import Settings

_LEAST_ROOM = 256


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
        begin, end = self._count, self._count + len(keys)
        self._make_room(end, stored)
        assert self._image is not None
        assert self._stored is not None
        self._keys[begin:end] = keys
        self._stored[begin:end] = stored
        self._image.write(stored, self._settings.dtype, self._settings.metric, begin, threads)
        segment = Segment(self._settings, self._keys[:end], self._stored[:end], self._image)
        self._count = end  # last: after an error the rows are not there
        return segment

    def _make_room(self, rows: int, stored: npt.NDArray[Any]) -> None:
        """Move everything to a larger place where it does not fit; readers keep the old one."""
        if self._stored is not None and rows <= len(self._keys):
            return
        room = max(2 * self._count, rows, _LEAST_ROOM)
        used = self._count
        keys, vectors = np.zeros(room, dtype=np.int64), aligned((room, stored.shape[1]), stored.dtype)
        if self._stored is None or self._image is None:
            image = Image.empty(room, *_C.search_frame(stored, self._settings.dtype, self._settings.metric))
        else:
            keys[:used], vectors[:used] = self._keys[:used], self._stored[:used]
            image = self._image.with_room(room, used)
        self._keys, self._stored, self._image = keys, vectors, image
