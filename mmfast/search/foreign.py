"""Read the rows in a file of a bare USearch index (its layout: csrc/usearch_file.h).

Such a file has no checksum, and USearch itself follows whatever it reads. Here only rows and keys are taken, within
bounds; the graph is built anew.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast import _C
from mmfast.search.storage import map_file

_METRICS = {b"c": "cos", b"i": "ip", b"e": "l2sq"}
_SCALARS = {4: ("bf16", "<i2"), 10: ("f64", "<f8"), 11: ("f32", "<f4"), 12: ("f16", "<f2"), 23: ("i8", "<i1")}
_HEAD = struct.Struct("<7s3HcBBBQQQ")
_REMOVED = -1
_REFUSED = "is not an index of USearch that mmfast can read (cos, ip or l2sq over f64, f32, f16, bf16 or i8)"


class Foreign(NamedTuple):
    """What a file holds."""

    ndim: int
    metric: str
    dtype: str  # "f64" too
    connectivity: int
    keys: npt.NDArray[np.int64]
    rows: npt.NDArray[Any]  # as stored


def read_usearch(name: str) -> Foreign:
    """Return the rows of a file; ValueError says what is wrong with it."""
    mapped = map_file(name)
    content = np.frombuffer(mapped, np.uint8)
    try:
        keys, _, neighbours, _ = _C.usearch_graph(content)
        rows, row_bytes = struct.unpack_from("<II", mapped)
        _, _, _, _, metric, scalar, *_, ndim = _HEAD.unpack_from(mapped, 8 + rows * row_bytes)
        dtype, numpy_dtype = _SCALARS[scalar]
        matrix = content[8 : 8 + rows * row_bytes].view(numpy_dtype).reshape(rows, ndim)
        alive = keys != _REMOVED
        return Foreign(ndim, _METRICS[metric], dtype, neighbours.shape[1] // 2, keys[alive], matrix[alive])
    except KeyError:
        found = f"USearch's metric {metric.decode('latin-1')!r} over vectors of its kind {scalar}"
        raise ValueError(f"{name} {_REFUSED}: it has {found}") from None
    except (ValueError, struct.error) as error:
        raise ValueError(f"{name} {_REFUSED}: {error}") from error
