"""The nearest-neighbour index: two engines over the same rows, behind checks and a file that can be trusted.

Each method checks its arguments first (:mod:`mmfast.search.arrays`). What an index holds is a state that never changes
(:mod:`mmfast.search.state`), which :mod:`mmfast.search.searchable` searches without a lock. Whoever adds or removes
makes the next one, one at a time, and Ctrl-C waits until that is done (:mod:`mmfast.search.interrupts`). New rows are
searched exactly until :mod:`mmfast.search.folding` has built a graph of them.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, folding, storage
from mmfast.search.foreign import read_usearch
from mmfast.search.interrupts import uninterrupted
from mmfast.search.searchable import Searchable
from mmfast.search.settings import Settings
from mmfast.search.snapshot import pack_state, unpack_state
from mmfast.search.state import State
from mmfast.search.tail import with_rows

if TYPE_CHECKING:
    from mmfast.search.durable import DurableIndex


class Index(Searchable):
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
    A row takes ndim storage scalars, ndim bytes more for its 8-bit image, 32 bytes, and in the graph 4 bytes a link, at
    two links per unit of connectivity; all in memory, but for :meth:`load` and :meth:`open`, whose files are mapped.
    Rows are searched exactly, in O(N) by 8-bit products, until there are enough for a graph to be faster; it is then
    built in the background, while searches go on. :meth:`build` builds it at once.
    It is built anew once many rows were added or removed since, or fewer have cost recall or speed: when they amount to
    a tenth of its rows, and to 1,000, that is measured, and again with each further tenth. The logger "mmfast" tells at
    level INFO why a graph is built in the background.
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
        self._folding = folding.Folding()
        _indexes.add(self)

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
            if not replace and (held := self._state.held(checked)).any():
                raise ValueError(
                    f"keys must be new, but the index already holds {arrays.examples(checked[held])}; "
                    "remove them first, or use upsert"
                )
            self._state = with_rows(self._state, self._settings, checked, stored, threads)

        uninterrupted(self._lock, work)
        self._fold_in_background(threads)

    def _put_stored(self, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], threads: int) -> None:
        """Put rows that were checked and encoded in the place of those under the same keys."""
        with self._lock:
            self._state = with_rows(self._state, self._settings, keys, stored, threads)

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
        Removed rows keep their place until the next graph is built, which happens in the background once they are many,
        or have cost recall or speed.

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

    def build(self) -> None:
        """Build a graph of all rows now, and measure it; searches go on meanwhile.

        The index does this by itself in the background, as its notes say. O(N log N) time; while it
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
        folding.fold(self, torch.get_num_threads(), lambda _: None)

    def _fold_in_background(self, threads: int) -> None:
        if folding.is_due(self._state):
            self._folding.start(self, threads)

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
            Whether opening waits while a graph that is missing or damaged is built anew, and shows a bar on a terminal,
            with rich. Without, it is built in the background, and all rows are searched exactly until it is there.

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
        FileNotFoundError, IsADirectoryError
            If there is no such file, or a folder, as :meth:`open` makes.
        ValueError
            If the file is truncated, damaged or something else.

        Examples
        --------
        See :meth:`save`.
        """
        name = storage.as_name("path", path)  # open() alone would take an int, as a file descriptor
        if os.path.isdir(name):
            raise IsADirectoryError(f"{name} is a folder, and load reads a file; open a folder with mmfast.Index.open")
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
        found = read_usearch(storage.as_name("path", path))
        dtype = "f32" if found.dtype == "f64" else found.dtype
        index = cls(found.ndim, found.metric, dtype, connectivity=max(2, found.connectivity))
        rows = found.rows if found.dtype in ("f64", "f32", "f16") else arrays.widen(found.rows, found.dtype)
        try:
            index.add(found.keys, rows)
        except ValueError as error:  # keys more than once, as multi=True has them, or odd rows
            raise ValueError(f"{storage.as_name('path', path)}: {error}") from error
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
            index._state = unpack_state(index._settings, sections)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise storage.unreadable(source, error) from error
        return index


_indexes: weakref.WeakSet[Index] = weakref.WeakSet()


def _forget_parent() -> None:
    """Forget who holds the locks: threads of the parent, that the child has not. States are whole at any moment."""
    for index in list(_indexes):
        index._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
