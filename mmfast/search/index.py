"""The nearest-neighbour index: USearch's graph behind checks, locks and a file that can be trusted.

USearch is fast and takes its input on trust. Each method here checks its arguments before the graph sees them
(:mod:`mmfast.search.arrays`), keeps copies of one vector out of the graph (:mod:`mmfast.search.twins`) and reads only
files whose checksum agrees (:mod:`mmfast.search.storage`). Ctrl-C waits until the graph is done
(:mod:`mmfast.search.interrupts`).

Threads: one lock lets a single call at a time into the graph. A batch is spread over ``torch.get_num_threads()``
threads inside that call, and USearch runs one search at a time anyway, so sharing it among readers would gain nothing.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, storage
from mmfast.search.graph import Graph
from mmfast.search.interrupts import uninterrupted
from mmfast.search.settings import Settings, as_int, check_int
from mmfast.search.twins import digests


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


class Index:
    r"""Find approximate nearest neighbours among vectors held under integer keys.

    The distance between a query q and a row x is, by metric:

    - ``"cos"``: :math:`1 - q \cdot x / (\|q\| \|x\|)`, from 0 to 2; rows and queries of any length but zero
    - ``"ip"``: :math:`1 - q \cdot x`, which falls below 0 where the inner product exceeds 1
    - ``"l2sq"``: :math:`\|q - x\|^2`

    and is computed from vectors rounded to ``dtype``. Indexes of up to 2,000 distinct rows are searched exactly.

    Parameters
    ----------
    ndim : int
        Features of a vector.
    metric : {"cos", "ip", "l2sq"}, default "cos"
    dtype : {"bf16", "f32", "f16", "i8"}, default "bf16"
        How vectors are stored. ``"i8"`` keeps directions only, and so is for ``"cos"`` alone.
    connectivity : int, default 16
        Links of a row in the graph: more find more, in more memory. 2 to 1,024.
    expansion_add, expansion_search : int, default 128 and 64
        Candidates kept while adding and while searching: more find more, in more time. 1 to 65,536.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.

    Notes
    -----
    Beside its ndim storage scalars a row takes 4 bytes a link, at two links per unit of connectivity, and what
    recognises copies of it: at the default some 150 bytes in a file and 240 in memory. Adding and searching cost
    O(log N) distances a row. All methods may be called from several threads; they take turns. Ctrl-C takes effect once
    a batch is complete, so it is in or out as a whole. Indexes can be pickled and copied.

    Method: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
    Small World graphs, 2018, as implemented by USearch.

    Examples
    --------
    >>> import mmfast, torch
    >>> index = mmfast.Index(2, metric="l2sq", dtype="f32")
    >>> index.add([10, 20], torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    >>> index.search(torch.tensor([3.0, 3.0]), 3)
    SearchResult(keys=array([20, 10, -1]), distances=array([ 1., 18., inf], dtype=float32))
    """

    def __init__(
        self,
        ndim: int,
        metric: str = "cos",
        dtype: str = "bf16",
        *,
        connectivity: int = 16,
        expansion_add: int = 128,
        expansion_search: int = 64,
    ) -> None:
        self._settings = Settings(ndim, metric, dtype, connectivity, expansion_add, expansion_search)
        self._lock = threading.Lock()
        self._graph = Graph(self._settings)

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
        """Return the candidates kept while adding."""
        return self._settings.expansion_add

    @property
    def expansion_search(self) -> int:
        """Return the candidates kept while searching; it can be set, for all searches that begin afterwards."""
        return self._settings.expansion_search

    @expansion_search.setter
    def expansion_search(self, value: int) -> None:
        settings = dataclasses.replace(self._settings, expansion_search=value)
        with self._lock:
            self._graph.set_expansion_search(settings.expansion_search)
            self._settings = settings

    def add(self, keys: object, vectors: object) -> None:
        """Add a copy of each vector under its key: all of them, or after an error none.

        Parameters
        ----------
        keys : int, or sequence, array or tensor of integers, shape (N,)
            From 0 to 2**63 - 2, each new to the index.
        vectors : numpy.ndarray or torch.Tensor of floating point, shape (N, ndim), or (ndim,) for one
            On any device; gradients are not followed.

        Raises
        ------
        TypeError
            If keys are not integers or vectors are not floating point.
        ValueError
            If a key is repeated, already held or out of range, shapes do not fit, or a vector holds NaN or infinity,
            overflows the storage dtype or the distance, or is zero under "cos".

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(3)
        >>> index.add(7, np.array([1.0, 2.0, 3.0]))
        >>> index.add(7, np.array([1.0, 2.0, 3.0]))
        Traceback (most recent call last):
        ValueError: keys must be new, but the index already holds 7; remove them first
        """
        checked = arrays.check_keys(keys)
        matrix, _ = arrays.check_rows("vectors", vectors, self._settings.ndim)
        if len(checked) != len(matrix):
            raise ValueError(f"keys must be one per vector, got {len(checked)} keys for {len(matrix)} vectors")
        stored = arrays.encode("vectors", matrix, self._settings.metric, self._settings.dtype)
        row_digests, threads = digests(stored), torch.get_num_threads()

        def work() -> None:
            held = self._graph.held(checked)
            if held.any():
                raise ValueError(
                    f"keys must be new, but the index already holds {arrays.examples(checked[held])}; remove them first"
                )
            self._graph.add(checked, stored, row_digests, threads)

        uninterrupted(self._lock, work)

    def search(self, queries: object, k: int) -> SearchResult:
        """Find the ``k`` nearest rows of each query, nearest first.

        Parameters
        ----------
        queries : numpy.ndarray or torch.Tensor of floating point, shape (N, ndim), or (ndim,) for one
            As the vectors of :meth:`add`.
        k : int
            At least 1; it may exceed the number of rows.

        Returns
        -------
        SearchResult
            ``keys`` and ``distances``, of shape (N, k), or (k,) for one query.

        Raises
        ------
        TypeError, ValueError
            As :meth:`add` does for vectors, or if k is not a positive int.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(2)
        >>> index.add([0, 1], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> keys, distances = index.search(np.array([[0.0, 5.0]]), k=2)
        >>> keys
        array([[1, 0]])
        """
        k = check_int("k", k, 1, 2**31 - 1)
        matrix, single = arrays.check_rows("queries", queries, self._settings.ndim)
        encoded = arrays.encode("queries", matrix, self._settings.metric, self._settings.dtype)
        keys = np.full((len(encoded), k), -1, dtype=np.int64)
        distances = np.full((len(encoded), k), np.inf, dtype=np.float32)
        threads = torch.get_num_threads()
        uninterrupted(self._lock, lambda: self._graph.search(encoded, keys, distances, threads))
        return SearchResult(keys[0], distances[0]) if single else SearchResult(keys, distances)

    def remove(self, keys: object) -> int:
        """Remove keys and their vectors: all of them, or after an error none.

        The graph keeps the place of a removed row for later ones; removing most rows of a large index leaves searches
        slow until it is built anew. Removing all of them starts afresh.

        Parameters
        ----------
        keys : int, or sequence, array or tensor of integers, shape (N,)

        Returns
        -------
        int
            How many were removed: N.

        Raises
        ------
        KeyError
            If the index does not hold one of them.
        TypeError, ValueError
            If keys are not integers, are out of range or are repeated.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(2)
        >>> index.add([0, 1], np.array([[1.0, 0.0], [0.0, 1.0]]))
        >>> index.remove(0), len(index), 0 in index
        (1, 1, False)
        """
        checked = arrays.check_keys(keys)

        def work() -> None:
            held = self._graph.held(checked)
            if not held.all():
                raise KeyError(f"the index does not hold the keys {arrays.examples(checked[~held])}; nothing removed")
            if len(checked) == len(self._graph):
                self._graph = Graph(self._settings)
            else:
                self._graph.remove(checked)

        uninterrupted(self._lock, work)
        return len(checked)

    def __len__(self) -> int:
        """Return the number of keys."""
        with self._lock:
            return len(self._graph)

    def __contains__(self, key: object) -> bool:
        """Tell whether the index holds the integer ``key``."""
        try:
            number = as_int(key)
        except TypeError:
            raise TypeError(f"a key is an int, got {key!r} ({type(key).__name__})") from None
        with self._lock:
            return 0 <= number < arrays.KEY_LIMIT and bool(self._graph.held(np.array([number], dtype=np.int64))[0])

    def __repr__(self) -> str:
        """Describe the index in one line."""
        made = self._settings
        return f"Index(ndim={made.ndim}, metric={made.metric!r}, dtype={made.dtype!r}, {len(self):,} keys)"

    def save(self, path: storage.FilePath) -> None:
        """Write the index to ``path``, in place of what was there once all of it is on the disk.

        Parameters
        ----------
        path : str, bytes or os.PathLike
            A regular file, or none yet. One that is replaced keeps its permissions.

        Raises
        ------
        OSError
            If the file cannot be written; a previous one is then unharmed, unless only its folder failed to sync.

        Examples
        --------
        >>> import mmfast, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mmfast.Index(8).save(f"{folder}/images.index")
        ...     mmfast.Index.load(f"{folder}/images.index")
        Index(ndim=8, metric='cos', dtype='bf16', 0 keys)
        """
        storage.write_atomically(path, self._pack())

    @classmethod
    def load(cls, path: storage.FilePath) -> Index:
        """Read an index that :meth:`save` wrote.

        Parameters
        ----------
        path : str, bytes or os.PathLike

        Returns
        -------
        Index
            With the settings of the one saved.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is truncated, damaged or something else.

        Examples
        --------
        See :meth:`save`.
        """
        name = os.fsdecode(path)  # open() alone would take an int, as a file descriptor
        with open(name, "rb") as file:
            content = file.read()
        return cls._unpack(content, name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy through the bytes of a file."""
        return type(self)._unpack, (b"".join(self._pack()), "the pickled index")

    def _pack(self) -> list[storage.Bytes]:
        with self._lock:
            return storage.pack(dataclasses.asdict(self._settings), self._graph.to_sections())

    @classmethod
    def _unpack(cls, content: bytes, source: str) -> Index:
        meta, sections = storage.unpack(content, source)
        try:
            index = cls(**meta)
            index._graph = Graph.from_sections(index._settings, sections)
        except (TypeError, ValueError, RuntimeError) as error:
            raise storage.unreadable(source, error) from error
        return index
