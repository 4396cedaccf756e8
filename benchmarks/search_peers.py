"""Everything a user would pick to search vectors with, each used as its makers mean it to be.

Graphs have the same links, 32 a row where all rows are, and the same beam while they are built, so that they differ in
what the libraries do and not in what was asked of them. Rows and queries of the cosine are unit vectors, so its order
is that of the inner product, the fastest metric of every library. A batch goes into one call on all threads. One query
at a time gets one thread of a peer: a second would find nothing to do, and FAISS would wait for it, up to 12 ms where
other programs run. Ours gets all threads there too, and decides by itself.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mmfast
from benchmarks.providers import OURS, UnavailableError
from benchmarks.search_data import Floats

Setting = dict[str, Any]
Mask = npt.NDArray[np.bool_]  # (N,): the rows that a filter allows
Search = Callable[[Floats], Any]  # queries (n, D) -> row numbers (n, k), or (k,) for one; of any integer dtype

CONNECTIVITY = 16  # links per row in the upper layers; twice as many where all rows are
EXPANSION_ADD = 128
# Beams over k, from the least to where all graphs have passed 0.99; closest where 0.95 to 0.99 is reached.
BEAMS = (1, 1.4, 1.8, 2, 2.2, 2.5, 2.8, 3.4, 4, 4.8, 5.6, 6.8, 8, 9.5, 11, 16, 23, 32)
PROBES = (8, 16, 32, 64, 128, 256, 512)
REFINED = (2, 4, 8, 16)  # candidates over k whose distances are computed from the vectors
RECALLS = (0.9, 0.95, 0.98, 0.99)


def beams(k: int) -> list[int]:
    """Return the beams to try for k neighbours."""
    return [round(k * factor) for factor in BEAMS]


class Peer(ABC):
    """One way to search; ``build`` raises UnavailableError where it cannot run here."""

    name: str
    why: str  # it is used so
    package: str  # what pip calls it
    filters = False  # whether it takes ``where``
    one_thread_alone = True  # for one query at a time

    @abstractmethod
    def build(self, vectors: Floats, metric: str, threads: int) -> None:
        """Index all rows; they are found under their numbers."""

    @abstractmethod
    def settings(self, k: int) -> list[Setting]:
        """Return what to sweep, from the fastest on."""

    @abstractmethod
    def searcher(self, setting: Setting, k: int, threads: int, where: Mask | None = None) -> Search:
        """Return the search to time: what is done once happens here. It holds until the next one is asked for."""


class Mmfast(Peer):
    package, filters, one_thread_alone = "mmfast", True, False

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self.name = OURS if dtype == "bf16" else f"{OURS}-{dtype}"
        swept = "ef swept, recall=, exact=True" if dtype == "bf16" else "exact=True alone, for the flat index's answers"
        self.why = f"{dtype}, build() before searching; {swept}; a filter is a mask, read anew by each call"

    def build(self, vectors: Floats, metric: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._index = mmfast.Index(vectors.shape[1], metric=metric, dtype=self._dtype)
        self._index.add(np.arange(len(vectors)), vectors)
        self._index.build()

    def settings(self, k: int) -> list[Setting]:
        if self._dtype != "bf16":
            return [{"exact": True}]
        return [*({"ef": ef} for ef in beams(k)), *({"recall": recall} for recall in RECALLS), {"exact": True}]

    def searcher(self, setting: Setting, k: int, threads: int, where: Mask | None = None) -> Search:
        torch.set_num_threads(threads)
        options = setting if where is None else {**setting, "where": where}
        return lambda queries: self._index.search(queries, k, **options)[0]


class USearch(Peer):
    package = "usearch"

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self.name = f"usearch-{dtype}"
        self.why = (
            f"{dtype} storage, connectivity {CONNECTIVITY}, expansion_add {EXPANSION_ADD}; expansion_search swept"
        )

    def build(self, vectors: Floats, metric: str, threads: int) -> None:
        from usearch.index import Index

        if self._dtype == "i8" and metric != "cos":
            raise UnavailableError(f"{self.name}: it keeps directions only, and the metric is {metric}")
        form: Any = {"metric": "ip" if metric == "cos" else metric, "dtype": self._dtype}
        self._index: Any = Index(
            ndim=vectors.shape[1],
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
            enable_key_lookups=False,
            **form,
        )
        self._index.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=threads)

    def settings(self, k: int) -> list[Setting]:
        return [{"expansion": beam} for beam in beams(k)]

    def searcher(self, setting: Setting, k: int, threads: int, where: Mask | None = None) -> Search:
        self._index.expansion_search = setting["expansion"]
        return lambda queries: self._index.search(queries, k, threads=threads).keys


class Hnswlib(Peer):
    name, package = "hnswlib", "hnswlib"
    why = f"float32, M {CONNECTIVITY}, ef_construction {EXPANSION_ADD}; ef swept"

    def build(self, vectors: Floats, metric: str, threads: int) -> None:
        import hnswlib

        self._index = hnswlib.Index(space="l2" if metric == "l2sq" else "ip", dim=vectors.shape[1])
        self._index.init_index(max_elements=len(vectors), M=CONNECTIVITY, ef_construction=EXPANSION_ADD)
        self._index.add_items(vectors, np.arange(len(vectors)), num_threads=threads)

    def settings(self, k: int) -> list[Setting]:
        return [{"ef": beam} for beam in beams(k)]

    def searcher(self, setting: Setting, k: int, threads: int, where: Mask | None = None) -> Search:
        self._index.set_ef(setting["ef"])
        self._index.set_num_threads(threads)
        return lambda queries: self._index.knn_query(queries, k)[0]


class Faiss(Peer):
    """What its three indexes share: the metric's name, the threads, and a filter made ready once."""

    package, filters = "faiss-cpu", True

    def build(self, vectors: Floats, metric: str, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self._faiss: Any = faiss
        self._rows = len(vectors)
        self._index = self._make(vectors.shape[1], faiss.METRIC_L2 if metric == "l2sq" else faiss.METRIC_INNER_PRODUCT)
        if not self._index.is_trained:
            self._index.train(vectors)
        self._index.add(vectors)

    def searcher(self, setting: Setting, k: int, threads: int, where: Mask | None = None) -> Search:
        self._faiss.omp_set_num_threads(threads)
        selector = {}
        if where is not None:
            selector["sel"] = self._faiss.IDSelectorBitmap(np.packbits(where, bitorder="little"))
        parameters = self._parameters(setting, selector)
        return lambda queries: self._index.search(queries, k, params=parameters)[1]

    @abstractmethod
    def _make(self, ndim: int, metric: int) -> Any: ...

    @abstractmethod
    def _parameters(self, setting: Setting, selector: dict[str, Any]) -> Any: ...


class FaissHnsw(Faiss):
    name = "faiss-hnsw"
    why = f"IndexHNSWFlat, M {CONNECTIVITY}, efConstruction {EXPANSION_ADD}; efSearch swept"

    def settings(self, k: int) -> list[Setting]:
        return [{"efSearch": beam} for beam in beams(k)]

    def _make(self, ndim: int, metric: int) -> Any:
        index = self._faiss.IndexHNSWFlat(ndim, CONNECTIVITY, metric)
        index.hnsw.efConstruction = EXPANSION_ADD
        return index

    def _parameters(self, setting: Setting, selector: dict[str, Any]) -> Any:
        return self._faiss.SearchParametersHNSW(**setting, **selector)


class FaissIvfPq(Faiss):
    name = "faiss-ivfpq"
    why = "IndexIVFPQFastScan, 4 √N lists, 4 bits per 2 features, and IndexRefineFlat; nprobe × k_factor swept"

    def settings(self, k: int) -> list[Setting]:
        return [{"nprobe": probes, "k_factor": refined} for probes in PROBES for refined in REFINED]

    def _make(self, ndim: int, metric: int) -> Any:
        lists = max(1, min(round(4 * self._rows**0.5), self._rows // 40))  # its k-means wants 39 rows a list
        parts = next(parts for parts in range(max(1, ndim // 2), 0, -1) if ndim % parts == 0)
        scanned = self._faiss.IndexIVFPQFastScan(self._faiss.IndexFlat(ndim, metric), ndim, lists, parts, 4, metric)
        return self._faiss.IndexRefineFlat(scanned)

    def _parameters(self, setting: Setting, selector: dict[str, Any]) -> Any:
        probing = self._faiss.SearchParametersIVF(nprobe=setting["nprobe"], **selector)
        return self._faiss.IndexRefineSearchParameters(k_factor=setting["k_factor"], base_index_params=probing)


class FaissFlat(Faiss):
    name = "faiss-flat"
    why = "IndexFlatIP or IndexFlatL2: exact, every row"

    def settings(self, k: int) -> list[Setting]:
        return [{"exact": True}]

    def _make(self, ndim: int, metric: int) -> Any:
        return self._faiss.IndexFlat(ndim, metric)

    def _parameters(self, setting: Setting, selector: dict[str, Any]) -> Any:
        return self._faiss.SearchParameters(**selector)


class Svs(Peer):
    """Vamana over float32, float16 or, on Intel's processors, locally adaptive quantisation (LVQ)."""

    package = "scalable-vs"

    def __init__(self, form: str) -> None:
        self._form = form
        self.name = f"svs-{form}"
        stored = "LVQ, 4 bits and 8 of the residual" if form == "lvq" else form
        built = f"graph_max_degree {2 * CONNECTIVITY}, window_size {EXPANSION_ADD}, the usual alpha"
        self.why = f"Vamana, {stored}, {built}; search_window_size swept"

    def build(self, vectors: Floats, metric: str, threads: int) -> None:
        import svs

        distance = svs.DistanceType.L2 if metric == "l2sq" else svs.DistanceType.MIP
        parameters = svs.VamanaBuildParameters(
            alpha=1.2 if metric == "l2sq" else 0.95, graph_max_degree=2 * CONNECTIVITY, window_size=EXPANSION_ADD
        )
        if self._form != "lvq":
            stored = vectors.astype(np.float16) if self._form == "f16" else vectors
            self._index = svs.Vamana.build(parameters, stored, distance, num_threads=threads)
            return
        if not _intel():  # asked first, as the library ends the process
            raise UnavailableError(f"{self.name}: SVS has LVQ for Intel's processors only")
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/rows.fvecs"
            svs.write_vecs(vectors, path)
            loader = svs.VectorDataLoader(path, svs.DataType.float32, dims=vectors.shape[1])
            compressed = svs.LVQLoader(loader, primary=4, residual=8)
            self._index = svs.Vamana.build(parameters, compressed, distance, num_threads=threads)

    def settings(self, k: int) -> list[Setting]:
        return [{"window": beam} for beam in beams(k)]

    def searcher(self, setting: Setting, k: int, threads: int, where: Mask | None = None) -> Search:
        self._index.num_threads = threads
        self._index.search_window_size = setting["window"]
        return lambda queries: self._index.search(queries, k)[0]


def _intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def make_peers() -> dict[str, Peer]:
    """Return every peer, empty, ours first."""
    peers: list[Peer] = [
        Mmfast("bf16"),
        Mmfast("f32"),
        Svs("lvq"),
        Svs("f16"),
        Svs("f32"),
        FaissIvfPq(),
        FaissHnsw(),
        FaissFlat(),
    ]
    peers += [*(USearch(dtype) for dtype in ("i8", "bf16", "f16", "f32")), Hnswlib()]
    return {peer.name: peer for peer in peers}


def build(peer: Peer, vectors: Floats, metric: str, threads: int) -> None:
    """Build, and say what to install where a library is missing."""
    try:
        peer.build(vectors, metric, threads)
    except ImportError as error:
        raise UnavailableError(f"{peer.name}: {error} (pip install {peer.package})") from error
