"""Exact search through vectors that need no index: 8-bit products screen, float64 decides (csrc/exact_search.h)."""

from __future__ import annotations

import torch

from mmfast import _C
from mmfast.search import arrays
from mmfast.search.image import encode
from mmfast.search.results import SearchResult, padded, too_many
from mmfast.search.settings import METRICS, check_choice, check_int


def exact_search(queries: object, vectors: object, k: int, *, metric: str = "cos", mask: object = None) -> SearchResult:
    r"""Find the ``k`` nearest of ``vectors`` for each query, exactly, without forming the matrix of distances.

    The distance between a query q and a row x is :math:`1 - q \cdot x / (\|q\| \|x\|)` for ``"cos"``,
    :math:`1 - q \cdot x` for ``"ip"`` and :math:`\|q - x\|^2` for ``"l2sq"``, computed in float64 from the numbers as
    given (float64 input is rounded to float32). Of rows at the same distance the one with the smaller number is nearer.

    Parameters
    ----------
    queries : numpy.ndarray or torch.Tensor of floating point, shape (Q, D), or (D,) for one
    vectors : numpy.ndarray or torch.Tensor of floating point, shape (N, D)
        float32, float16 and bfloat16 rows that are contiguous and on the CPU are not copied.
    k : int
        At least 1; it may exceed N, but room is made for as many.
    metric : {"cos", "ip", "l2sq"}, default "cos"
    mask : numpy.ndarray or torch.Tensor of bool, shape (N,), optional
        True for the rows that may be found.

    Returns
    -------
    SearchResult
        ``keys``, the numbers of the rows found, and ``distances``, of shape (Q, k), or (k,) for one query; -1 and +inf
        where there are fewer than k rows.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above, if shapes do not fit, or if a row holds NaN or infinity, is so long that
        distances overflow, or is zero under "cos".
    MemoryError
        If there is no room for k neighbours of each query.

    Notes
    -----
    O(Q N D) time at one byte per number, on ``torch.get_num_threads()`` threads; about D + 20 bytes of memory a row.
    To search the same vectors again, build a :class:`mmfast.Index` and search it with ``exact=True``.

    Examples
    --------
    >>> import mmfast, torch
    >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> mmfast.exact_search(torch.tensor([2.0, 1.0]), vectors, 2).keys
    array([2, 0])
    """
    check_choice("metric", metric, METRICS)
    k = check_int("k", k, 1, 2**31 - 1)
    threads = torch.get_num_threads()
    matrix = arrays.check_matrix("vectors", vectors)
    asked, single = arrays.check_rows("queries", queries, matrix.shape[1])
    allowed = None if mask is None else arrays.check_mask("mask", mask, len(matrix))
    stored, dtype = arrays.as_stored("vectors", matrix, metric, threads)
    image = encode(stored, dtype, metric, threads)
    rows = _C.VectorSet(stored, dtype, metric, *image, None)
    checked = arrays.as_queries(asked, metric, threads)
    try:
        found = rows.search(checked, max(min(k, len(matrix)), 1), allowed, False, threads)
        keys, distances = padded(*found, k)
    except MemoryError as error:
        raise too_many(k, len(checked)) from error
    return SearchResult(keys[0], distances[0]) if single else SearchResult(keys, distances)
