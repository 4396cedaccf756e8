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
