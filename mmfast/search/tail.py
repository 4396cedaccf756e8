"""The rows added since the last segment was built: searched exactly, and grown in place.

A reader holds the rows that there were when it looked. Later ones are written behind them, into room that no reader
sees, so neither waits for the other. Nor are they anyone's before a state holds them: what an error leaves there, or a
fork amid writing, the next rows are written over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search.image import Image, aligned
from mmfast.search.segment import Segment
from mmfast.search.settings import Settings
from mmfast.search.state import Part, State

_LEAST_ROOM = 256


class _Room(NamedTuple):
    keys: npt.NDArray[np.int64]  # (rows,)
    stored: npt.NDArray[Any]  # (rows, ndim)
    image: Image


class Tail:
    """Where a segment grows, if those who add rows to it are one at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._room: _Room | None = None

    def append(self, used: int, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int) -> Segment:
        """Write rows behind the first ``used``, and return all of them."""
        end = used + len(keys)
        room = self._room
        if room is None or end > len(room.keys):
            room = self._room = self._larger(room, used, max(2 * used, end, _LEAST_ROOM), stored)
        room.keys[used:end] = keys
        room.stored[used:end] = stored
        room.image.write(stored, self._settings.dtype, self._settings.metric, used, threads)
        return Segment(self._settings, room.keys[:end], room.stored[:end], room.image, tail=self)

    def _larger(self, room: _Room | None, used: int, rows: int, stored: npt.NDArray[Any]) -> _Room:
        """Return room for so many rows, which begins with those in use; readers keep the old one."""
        keys, vectors = np.zeros(rows, dtype=np.int64), aligned((rows, stored.shape[1]), stored.dtype)
        if room is None:
            frame = _C.search_frame(stored, self._settings.dtype, self._settings.metric)
            return _Room(keys, vectors, Image.empty(rows, *frame))
        keys[:used], vectors[:used] = room.keys[:used], room.stored[:used]
        return _Room(keys, vectors, room.image.with_room(rows, used))


def with_rows(
    state: State, settings: Settings, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int
) -> State:
    """Return a state with these rows in its tail, in the place of those under the same keys.

    It is to follow the state that was given, or to be forgotten, before anyone asks for another.
    """
    state = state.without(keys)
    return State(state.main, appended(state.tail, settings, keys, stored, threads)) if len(keys) else state


def appended(
    part: Part | None, settings: Settings, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int
) -> Part:
    """Return a part of the rows of another, if there is one, and of these."""
    if part is None:
        return Part(Tail(settings).append(0, keys, stored, threads))
    tail, alive = part.segment.tail, part.alive
    assert tail is not None  # as only segments with a graph have none
    if alive is not None:
        alive = np.append(alive, np.ones(len(keys), dtype=np.bool_))
    return Part(tail.append(len(part.segment), keys, stored, threads), alive)  # last: after it nothing fails
