"""The nearest-neighbour index: two engines over the same rows, behind checks and a file that can be trusted.

Each method checks its arguments first (:mod:`mmfast.search.arrays`). What an index holds is a state that never changes
(:mod:`mmfast.search.state`): a search takes the present one and needs no lock. Whoever adds or removes makes the next
one, one at a time, and Ctrl-C waits until that is done (:mod:`mmfast.search.interrupts`). New rows are searched exactly
until :mod:`mmfast.search.folding` has built a graph of them.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, folding, searching, storage
from mmfast.search.foreign import read_usearch
from mmfast.search.interrupts import uninterrupted
from mmfast.search.results import RangeResult, SearchResult
from mmfast.search.settings import Settings, as_int, check_fraction, check_int, check_radius
from mmfast.search.snapshot import pack_state, unpack_state
from mmfast.search.state import Part, State
from mmfast.search.tail import Tail
from mmfast.search.tuning import Point

if TYPE_CHECKING:
    from mmfast.search.durable import DurableIndex


class Index:
    r"""Find nearest neighbours among vectors held under integer keys: exactly, or nearly all of them in less time.

    The distance between a query q and a row x is, by metric:

    - ``"cos"``: :math:`1 - q \cdot x / (\|q\| \|x\|)`, from 0 to 2; rows and queries of any length but zero
    - ``"ip"``: :math:`1 - q \cdot x`, which falls below 0 where the inner product exceeds 1
    - ``"l2sq"``: :math:`\|q - x\|^2`

    computed in float64 from rows as rounded to ``dtype``; of rows at the same distance, the smaller key is nearer.

    Parameters
    ----------
    ndim : int
        Features of a vector.
    metric : {"cos", "ip", "l2sq"}, default "cos"
    dtype : {"bf16", "f32", "f16", "i8"}, default "bf16"
        How vectors are stored. ``"i8"`` keeps directions only, and so is for ``"cos"`` alone.
    connectivity : int, default 16
        Links of a row in the graph: more find more, in more memory. 2 to 1,024.
    expansion_add : int, default 128
        Candidates kept while the graph is built: more make a better one, in more time. 1 to 65,536.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.

    Notes
    -----
    A row takes ndim storage scalars, ndim bytes more for its 8-bit image, 28 bytes, and in the graph 4 bytes a link, at
    two links per unit of connectivity. Rows are searched exactly, in O(N) by 8-bit products, until there are enough for
    a graph to be faster; it is then built in the background, while searches go on. :meth:`build` builds it at once.
    All methods may be called from several threads. Searching needs no lock; who adds or removes waits for the others
    who do. Ctrl-C takes effect once a batch is complete, so it is in or out as a whole. Indexes can be pickled and
    copied.

    Method: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
    Small World graphs, 2018; the graph is built by USearch, and searched as csrc/graph_search.h describes.

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
    ) -> None:
        self._settings = Settings(ndim, metric, dtype, connectivity, expansion_add)
        self._lock = threading.Lock()  # of those who make the next state
        self._state = State()
        self._tail = Tail(self._settings)
        self._folder = folding.Folder()

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
        """Return the candidates kept while the graph is built."""
        return self._settings.expansion_add

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
        ValueError: keys must be new, but the index already holds 7; remove them first, or use upsert
        """
        self._put(keys, vectors, replace=False)

    def upsert(self, keys: object, vectors: object) -> None:
        """Add a copy of each vector under its key, in place of the one that was there: all of them, or none.

        Parameters, errors
        ------------------
        As for :meth:`add`, but that keys may be held.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(2, "l2sq", "f32")
        >>> index.add([7, 8], np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> index.upsert([8, 9], np.array([[5.0, 6.0], [7.0, 8.0]]))
        >>> index.get([7, 8, 9])
        array([[1., 2.],
               [5., 6.],
               [7., 8.]], dtype=float32)
        """
        self._put(keys, vectors, replace=True)

    def _put(self, keys: object, vectors: object, *, replace: bool) -> None:
        checked = arrays.check_keys(keys)
        matrix, _ = arrays.check_rows("vectors", vectors, self._settings.ndim)
        if len(checked) != len(matrix):
            raise ValueError(f"keys must be one per vector, got {len(checked)} keys for {len(matrix)} vectors")
        threads = torch.get_num_threads()
        stored = arrays.encode("vectors", matrix, self._settings.metric, self._settings.dtype, threads)

        def work() -> None:
            held = self._state.held(checked)
            if held.any() and not replace:
                raise ValueError(
                    f"keys must be new, but the index already holds {arrays.examples(checked[held])}; "
                    "remove them first, or use upsert"
                )
            self._state = self._appended(checked, stored, threads)

        uninterrupted(self._lock, work)
        self._fold_in_background(threads)

    def _put_stored(self, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int) -> None:
        """Put rows that were checked and encoded in the place of those under the same keys."""
        with self._lock:
            self._state = self._appended(keys, stored, threads)

    def _appended(self, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int) -> State:
        """Return the state with these rows in its tail; only the holder of the lock writes into the tail's room."""
        state = self._state.without(keys)
        if not len(keys):
            return state
        if state.tail is None:
            self._tail = Tail(self._settings)
        alive = state.tail.alive if state.tail else None
        if alive is not None:
            alive = np.append(alive, np.ones(len(keys), dtype=np.bool_))
        return State(state.main, Part(self._tail.append(keys, stored, threads), alive))  # last: after it nothing fails

    def search(
        self,
        queries: object,
        k: int,
        *,
        recall: float = 0.95,
        exact: bool = False,
        ef: int | None = None,
        where: object = None,
    ) -> SearchResult:
        """Find the ``k`` nearest rows of each query, nearest first.

        Parameters
        ----------
        queries : numpy.ndarray or torch.Tensor of floating point, shape (N, ndim), or (ndim,) for one
            As the vectors of :meth:`add`. They are not rounded to the storage dtype.
        k : int
            At least 1; it may exceed the number of rows.
        recall : float, default 0.95
            The share of the k nearest that is to be found on average, above 0 and at most 1. When its graph was built,
            the index measured with rows like its own which effort reaches which recall (:meth:`recall_curve`). Queries
            of another kind than the rows may reach less: :meth:`tune` measures with them.
        exact : bool, default False
            Whether to look at all rows. The engine for few rows, for small shares of them and for ``recall=1``.
        ef : int, optional
            Candidates kept while walking the graph, in place of what ``recall`` asks for.
        where : array or tensor of bool, or set, sequence, array or tensor of int, optional
            The keys that may be found: marked in a mask, in which ``where[key]`` is that of a key, or listed. As many
            of them as there are, up to k, are found.

        Returns
        -------
        SearchResult
            ``keys`` and ``distances``, of shape (N, k), or (k,) for one query.

        Raises
        ------
        TypeError, ValueError
            As :meth:`add` does for vectors, or if another argument is none of the above.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(2)
        >>> index.add([0, 1, 2], np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        >>> keys, distances = index.search(np.array([[0.0, 5.0]]), k=2)
        >>> keys
        array([[1, 2]])
        >>> index.search(np.array([[0.0, 5.0]]), k=2, where=[0, 2]).keys
        array([[2, 0]])
        """
        k = check_int("k", k, 1, 2**31 - 1)
        if ef is not None:
            ef = check_int("ef", ef, 1, 2**31 - 1)
        if not isinstance(exact, bool):
            raise TypeError(f"exact must be True or False, got {exact!r} ({type(exact).__name__})")
        options = searching.Options(check_fraction("recall", recall), exact, ef)
        asked, single, threads = self._queries(queries)
        keys, distances = searching.nearest(self._state, asked, k, options, _filter(where), threads)
        return SearchResult(keys[0], distances[0]) if single else SearchResult(keys, distances)

    def range_search(self, queries: object, radius: float, *, where: object = None) -> RangeResult:
        """Find all rows within a distance of each query, exactly, nearest first.

        Parameters
        ----------
        queries, where
            As for :meth:`search`.
        radius : float
            The largest distance, in the unit of the metric: for "l2sq" a squared one.

        Returns
        -------
        RangeResult
            ``offsets`` (N + 1,), and flat ``keys`` and ``distances``; for one query N is 1.

        Raises
        ------
        TypeError, ValueError
            As :meth:`search` does, or if the radius is not a finite number.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(2, "l2sq", "f32")
        >>> index.add([0, 1, 2], np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]))
        >>> index.range_search(np.array([[0.0, 0.0], [9.0, 9.0]]), radius=1.0)
        RangeResult(offsets=array([0, 2, 2]), keys=array([0, 1]), distances=array([1., 1.], dtype=float32))
        """
        radius = check_radius(radius)
        asked, _, threads = self._queries(queries)
        return searching.within(self._state, asked, radius, _filter(where), threads)

    def _queries(self, queries: object) -> tuple[npt.NDArray[np.float32], bool, int]:
        threads = torch.get_num_threads()
        matrix, single = arrays.check_rows("queries", queries, self._settings.ndim)
        return arrays.as_queries(matrix, self._settings.metric, threads), single, threads

    def get(self, keys: object) -> npt.NDArray[np.float32]:
        """Return the vectors of keys, as they are stored: rounded, under "cos" scaled to unit length.

        Parameters
        ----------
        keys : int, or sequence, array or tensor of integers, shape (N,)

        Returns
        -------
        numpy.ndarray of float32, shape (N, ndim)

        Raises
        ------
        KeyError
            If the index does not hold one of them.
        TypeError, ValueError
            If keys are not integers, are out of range or are repeated.

        Examples
        --------
        See :meth:`upsert`.
        """
        checked = arrays.check_keys(keys)
        state = self._state
        self._check_held(state, checked, "nothing returned")
        found = np.empty((len(checked), self.ndim), dtype=np.float32)
        for part in state.parts():
            rows = part.locate(checked)
            here = rows >= 0
            found[here] = arrays.widen(part.segment.stored[rows[here]], self.dtype)
        return found

    def remove(self, keys: object) -> int:
        """Remove keys and their vectors: all of them, or after an error none.

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

        Notes
        -----
        Removed rows keep their place until the next graph is built, which happens in the background once they are many.

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
            self._check_held(self._state, checked, "nothing removed")
            self._state = self._state.without(checked)

        uninterrupted(self._lock, work)
        self._fold_in_background(torch.get_num_threads())
        return len(checked)

    @staticmethod
    def _check_held(state: State, keys: npt.NDArray[np.int64], consequence: str) -> None:
        held = state.held(keys)
        if not held.all():
            raise KeyError(f"the index does not hold the keys {arrays.examples(keys[~held])}; {consequence}")

    def build(self) -> None:
        """Build a graph of all rows now, and measure it; searches go on meanwhile.

        The index does this by itself in the background, once many rows are new or removed. O(N log N) time; while it
        runs, some 4 bytes more a feature and row. Nothing is lost if it is interrupted.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> index = mmfast.Index(4)
        >>> index.add(range(3000), np.random.default_rng(0).standard_normal((3000, 4)))
        >>> index.build()
        >>> index.stats()["graph"], index.stats()["tail"]
        (3000, 0)
        """
        threads = torch.get_num_threads()
        with self._folder.turn():
            folding.fold(self, threads, lambda _: None)

    def _fold_in_background(self, threads: int) -> None:
        if folding.is_due(self._state):
            self._folder.start(self, threads)

    def tune(self, queries: object) -> None:
        """Measure what recall the graph reaches for queries like those given, and go by that from now on.

        Parameters
        ----------
        queries : numpy.ndarray or torch.Tensor of floating point, shape (N, ndim)
            Some hundred of the kind that will be asked. What was measured lasts until the next graph is built.

        Raises
        ------
        TypeError, ValueError
            As :meth:`search` does; if there are none.

        Examples
        --------
        >>> import mmfast, numpy as np
        >>> rng = np.random.default_rng(0)
        >>> index = mmfast.Index(4)
        >>> index.add(range(3000), rng.standard_normal((3000, 4)))
        >>> index.build()
        >>> index.tune(rng.standard_normal((100, 4)))
        >>> len(index.recall_curve()[10]) > 0
        True
        """
        asked, _, threads = self._queries(queries)
        if not len(asked):
            raise ValueError(f"queries must be some, got shape {tuple(asked.shape)}")
        main = self._state.main
        if main is not None and main.segment.links is not None:
            main.segment.measure(asked, main.alive, threads)

    def recall_curve(self) -> dict[int, list[Point]]:
        """Return what was measured of the graph: by k, tuples of ``ef``, ``recall`` and the seconds that a query takes.

        ``batch_seconds`` is for a query among many, ``single_seconds`` for one alone. Empty where there is no graph.

        Examples
        --------
        See :meth:`tune`.
        """
        main = self._state.main
        curve = main.segment.curve if main else None
        return dict(curve.points) if curve else {}

    def stats(self) -> dict[str, Any]:
        """Return in numbers what the index holds.

        Returns
        -------
        dict
            ``rows``; ``graph``, the rows in the graph; ``tail``, those added since; ``removed``, those that still take
            room; ``bytes`` in memory; ``recall``, the highest measured at k = 10, or None; ``built``, when the graph
            was, in seconds since the epoch, or None.

        Examples
        --------
        >>> import mmfast
        >>> mmfast.Index(4).stats()
        {'rows': 0, 'graph': 0, 'tail': 0, 'removed': 0, 'bytes': 0, 'recall': None, 'built': None}
        """
        state = self._state
        main = state.main.segment if state.main else None
        curve = self.recall_curve()
        return {
            "rows": state.size(),
            "graph": state.main.size() if state.main and main and main.links else 0,
            "tail": state.tail.size() if state.tail else 0,
            "removed": sum(len(part.segment) - part.size() for part in state.parts()),
            "bytes": sum(part.segment.bytes() for part in state.parts()),
            "recall": max((point[1] for point in curve[10]), default=None) if curve else None,
            "built": main.built if main else None,
        }

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._state.size()

    def __contains__(self, key: object) -> bool:
        """Tell whether the index holds the integer ``key``."""
        try:
            number = as_int(key)
        except TypeError:
            raise TypeError(f"a key is an int, got {key!r} ({type(key).__name__})") from None
        return 0 <= number < arrays.KEY_LIMIT and bool(self._state.held(np.array([number], dtype=np.int64))[0])

    def keys(self) -> npt.NDArray[np.int64]:
        """Return all keys, in no particular order.

        Examples
        --------
        >>> import mmfast
        >>> mmfast.Index(4).keys()
        array([], dtype=int64)
        """
        return np.concatenate([np.zeros(0, np.int64), *(part.keys() for part in self._state.parts())])

    @classmethod
    def open(
        cls,
        folder: storage.FilePath,
        ndim: int | None = None,
        metric: str | None = None,
        dtype: str | None = None,
        *,
        key_kind: str | None = None,
        read_only: bool = False,
        indexed_columns: Sequence[str] = (),
        connectivity: int | None = None,
        expansion_add: int | None = None,
        progress: bool = True,
    ) -> DurableIndex:
        """Open a durable index in a folder, made first where there is none.

        Parameters
        ----------
        folder : str, bytes or os.PathLike
            Its parent must exist.
        ndim, metric, dtype, connectivity, expansion_add
            As for :class:`Index`. An index that exists needs none of them; those given must agree with its own.
        key_kind : {"int", "str"}, default "int"
            What keys are; likewise.
        read_only : bool, default False
            One process at a time may write, any number may read meanwhile and see what it commits.
        indexed_columns : sequence of str, default ()
            Columns of the metadata of which SQLite keeps an index, for conditions that select few rows.
        progress : bool, default True
            Whether to show a bar on a terminal while a snapshot that is missing or damaged is built anew; needs rich.

        Returns
        -------
        DurableIndex

        Raises
        ------
        FileNotFoundError
            If there is no index and it cannot be made: read-only, no parent folder, no ndim.
        FileExistsError, NotADirectoryError
            If the folder is something else.
        BlockingIOError
            If another process has it open for writing.
        ValueError
            If a setting differs from the index's own, or the database is damaged.

        Examples
        --------
        See :class:`mmfast.search.durable.DurableIndex`.
        """
        from mmfast.search.durable import DurableIndex

        given = {
            "ndim": ndim, "metric": metric, "dtype": dtype, "connectivity": connectivity, "expansion_add": expansion_add
        }  # fmt: skip
        return DurableIndex.open(
            folder,
            given,
            key_kind=key_kind,
            read_only=read_only,
            indexed_columns=indexed_columns,
            progress=progress,
        )

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
            The file is mapped, not copied, so it must not be changed while the index lives; :meth:`save`
            may replace it.

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
        return cls._unpack(storage.map_file(name), name)

    @classmethod
    def from_usearch(cls, path: storage.FilePath) -> Index:
        """Make an index of the rows in a file that a bare USearch index saved.

        Parameters
        ----------
        path : str, bytes or os.PathLike

        Returns
        -------
        Index
            With the metric, connectivity and dtype of the file, float32 for float64. Its graph is still to be built.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is truncated, something else, of another metric or dtype, or holds what :meth:`add` refuses.

        Examples
        --------
        >>> import mmfast, numpy as np, tempfile, usearch.index
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bare = usearch.index.Index(ndim=4, metric="l2sq", dtype="f32")
        ...     _ = bare.add(np.array([7, 8]), np.eye(2, 4, dtype=np.float32))
        ...     bare.save(f"{folder}/bare.usearch")
        ...     mmfast.Index.from_usearch(f"{folder}/bare.usearch")
        Index(ndim=4, metric='l2sq', dtype='f32', 2 keys)
        """
        found = read_usearch(os.fsdecode(path))
        dtype = "f32" if found.dtype == "f64" else found.dtype
        index = cls(found.ndim, found.metric, dtype, connectivity=max(2, found.connectivity))
        rows = found.rows if found.dtype in ("f64", "f32", "f16") else arrays.widen(found.rows, found.dtype)
        index.add(found.keys, rows)
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy through the bytes of a file."""
        return type(self)._unpack, (b"".join(self._pack()), "the pickled index")

    def _pack(self) -> list[storage.Bytes]:
        return storage.pack({"settings": dataclasses.asdict(self._settings)}, pack_state(self._state))

    @classmethod
    def _unpack(cls, content: storage.Bytes, source: str) -> Index:
        meta, sections = storage.unpack(content, source)
        try:
            index = cls(**meta["settings"])
            index._state, index._tail = unpack_state(index._settings, sections)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise storage.unreadable(source, error) from error
        return index


def _filter(where: object) -> searching.Filter | None:
    """Return what ``where`` allows."""
    if where is None:
        return None
    if isinstance(where, (np.ndarray, torch.Tensor)) and where.dtype in (np.bool_, torch.bool):
        return searching.Filter(mask=arrays.check_mask("where", where, len(where) if where.ndim else 0))
    listed = list(where) if isinstance(where, (set, frozenset)) else where
    return searching.Filter(keys=arrays.check_keys(listed, "where"))
