from typing import Any

from numpy.typing import NDArray

Rows = NDArray[Any]

def pair_hinge(
    x: Rows,
    x_labels: Rows,
    y: Rows | None,
    y_labels: Rows | None,
    margin: float,
    reduction: str,
    ignore_index: int,
    x_gradient: Rows | None,
    y_gradient: Rows | None,
    threads: int,
) -> float: ...
def cpu_tier() -> str: ...
def cpu_tiers_available() -> list[str]: ...
def select_cpu_tier(name: str) -> None: ...
def enable_pruning(enabled: bool) -> None: ...
def hold_sqlite_at_forks(alloc: int, try_address: int, leave_address: int) -> None: ...
def sum_of_texts(ids: bytes, texts: bytes, after: int) -> tuple[int, int] | None: ...
def search_frame(vectors: Rows, dtype: str, metric: str) -> tuple[Rows, float]: ...
def encode_rows(
    vectors: Rows,
    dtype: str,
    metric: str,
    coarse: Rows,
    fine: Rows,
    terms: Rows,
    centre: Rows,
    unit: float,
    begin: int,
    threads: int,
) -> None: ...
def unfit_rows(
    vectors: Rows, dtype: str, metric: str, longest: float, threads: int
) -> tuple[Rows, Rows, Rows] | None: ...
def code_width(features: int) -> int: ...
def hash_rows(rows: Rows) -> Rows: ...
def usearch_graph(content: Rows) -> tuple[Rows, Rows, Rows, Rows]: ...

class VectorSet:
    def __init__(
        self,
        vectors: Rows,
        dtype: str,
        metric: str,
        coarse: Rows,
        fine: Rows,
        terms: Rows,
        centre: Rows,
        unit: float,
        keys: Rows | None,
    ) -> None: ...
    def search(self, queries: Rows, k: int, allowed: Rows | None, ranked: bool, threads: int) -> tuple[Rows, Rows]: ...
    def set_links(self, neighbours: Rows, upper: Rows, copies: Rows, entries: int) -> None: ...
    def graph_search(
        self,
        queries: Rows,
        k: int,
        expansion: int,
        bits: int,
        allowed: Rows | None,
        ranked: bool,
        threads: int,
        allowed_keys: Rows | None = None,
    ) -> tuple[Rows, Rows, bool]: ...
    def range_search(
        self, queries: Rows, radius: float, allowed: Rows | None, ranked: bool, threads: int
    ) -> tuple[Rows, Rows, Rows]: ...
