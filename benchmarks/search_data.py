"""Vectors to search among, and queries that are not among them: from a file, or made.

The synthetic set has the structure that decides how hard an embedding is to search, set to that of a text encoder's
384 features: variances that fall with the 0.6th power of their rank, in a rotated basis; a mean of a quarter of a row's
length; rows that share a few traits out of many, in all combinations, so that the clusters overlap; sizes of clusters
with a heavy tail; unit rows. At 20,000 rows of 384 features, beside as many of real embeddings: the median cosine to
the 1st, 10th, 100th and 1,000th neighbour is 0.62, 0.44, 0.33 and 0.22, and there 0.64, 0.47, 0.34 and 0.22; USearch
(bf16, expansion 40) finds 0.980 of the neighbours, and there 0.977; an inverted file finds more than there, 0.985
instead of 0.939.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

METRICS = ("cos", "ip", "l2sq")
# What ann-benchmarks calls them, and what others call them who write its format.
HDF5_METRICS = {"angular": "cos", "cosine": "cos", "euclidean": "l2sq", "l2": "l2sq", "dot": "ip", "ip": "ip"}
SUFFIXES = (".hdf5", ".h5", ".fvecs", ".npy")

DECAY = 0.3  # of a feature's standard deviation over its rank: half the exponent of the variance
MEAN = 0.25  # length of the mean of all rows
TRAITS = ((20, 0.4), (40, 0.3), (80, 0.3), (200, 0.3))  # how many there are to share, and the length of each
CLUSTER_ROWS, CLUSTER_LENGTH = 5, 0.35  # rows on average, and the length of what they alone share
TAIL = 0.7  # sizes of clusters fall with this power of their rank
WIDTH = 0.65  # median length of what a row adds to the centres
WIDTH_SPREAD = 0.25  # standard deviation of that length's logarithm


class DataError(ValueError):
    """Why a file, or what was asked of it, cannot be used."""


class Data(NamedTuple):
    """Rows and queries; of unit length where the metric is the cosine."""

    name: str
    rows: Floats  # (N, D)
    queries: Floats  # (Q, D)
    metric: str
    neighbours: Ints | None = None  # (Q, K): what the file says they are, nearest first


def synthetic(rows: int, ndim: int, queries: int, seed: int = 0) -> Data:
    """Return the same data for the same arguments; queries are drawn as the rows are."""
    if rows < 1 or ndim < 1 or queries < 1:
        raise DataError(f"rows, ndim and queries must be at least 1, got {rows}, {ndim} and {queries}")
    generator = np.random.default_rng(seed)
    total = rows + queries
    spectrum = np.arange(1, ndim + 1) ** -DECAY
    spectrum /= np.linalg.norm(spectrum)  # then a row drawn with it is about as long as 1
    basis = np.linalg.qr(generator.normal(size=(ndim, ndim)))[0]
    small = max(1, total // CLUSTER_ROWS)
    centres = MEAN * basis[0] + CLUSTER_LENGTH * spectrum * generator.normal(size=(small, ndim))
    for traits, length in TRAITS:
        vectors = length * spectrum * generator.normal(size=(traits, ndim))
        centres += vectors[_heavy_tailed(traits, small, generator)]
    labels = _heavy_tailed(small, total, generator)
    widths = WIDTH * np.exp(WIDTH_SPREAD * generator.normal(size=small))
    made = generator.standard_normal((total, ndim), dtype=np.float32)
    made *= (widths[labels, None] * spectrum).astype(np.float32)
    made += centres[labels].astype(np.float32)
    made = _unit("rows", made @ basis.astype(np.float32))
    return Data(f"synthetic, {rows:,} × {ndim}, seed {seed}", made[:rows], made[rows:], "cos")


def _heavy_tailed(groups: int, members: int, generator: np.random.Generator) -> Ints:
    """Return the group of each member; sizes fall with a power of their rank."""
    sizes = np.arange(1, groups + 1) ** -TAIL
    return generator.choice(groups, members, p=sizes / sizes.sum())


def load(path: Path, rows: int | None, queries: int, metric: str | None, seed: int = 0) -> Data:
    """Read a file of ann-benchmarks (.hdf5), .fvecs or .npy.

    Of the first the queries are some of its own, drawn at random where there are more; of the others they are random
    rows, held back. ``rows`` is how many of the others to take at most.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: the name of a data set ends in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    generator = np.random.default_rng(seed)
    if path.suffix in (".hdf5", ".h5"):
        data = _hdf5(path, rows, queries, metric, generator)
    else:
        stored = _fvecs(path) if path.suffix == ".fvecs" else _npy(path)
        wanted = len(stored) if rows is None else min(len(stored), rows + queries)
        if wanted <= queries:
            raise DataError(f"{path} holds {len(stored):,} rows, too few to hold back {queries:,} queries")
        drawn = generator.permutation(len(stored))[:wanted]
        held_back, kept = (np.asarray(stored[np.sort(part)]) for part in (drawn[:queries], drawn[queries:]))
        data = Data(path.name, kept, held_back, metric or "cos")
    return _checked(path, data)


