"""Which rows may be found: those that are there, and that the caller allows."""

from __future__ import annotations

from collections import OrderedDict
from threading import RLock
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays
from mmfast.search.cached import cached
from mmfast.search.segment import Segment
from mmfast.search.state import Mask, Part

# Keys are looked up in a mask where one of so many bytes a row holds them.
_MASK_BYTES = 8
# Of fewer of a segment's sampled keys a share is not told by the sample.
_LEAST_ALLOWED = 64
_REMEMBERED = 8  # filters of conditions


class Filter:
    """The keys that may be found: those of a boolean array indexed by key, or those listed."""

    def __init__(self, mask: Mask | None = None, keys: npt.NDArray[np.int64] | None = None) -> None:
        self.mask, self.keys = mask, keys
        self._rows: WeakKeyDictionary[Segment, Mask] = WeakKeyDictionary()

    @classmethod
    def of(cls, where: object) -> Filter | None:
        """Return what ``where`` allows, None for all."""
        if where is None or isinstance(where, Filter):
            return where
        if isinstance(where, (np.ndarray, torch.Tensor)) and where.dtype in (np.bool_, torch.bool):
            return cls(mask=arrays.check_mask("where", where, len(where) if where.ndim else 0))
        listed = list(where) if isinstance(where, (set, frozenset)) else where
        return cls(keys=arrays.check_keys(listed, "where", distinct=False))

    def is_empty(self) -> bool:
        """Tell whether no key is listed."""
        return self.keys is not None and not len(self.keys)

    def by_key(self, segment: Segment) -> Mask | None:
        """Return a mask by key, None where the keys listed lie too far apart for one."""
        if self.keys is None or self.is_empty() or self.largest >= _MASK_BYTES * len(segment):
            return self.mask
        return self._marks

    def rows(self, part: Part) -> Mask:
        """Mark the rows of a part that are there and may be found."""
        allowed = self._rows.get(part.segment)
        if allowed is None:
            allowed = self._rows[part.segment] = self._rows_of(part.segment)
        return allowed if part.alive is None else allowed & part.alive

    def _rows_of(self, segment: Segment) -> Mask:
        mask = self.by_key(segment)
        if mask is not None and segment.largest_key < len(mask):
            return np.take(mask, segment.keys, mode="clip")
        allowed = np.zeros(len(segment), dtype=np.bool_)
        if mask is not None:
            within = segment.keys < len(mask)
            allowed[within] = mask[segment.keys[within]]
        elif self.keys is not None:
            rows = segment.locate(self.keys)
            allowed[rows[rows >= 0]] = True
        return allowed

    @cached
    def largest(self) -> int:
        """Return the largest of the keys listed, of which there are some."""
        assert self.keys is not None
        return int(self.keys.max())

    @cached
    def _marks(self) -> Mask:
        marks = np.zeros(self.largest + 1, dtype=np.bool_)
        marks[self.keys] = True
        return marks


class RecentFilters:
    """What the conditions asked last allow, for as long as nothing changes: together at most two ids for each row."""

    def __init__(self) -> None:
        self._lock = RLock()  # whatever interrupts a thread may search too
        self._filters: OrderedDict[str, tuple[int, Filter]] = OrderedDict()

    def get(self, condition: str, version: int) -> Filter | None:
        """Return the filter of a condition, if it is remembered and of this version."""
        with self._lock:
            of, found = self._filters.get(condition, (None, None))
            if of != version:
                return None
            self._filters.move_to_end(condition)
            return found

    def put(self, condition: str, version: int, ids: npt.NDArray[np.int64], rows: int) -> Filter:
        """Return the filter for a condition, and remember it."""
        found = Filter(keys=ids)
        with self._lock:
            self._filters[condition] = (version, found)
            self._filters.move_to_end(condition)
            while len(self._filters) > _REMEMBERED or self._ids() > 2 * rows:
                self._filters.popitem(last=False)
        return found

    def _ids(self) -> int:
        return sum(len(each.keys) for _, each in self._filters.values() if each.keys is not None)


class Allowed:
    """The rows of a part that may be found; where a walk can ask for keys, not all are looked at."""

    def __init__(self, part: Part, filter_: Filter | None) -> None:
        self._part, self._filter = part, filter_

    @cached
    def mask(self) -> Mask | None:
        """Mark the rows; None for all."""
        return self._part.alive if self._filter is None else self._filter.rows(self._part)

    @cached
    def count(self) -> int:
        """Count the rows."""
        return len(self._part.segment) if self.mask is None else int(np.count_nonzero(self.mask))

    @cached
    def _sample(self) -> tuple[Mask, int] | None:
        """Return a mask by key, and how many of the segment's sampled keys it allows."""
        segment = self._part.segment
        mask = self._filter.by_key(segment) if self._filter else None
        if mask is None:
            return None
        keys = segment.sampled_keys
        if segment.largest_key >= len(mask):
            keys = keys[keys < len(mask)]
        return mask, int(np.count_nonzero(mask.take(keys, mode="clip")))  # clip: in less time

    @property
    def key_mask(self) -> Mask | None:
        """Return a mask by key that says the same, where a sample tells its share of the rows."""
        if self._part.alive is not None or (sample := self._sample) is None:
            return None
        mask, found = sample
        return mask if found >= _LEAST_ALLOWED else None

    def share(self, enough: float) -> float:
        """Return the share of the rows that may be found, or what a sample says of it.

        Where it is at most ``enough``, that may be returned in its place, as soon as it is known.
        """
        segment, listed = self._part.segment, self._filter.keys if self._filter else None
        if listed is not None and len(listed) <= enough * len(segment):
            return enough
        if (sample := self._sample) is not None:
            found, sampled = sample[1], len(segment.sampled_keys)
            if found >= _LEAST_ALLOWED:
                if self._part.alive is None:
                    return found / sampled
            elif enough * sampled >= 2 * _LEAST_ALLOWED:  # of twice as many a sample does not hold so few
                return enough
        return self.count / len(segment)
