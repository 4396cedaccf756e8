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
