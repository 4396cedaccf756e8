"""Which rows may be found: those that are there, and that the caller allows."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays
from mmfast.search.state import Mask, Part

# Keys are looked up in a mask where one of so many bytes a row holds them.
_MASK_BYTES = 8
# Of fewer of a segment's sampled keys a share is not told by the sample.
_LEAST_ALLOWED = 64


class Filter:
    """The keys that may be found: those of a boolean array indexed by key, or those listed."""

    def __init__(self, mask: Mask | None = None, keys: npt.NDArray[np.int64] | None = None) -> None:
        self.mask, self._keys = mask, keys

    @classmethod
    def of(cls, where: object) -> Filter | None:
        """Return what ``where`` allows, None for all."""
        if where is None:
            return None
        if isinstance(where, (np.ndarray, torch.Tensor)) and where.dtype in (np.bool_, torch.bool):
            return cls(mask=arrays.check_mask("where", where, len(where) if where.ndim else 0))
        listed = list(where) if isinstance(where, (set, frozenset)) else where
        return cls(keys=arrays.check_keys(listed, "where"))

    def rows(self, part: Part) -> Mask:
        """Mark the rows of a part that are there and may be found."""
        segment = part.segment
        mask = self.mask
        if self._keys is not None:
            if len(self._keys) and int(self._keys.max()) < _MASK_BYTES * len(segment):
                mask = np.zeros(int(self._keys.max()) + 1, dtype=np.bool_)
                mask[self._keys] = True
            else:
                allowed = np.zeros(len(segment), dtype=np.bool_)
                rows = part.locate(self._keys)
                allowed[rows[rows >= 0]] = True
                return allowed
        assert mask is not None
        if segment.largest_key < len(mask):
            allowed = np.take(mask, segment.keys, mode="clip")
        else:
            within = segment.keys < len(mask)
            allowed = np.zeros(len(segment), dtype=np.bool_)
            allowed[within] = mask[segment.keys[within]]
        return allowed if part.alive is None else allowed & part.alive


class Allowed:
    """The rows of a part that may be found; where a walk can ask for keys, not all are looked at."""

    def __init__(self, part: Part, filter_: Filter | None) -> None:
        self._part, self._filter = part, filter_

    @cached_property
    def mask(self) -> Mask | None:
        """Mark the rows; None for all."""
        return self._part.alive if self._filter is None else self._filter.rows(self._part)

    @cached_property
    def count(self) -> int:
        """Count the rows."""
        return len(self._part.segment) if self.mask is None else int(np.count_nonzero(self.mask))

    @cached_property
    def key_mask(self) -> tuple[Mask, float] | None:
        """Return a mask by key that says the same, and its share of the rows, where a sample tells it."""
        if self._filter is None or self._filter.mask is None or self._part.alive is not None:
            return None
        mask, keys = self._filter.mask, self._part.segment.sampled_keys
        found = int(np.count_nonzero(mask[keys[keys < len(mask)]]))
        return (mask, found / len(keys)) if found >= _LEAST_ALLOWED else None

    @property
    def share(self) -> float:
        """Return the share of the rows that may be found, or what a sample says of it."""
        return self.key_mask[1] if self.key_mask else self.count / len(self._part.segment)
