"""What an index can be asked: nothing here changes it.

A search takes the present state (:mod:`mmfast.search.state`), which never changes, and needs no lock.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search import arrays, misuse, searching
from mmfast.search.filters import Filter
from mmfast.search.graph import EXACT_ROWS
from mmfast.search.results import RangeResult, SearchResult, too_far, too_many
from mmfast.search.settings import Made, check_bool, check_choice, check_fraction, check_int, check_key, check_radius
from mmfast.search.state import State
from mmfast.search.tuning import Point

_DEFAULT = searching.Options()


class Searchable(Made):
    """The present state of an index, to be searched and read."""

    _state: State

    def search(
        self,
        queries: object,
        k: int,
        *,
        recall: float | None = None,
        exact: bool = False,
        ef: int | None = None,
        engine: Literal["exact", "graph"] | None = None,
        where: object = None,
    ) -> SearchResult:
        """Find the ``k`` nearest rows of each query, nearest first.

        Parameters
        ----------
        queries : numpy.ndarray or torch.Tensor of floating point, shape (N, ndim), or (ndim,) for one
            As the vectors of :meth:`add`. They are not rounded to the storage dtype.
        k : int
            At least 1; it may exceed the number of rows, but room is made for as many.
        recall : float, default 0.95
            The share of the k nearest that is to be found on average, above 0 and at most 1. When its graph was built,
            the index measured with rows like its own which effort reaches which recall (:meth:`recall_curve`). Queries
            of another kind than the rows may reach less: :meth:`tune` measures with them.
        exact : bool, default False
            Whether to look at all rows, in place of what ``recall`` asks for. The engine for few rows, for small shares
            of them and for ``recall=1``.
        ef : int, optional
            Candidates kept while walking the graph, likewise. Of the three one at most is to be given.
        engine : {"exact", "graph"}, optional
            The engine, in place of the one that takes less time: "exact" is ``exact=True``; "graph" walks the graph,
            with ``ef`` candidates, or those that ``recall`` takes by what was measured, or else the most that were.
            Rows added since the graph was built are searched exactly, and so is what a walk finds too few of.
        where : array or tensor of bool, or set, sequence, array or tensor of int, optional
            The keys that may be found: marked in a mask, in which ``where[key]`` is that of a key, or listed, once or
            more often. As many of them as there are, up to k, are found; a mask that marks none of those held is
            warned of, and one of the integers 0 and 1, for each row, refused.

        Returns
        -------
        SearchResult
            ``keys`` and ``distances``, of shape (N, k), or (k,) for one query.

        Raises
        ------
        TypeError, ValueError
            As :meth:`add` does for vectors, if another argument is none of the above, or if the engine is to be
            "graph" while there is none.
        MemoryError
            If there is no room for k neighbours of each query.

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
        options = _options(recall, exact, ef, engine)
        asked, single, threads = self._queries(queries)
        state = self._state
        allowed = None if where is None else _allowed(where, state)
        if engine == "graph" and (state.main is None or state.main.segment.walker is None):
            raise ValueError(
                "engine='graph' needs a graph, and the index has none yet: call build(), which makes one of more than "
                f"{EXACT_ROWS:,} different vectors"
            )
        try:
            keys, distances = searching.nearest(state, asked, k, options, allowed, threads)
        except MemoryError as error:
            raise too_many(k, len(asked)) from error
        if allowed and len(keys) and keys[0, 0] < 0:
            misuse.warn_of_mask(allowed, state)
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
        MemoryError
            If there is no room for what is found: up to 12 bytes for each query and row, and 16 more meanwhile. A
            system that promises more memory than it has may end the process instead.

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
        state = self._state
        allowed = None if where is None else _allowed(where, state)
        try:
            found = searching.within(state, asked, radius, allowed, threads)
        except MemoryError as error:
            raise too_far(radius, len(asked)) from error
        if allowed and not len(found.keys):
            misuse.warn_of_mask(allowed, state)
        return found

    def _queries(self, queries: object) -> tuple[npt.NDArray[np.float32], bool, int]:
        threads = torch.get_num_threads()
        matrix, single = arrays.check_rows("queries", queries, self._settings.ndim)
        return arrays.as_queries(matrix, self._settings.metric, threads), single, threads

    def get(self, keys: object) -> npt.NDArray[np.float32]:
        """Return the vectors of keys, as they are stored: rounded, under "cos" scaled to unit length.

        Parameters
        ----------
        keys : int, or sequence, array or tensor of integers, shape (N,)
            In any order, and repeated where they are, as neighbours of several queries may be.

        Returns
        -------
        numpy.ndarray of float32, shape (N, ndim)
            A row for each of the keys.

        Raises
        ------
        KeyError
            If the index does not hold one of them.
        TypeError, ValueError
            If keys are not integers or are out of range.

        Examples
        --------
        See :meth:`upsert`.
        """
        checked = arrays.check_keys(keys, distinct=False)
        state = self._state
        self._check_held(state, checked, "nothing returned")
        found = np.empty((len(checked), self.ndim), dtype=np.float32)
        for part in state.parts():
            rows = part.locate(checked)
            here = rows >= 0
            found[here] = arrays.widen(part.segment.stored[rows[here]], self.dtype)
        return found

    @staticmethod
    def _check_held(state: State, keys: npt.NDArray[np.int64], consequence: str) -> None:
        held = state.held(keys)
        if not held.all():
            raise KeyError(f"the index does not hold the keys {arrays.examples(keys[~held])}; {consequence}")

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
        if main is not None and main.segment.walker is not None:
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
            room; ``bytes`` of its arrays, in memory or mapped; ``recall``, what a search for 10 neighbours that asks
            for nothing else reached when the graph was last measured, or None; ``built``, when the graph was, in
            seconds since the epoch, or None.

        Notes
        -----
        Each time rows added and removed amount to a tenth of the graph's, and to 1,000, the index measures in the
        background what they have cost, and takes from ``recall`` what was lost near them, unless it was tuned since the
        graph was built. No file keeps that, and a reader does not measure.

        Examples
        --------
        >>> import mmfast
        >>> mmfast.Index(4).stats()
        {'rows': 0, 'graph': 0, 'tail': 0, 'removed': 0, 'bytes': 0, 'recall': None, 'built': None}
        """
        state = self._state
        main = state.main.segment if state.main else None
        return {
            "rows": state.size(),
            "graph": state.main.size() if state.main and main and main.walker else 0,
            "tail": state.tail.size() if state.tail else 0,
            "removed": sum(part.removed() for part in state.parts()),
            "bytes": sum(part.segment.bytes() for part in state.parts()),
            "recall": main.recall(_DEFAULT.recall) if main else None,
            "built": main.built if main else None,
        }

    def __len__(self) -> int:
        """Return the number of keys."""
        return self._state.size()

    def __contains__(self, key: object) -> bool:
        """Tell whether the index holds the integer ``key``."""
        number = check_key(key)
        return number is not None and bool(self._state.held(np.array([number], dtype=np.int64))[0])

    def keys(self) -> npt.NDArray[np.int64]:
        """Return all keys, in no particular order.

        Examples
        --------
        >>> import mmfast
        >>> mmfast.Index(4).keys()
        array([], dtype=int64)
        """
        return np.concatenate([np.zeros(0, np.int64), *(part.keys() for part in self._state.parts())])


def _allowed(where: object, state: State) -> Filter | None:
    """Return what may be found."""
    misuse.refuse_condition(where)
    allowed = Filter.of(where)
    misuse.refuse_mask_of_integers(allowed, state)
    return allowed


def _options(
    recall: float | None, exact: bool, ef: int | None, engine: Literal["exact", "graph"] | None
) -> searching.Options:
    """Return how to search; of recall, ef and the exact engine one at most is given."""
    if ef is not None:
        ef = check_int("ef", ef, 1, 2**31 - 1)
    if recall is None and exact is False and engine is None:  # as most searches have it; the rest takes a microsecond
        return _DEFAULT if ef is None else searching.Options(expansion=ef)
    wanted = _DEFAULT.recall if recall is None else check_fraction("recall", recall)
    check_bool("exact", exact)
    effort: dict[str, object] = {"recall": recall, "exact": exact or None, "ef": ef}
    if engine is not None:
        check_choice("engine", engine, ("exact", "graph"))
        if exact != (engine == "exact"):  # else it says the same, or goes with recall or ef
            effort["engine"] = engine
    given = [f"{name}={value!r}" for name, value in effort.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other: leave all but one out")
    return searching.Options(wanted, "exact" if exact else engine, ef)


for _method in (Searchable.search, Searchable.range_search, Searchable.get, Searchable.tune):
    _method.__qualname__ = f"Index.{_method.__name__}"  # by which errors about missing arguments call it
