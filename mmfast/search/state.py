"""What an index holds at one moment: a segment, the rows added since, and which of both have been removed.

A state never changes. Whoever searches takes the present one, and no one who adds or removes is in the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast.search.cached import cached
from mmfast.search.segment import Segment

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Part:
    """Rows, and which of them are still there: None for all."""

    segment: Segment
    alive: Mask | None = None

    def size(self) -> int:
        """Return how many rows are there."""
        return self._count

    @cached
    def _count(self) -> int:  # every change and every search of a reader asks
        return len(self.segment) if self.alive is None else int(np.count_nonzero(self.alive))

    def removed(self) -> int:
        """Return how many rows are not there any more."""
        return len(self.segment) - self.size()

    def locate(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the row of each key, or -1."""
        rows = self.segment.locate(keys)
        if self.alive is not None and len(self.alive):
            rows = np.where((rows >= 0) & self.alive[rows], rows, -1)
        return rows

    def without(self, rows: npt.NDArray[np.int64]) -> Part:
        """Return this part without some of its rows."""
        if not len(rows):
            return self
        alive = np.ones(len(self.segment), dtype=np.bool_) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return Part(self.segment, alive)

    def keys(self) -> npt.NDArray[np.int64]:
        """Return the keys of the rows that are there, in their order."""
        return self.segment.keys if self.alive is None else self.segment.keys[self.alive]


class State(NamedTuple):
    """The main part with its graph, if one was built, and the tail. A key is in one of them at most."""

    main: Part | None = None
    tail: Part | None = None

    def parts(self) -> tuple[Part, ...]:
        """Return the parts there are."""
        if self.main is None:
            return () if self.tail is None else (self.tail,)
        return (self.main,) if self.tail is None else (self.main, self.tail)

    def size(self) -> int:
        """Return the number of keys."""
        return sum(part.size() for part in self.parts())

    def held(self, keys: npt.NDArray[np.int64]) -> Mask:
        """Tell for each key whether it is here."""
        held = np.zeros(len(keys), dtype=np.bool_)
        for part in self.parts():
            held |= part.locate(keys) >= 0
        return held

    def without(self, keys: npt.NDArray[np.int64]) -> State:
        """Return a state without these keys."""
        left: list[Part | None] = []
        for part in self:
            if part is None:
                left.append(None)
                continue
            rows = part.locate(keys)
            part = part.without(rows[rows >= 0])
            left.append(part if part.size() else None)
        return State(*left)
