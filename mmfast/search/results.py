"""What searches return."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class SearchResult(NamedTuple):
    """The neighbours found, nearest first: ``keys, distances = index.search(queries, k)``.

    Parameters
    ----------
    keys : numpy.ndarray of int64, shape (N, k), or (k,) for one query
        -1 where there are fewer than k neighbours.
    distances : numpy.ndarray of float32, of the same shape
        +inf where there are fewer than k neighbours.

    Examples
    --------
    >>> import mmfast, numpy as np
    >>> mmfast.SearchResult(np.array([7, -1]), np.array([0.5, np.inf], dtype=np.float32)).keys
    array([ 7, -1])
    """

    keys: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]


def padded(
    keys: npt.NDArray[np.int64], distances: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return what was found, (N, at most k), with -1 and +inf where there are fewer than k."""
    count, found = keys.shape
    if found == k:
        return keys, distances
    wide = np.full((count, k), -1, np.int64), np.full((count, k), np.inf, np.float32)
    wide[0][:, :found], wide[1][:, :found] = keys, distances
    return wide


def too_many(k: int, queries: int) -> MemoryError:
    """Return the error for neighbours that no memory can be had for."""
    return MemoryError(f"k must be smaller, got {k:,}: results of shape ({queries:,}, {k:,}) do not fit into memory")


def too_far(radius: float, queries: int) -> MemoryError:
    """Return the error for neighbours within a radius that no memory can be had for."""
    return MemoryError(
        f"radius must be smaller, or queries fewer: what {queries:,} queries find within {radius} exceeds the memory"
    )


class RangeResult(NamedTuple):
    """All neighbours within a radius, nearest first: those of query i are ``offsets[i]`` to ``offsets[i + 1]``.

    Parameters
    ----------
    offsets : numpy.ndarray of int64, shape (N + 1,)
    keys : numpy.ndarray of int64, shape (offsets[N],)
    distances : numpy.ndarray of float32, of the same shape

    Examples
    --------
    >>> import mmfast, numpy as np
    >>> found = mmfast.RangeResult(np.array([0, 2, 2]), np.array([7, 3]), np.array([0.1, 0.2], dtype=np.float32))
    >>> [found.keys[begin:end].tolist() for begin, end in zip(found.offsets, found.offsets[1:])]
    [[7, 3], []]
    """

    offsets: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float32]
