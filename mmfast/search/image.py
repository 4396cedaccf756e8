"""The image of rows in digits of 8 bits: two planes of 4, what bounds their error, and their frame (csrc/vectors.h)."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmfast import _C

_LINE = 64  # bytes of a line of cache; as many are readable behind each array


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that begin with a line of cache: a walk waits for each line that a row touches."""
    size = prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, dtype=np.uint8)  # unlike zeros() it asks for large pages
    room.fill(0)
    begin = -room.ctypes.data % _LINE
    return room[begin : begin + size].view(dtype).reshape(shape)


class Image(NamedTuple):
    """Of any number of rows, with room for more."""

    coarse: npt.NDArray[np.uint8]
    fine: npt.NDArray[np.uint8]
    terms: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]
    unit: float

    @classmethod
    def empty(cls, rows: int, centre: npt.NDArray[np.float32], unit: float) -> Image:
        """Make room for ``rows`` in a frame."""
        (planes,), terms = sizes(rows, len(centre))
        return cls(aligned((planes,), np.uint8), aligned((planes,), np.uint8), aligned(terms, np.float32), centre, unit)

    def with_room(self, rows: int, used: int) -> Image:
        """Return a larger one that begins with the rows in use."""
        larger = Image.empty(rows, self.centre, self.unit)
        digits = used * _C.code_width(len(self.centre))
        larger.coarse[:digits], larger.fine[:digits] = self.coarse[:digits], self.fine[:digits]
        larger.terms[:, :used] = self.terms[:, :used]
        return larger

    def write(self, stored: npt.NDArray[Any], dtype: str, metric: str, begin: int, threads: int) -> None:
        """Encode rows from ``begin`` on."""
        _C.encode_rows(stored, dtype, metric, *self, begin, threads)

    def bytes(self) -> int:
        """Return the memory it takes."""
        return sum(each.nbytes for each in self[:4])


def sizes(rows: int, ndim: int) -> tuple[tuple[int], tuple[int, int]]:
    """Return the shapes of a plane and of the terms."""
    return (rows * _C.code_width(ndim) + _LINE,), (5, -(-rows // _LINE) * _LINE + _LINE)


def encode(stored: npt.NDArray[Any], dtype: str, metric: str, threads: int) -> Image:
    """Make the image of rows in the frame that suits them."""
    image = Image.empty(len(stored), *_C.search_frame(stored, dtype, metric))
    image.write(stored, dtype, metric, 0, threads)
    return image