def _hdf5(path: Path, rows: int | None, queries: int, metric: str | None, generator: np.random.Generator) -> Data:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{path}: reading it needs h5py (pip install h5py)") from error
    try:
        with h5py.File(path, "r") as file:
            if missing := [name for name in ("train", "test", "neighbors") if name not in file]:
                raise DataError(f"{path} is no data set of ann-benchmarks: it has no {' and no '.join(missing)}")
            distance = file.attrs.get("distance", "")
            distance = distance.decode() if isinstance(distance, bytes) else str(distance)
            train, test, neighbours = (np.asarray(file[name]) for name in ("train", "test", "neighbors"))
    except OSError as error:
        raise DataError(f"{path} is no HDF5 file, or is damaged: {error}") from error
    if distance not in HDF5_METRICS:
        raise DataError(f"{path}: its distance must be one of {', '.join(HDF5_METRICS)}, got {distance!r}")
    if metric not in (None, HDF5_METRICS[distance]):
        raise DataError(f"{path} is for the distance {distance!r}, not for the metric {metric!r}")
    if neighbours.ndim != 2 or len(neighbours) != len(test):
        raise DataError(f"{path}: neighbors must have a row per row of test, got {neighbours.shape} for {test.shape}")
    asked = np.sort(generator.permutation(len(test))[:queries])
    whole = rows is None or rows >= len(train)
    if not whole:
        train = train[np.sort(generator.permutation(len(train))[:rows])]
    known = neighbours[asked].astype(np.int64) if whole else None  # they are not those of a part
    return Data(path.name, train, test[asked], HDF5_METRICS[distance], known)


def _fvecs(path: Path) -> npt.NDArray[np.float32]:
    """Read rows that are each preceded by their number of features, an int32."""
    if path.stat().st_size % 4 or not path.stat().st_size:
        raise DataError(f"{path} is no .fvecs file: {path.stat().st_size:,} bytes are not whole, or no, words of 4")
    words = np.memmap(path, "<i4", "r")
    ndim = int(words[0])
    if ndim < 1 or words.size % (ndim + 1) or (words[:: ndim + 1] != ndim).any():
        raise DataError(f"{path} is no .fvecs file: its rows are not all of the first one's {ndim} features")
    return words.reshape(-1, ndim + 1)[:, 1:].view("<f4")


def _npy(path: Path) -> npt.NDArray[np.floating]:
    try:
        stored = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no .npy file, or is damaged: {error}") from error
    found: npt.NDArray[np.floating] = stored
    return found


def _checked(path: Path, data: Data) -> Data:
    """Return the data as float32, of unit length for the cosine."""
    rows, queries = (_as_floats(path, name, part) for name, part in (("rows", data.rows), ("queries", data.queries)))
    if rows.shape[1] != queries.shape[1]:
        raise DataError(f"{path}: rows have {rows.shape[1]} features, but queries {queries.shape[1]}")
    if data.metric == "cos":
        rows, queries = (_unit(f"{path}: {name}", part) for name, part in (("rows", rows), ("queries", queries)))
    return data._replace(name=f"{data.name}, {len(rows):,} × {rows.shape[1]}", rows=rows, queries=queries)


def _as_floats(path: Path, name: str, part: npt.NDArray[np.floating]) -> Floats:
    if part.ndim != 2 or part.dtype.kind != "f" or not part.size:
        raise DataError(f"{path}: {name} must be a matrix of floating point, got {part.dtype} {part.shape}")
    floats = np.ascontiguousarray(part, dtype=np.float32)
    if not np.isfinite(floats).all():
        raise DataError(f"{path}: {name} hold NaN or infinity")
    return floats


def _unit(name: str, part: Floats) -> Floats:
    lengths = np.linalg.norm(part, axis=1, keepdims=True)
    if not lengths.all():
        raise DataError(f"{name} of zeros have no direction, and so no cosine: there are {int((lengths == 0).sum())}")
    scaled: Floats = part / lengths
    return scaled
