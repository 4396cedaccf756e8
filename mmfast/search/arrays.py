"""Turn users' arrays and tensors into what the graph stores: checked keys, and rows encoded in the storage dtype.

The graph takes whatever bytes it is given: one NaN row spoils the neighbours of good ones, float keys are cut to
integers and uint8 vectors are read as packed bits. So everything is checked here, once, and the rows are encoded here
too, which makes the stored bytes known: equal stored rows can be recognised, and 8-bit rows use their whole range.

Numerics. Under "cos" each row is divided by its largest magnitude before its norm is taken, so that no finite row
overflows or underflows. int8 keeps that largest magnitude at 127: a cosine does not see the scale, and a unit vector
of 512 features times 127 would peak near 18, using some 32 of the 255 steps.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmfast import _C
from mmfast._forks import alone_after_fork
from mmfast.search.settings import FEATURE_LIMIT, KEY_LIMIT

# Half of sqrt(float32 max): for two such rows neither the inner product nor the squared distance can overflow.
NORM_LIMIT = 9.2e18
# Rows encoded at a time: some MB of temporaries for common widths instead of a second copy of the whole batch.
_BLOCK = 4096

_TENSORS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i8": torch.int8}
_NAMES = {dtype: name for name, dtype in _TENSORS.items()}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOAT_NAMES = "float16, bfloat16, float32 or float64"
_FLOAT32 = np.dtype(np.float32)
_KEY_KINDS = "an int, or a sequence, NumPy array or dense torch tensor of integers"


def check_rows(name: str, rows: object, ndim: int) -> tuple[npt.NDArray[Any] | Tensor, bool]:
    """Return ``rows`` as a floating-point matrix (N, ndim), and whether it was a single vector (ndim,)."""
    matrix = _floating_point(name, rows)
    single = matrix.ndim == 1
    if matrix.ndim not in (1, 2) or matrix.shape[-1] != ndim:
        raise ValueError(f"{name} must have shape (N, {ndim}), or ({ndim},) for one, got {tuple(matrix.shape)}")
    return (matrix[None] if single else matrix), single


def check_matrix(name: str, rows: object) -> npt.NDArray[Any] | Tensor:
    """Return ``rows`` as a floating-point matrix (N, D) of as many features as can be searched."""
    matrix = _floating_point(name, rows)
    if matrix.ndim != 2 or not 1 <= matrix.shape[1] <= FEATURE_LIMIT:
        raise ValueError(f"{name} must have shape (N, D) with D from 1 to {FEATURE_LIMIT:,}, got {tuple(matrix.shape)}")
    return matrix


def check_mask(name: str, mask: object, rows: int) -> npt.NDArray[np.bool_]:
    """Return ``mask`` as a boolean vector (rows,)."""
    array = mask
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        if mask.is_nested or mask.layout != torch.strided or mask.is_meta:
            kind = "nested" if mask.is_nested else "meta" if mask.is_meta else "sparse"
            raise TypeError(f"{name} must be a dense tensor that holds data, got a {kind} one")
        array = mask.detach().cpu().numpy()
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray) or array.dtype != np.bool_:
        got = (
            type(mask).__name__ if isinstance(mask, np.ma.MaskedArray) else getattr(mask, "dtype", type(mask).__name__)
        )
        raise TypeError(f"{name} must be a NumPy array or a torch tensor of bool, got {got}")
    if array.shape != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), one for each row, got {array.shape}")
    return np.ascontiguousarray(array)


def _floating_point(name: str, rows: object) -> npt.NDArray[Any] | Tensor:
    if isinstance(rows, Tensor):
        if rows.is_nested or rows.is_quantized:
            kind = "nested" if rows.is_nested else "quantized"
            raise TypeError(f"{name} must be a plain tensor of {_FLOAT_NAMES}, got a {kind} one")
        if rows.layout != torch.strided:
            raise TypeError(f"{name} must be dense, got layout {rows.layout}; convert with {name}.to_dense()")
        if rows.is_meta:
            raise TypeError(f"{name} must hold data, got a tensor on the meta device")
        if rows.dtype not in _FLOATS:
            raise TypeError(f"{name} must be {_FLOAT_NAMES}, got {rows.dtype}; convert with {name}.float()")
        return rows.detach()
    if isinstance(rows, np.ndarray) and not isinstance(rows, np.ma.MaskedArray):
        if rows.dtype.kind != "f" or rows.dtype.itemsize > 8:
            raise TypeError(
                f"{name} must be float16, float32 or float64, got {rows.dtype}; convert with {name}.astype('float32')"
            )
        return np.asarray(rows)
    raise TypeError(
        f"{name} must be a NumPy array or a torch tensor, got {type(rows).__name__}; "
        f"convert with numpy.asarray({name}, dtype='float32')"
    )


def check_keys(keys: object, name: str = "keys", *, distinct: bool = True) -> npt.NDArray[np.int64]:
    """Return ``keys`` as a fresh int64 vector of keys in [0, 2**63 - 1); one integer is a vector of one."""
    array = _integers(keys, name)
    if array.ndim > 1:
        raise ValueError(f"{name} must be one integer or one-dimensional, got shape {array.shape}")
    array = array.reshape(-1)
    # Unsigned arrays have no negatives, and those beyond the limit must be seen before int64 wraps them round.
    outside = (array < 0) | (array >= KEY_LIMIT)
    if outside.any():
        raise ValueError(
            f"{name} must be at least 0 and below 2**63 - 1, got {examples(array[outside])} "
            f"at position {int(np.flatnonzero(outside)[0])}"
        )
    if distinct:
        ordered = np.sort(array)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise ValueError(f"{name} must be distinct; repeated: {examples(np.unique(repeated))}")
    return array.astype(np.int64)


def _integers(keys: object, name: str) -> npt.NDArray[Any]:
    if isinstance(keys, Tensor):
        if keys.is_nested or keys.is_quantized or keys.layout != torch.strided:
            kind = "nested" if keys.is_nested else "quantized" if keys.is_quantized else "sparse"
            raise TypeError(f"{name} must be {_KEY_KINDS}, got a {kind} tensor")
        if keys.dtype == torch.bool or keys.is_floating_point() or keys.is_complex() or keys.is_meta:
            raise TypeError(f"{name} must be integers, got a tensor of {keys.dtype} on {keys.device}")
        array = keys.detach().cpu().numpy()
    elif isinstance(keys, np.ndarray) and not isinstance(keys, np.ma.MaskedArray):
        array = np.asarray(keys)
    elif isinstance(keys, Integral) and not isinstance(keys, bool):
        if not 0 <= int(keys) < KEY_LIMIT:
            raise ValueError(f"{name} must be at least 0 and below 2**63 - 1, got {keys}")
        array = np.array(int(keys), dtype=np.int64)
    elif isinstance(keys, (list, tuple, range)):
        return _from_sequence(keys, name)
    else:
        raise TypeError(f"{name} must be {_KEY_KINDS}, got {type(keys).__name__}")
    if array.dtype.kind not in "iu":
        hint = (
            f"; pass {name}.tolist()" if array.dtype.kind == "O" else ""
        )  # the others would be cut, or are no numbers
        raise TypeError(f"{name} must be integers, got an array of {array.dtype}{hint}")
    return array


def _from_sequence(keys: list[object] | tuple[object, ...] | range, name: str) -> npt.NDArray[np.int64]:
    if isinstance(keys, range) or set(map(type, keys)) == {int}:
        try:
            return np.array(keys, dtype=np.int64)
        except OverflowError:
            pass  # said of which key below
    for position, key in enumerate(keys):
        if isinstance(key, bool) or not isinstance(key, Integral):
            raise TypeError(f"{name} must be integers, got {key!r} ({type(key).__name__}) at position {position}")
        if not 0 <= int(key) < KEY_LIMIT:
            raise ValueError(f"{name} must be at least 0 and below 2**63 - 1, got {key} at position {position}")
    return np.array([int(key) for key in keys], dtype=np.int64)  # type: ignore[call-overload]


def as_stored(name: str, rows: npt.NDArray[Any] | Tensor, metric: str, threads: int) -> tuple[npt.NDArray[Any], str]:
    """Return the matrix ``rows`` and its storage dtype, after checking that distances can be computed from it.

    What is float32, float16 or bfloat16, contiguous and on the CPU stays where it is; float64 becomes float32, under
    "cos" as directions. bfloat16, which NumPy lacks, comes as the int16 of the same bits.
    """
    if isinstance(rows, Tensor):
        tensor = _narrow(name, rows, metric) if rows.dtype == torch.float64 else rows
        if not (tensor.is_cpu and tensor.is_contiguous()):
            tensor = _gathered(tensor)
        dtype = _NAMES[tensor.dtype]
        array = (tensor.view(torch.int16) if dtype == "bf16" else tensor).numpy()
    elif rows.dtype is _FLOAT32 and rows.flags.c_contiguous:  # what most queries are
        array, dtype = rows, "f32"
    else:
        array = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))
        if array.dtype == np.float64:
            array = _narrow(name, array, metric).numpy()
        dtype = "f16" if array.dtype == np.float16 else "f32"
    unfit = _C.unfit_rows(array, dtype, metric, NORM_LIMIT, threads)
    if unfit is not None:
        infinite, zero, long = unfit
        _refuse(name, "be finite", infinite, "hold NaN or infinity")
        _refuse(name, "not be zero", zero, "are zero vectors, which have no cosine")
        _refuse(name, "be smaller", long, f"have a norm above {NORM_LIMIT}: distances overflow")
    return array, dtype


def as_queries(rows: npt.NDArray[Any] | Tensor, metric: str, threads: int) -> npt.NDArray[np.float32]:
    """Return the matrix ``rows`` of queries in float32."""
    array, dtype = as_stored("queries", rows, metric, threads)
    return array if dtype == "f32" else widen(array, dtype)


@alone_after_fork
def encode(name: str, rows: npt.NDArray[Any] | Tensor, metric: str, dtype: str, threads: int) -> npt.NDArray[Any]:
    """Return a copy of the matrix ``rows`` as the storage dtype holds it, refusing rows that it cannot hold."""
    stored = torch.empty(tuple(rows.shape), dtype=_TENSORS[dtype], device="cpu")  # whatever PyTorch's default is
    array, given = as_stored(name, rows, metric, threads)
    for start in range(0, len(rows), _BLOCK):
        block = torch.from_numpy(widen(array[start : start + _BLOCK], given))
        if metric == "cos":
            peaks = block.abs().amax(dim=1, keepdim=True)
            flushed = (peaks[:, 0] == 0).nonzero()[:, 0].numpy() + start
            _refuse(name, "be larger", flushed, "are zero to PyTorch after torch.set_flush_denormal(True)")
            encoded = _direction(block / peaks, dtype)
        else:
            encoded = block.to(_TENSORS[dtype])
        overflown = ~torch.isfinite(encoded).all(dim=1)
        _refuse(name, "be smaller", overflown.nonzero()[:, 0].numpy() + start, f"overflow the storage dtype {dtype}")
        stored[start : start + len(block)] = encoded + 0  # -0.0 becomes 0.0: equal rows have equal bytes
    return (stored.view(torch.int16) if dtype == "bf16" else stored).numpy()


def widen(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """Return a copy of stored rows in float32."""
    if dtype != "bf16":
        return stored.astype(np.float32)
    return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


@alone_after_fork
def _gathered(rows: Tensor) -> Tensor:
    """Return rows that lie one behind the other on the CPU."""
    return rows.cpu().contiguous()


@alone_after_fork
def _narrow(name: str, wide: npt.NDArray[np.float64] | Tensor, metric: str) -> Tensor:
    """Return float64 rows in float32, under "cos" scaled by their largest magnitude."""
    rows = wide if isinstance(wide, Tensor) else torch.tensor(wide, device="cpu")
    peaks = rows.abs().amax(dim=1, keepdim=True)
    if metric == "cos":
        return (rows / peaks.masked_fill(peaks == 0, 1)).float()
    narrow = rows.float()
    overflown = torch.isfinite(peaks[:, 0]) & ~torch.isfinite(narrow).all(dim=1)
    _refuse(name, "be smaller", overflown.nonzero()[:, 0].numpy(), "overflow float32")
    return narrow


def _direction(block: Tensor, dtype: str) -> Tensor:
    """Scale each row, of a largest magnitude of 1, to unit length, or for int8 to one of 127."""
    if dtype == "i8":
        return (block * 127).round().to(torch.int8)
    unit: Tensor = block / torch.linalg.vector_norm(block, dim=1, keepdim=True)
    return unit.to(_TENSORS[dtype])


def _refuse(name: str, needed: str, at: npt.NDArray[np.int64], what: str) -> None:
    """Raise for the rows whose numbers are ``at``."""
    if len(at):
        raise ValueError(f"{name} must {needed}: rows {examples(at)} {what}; drop or mend these rows")


def examples(values: npt.NDArray[Any]) -> str:
    """Return the first few of ``values`` in words."""
    shown = ", ".join(str(value) for value in values[:5].tolist())
    return f"{shown} and {len(values) - 5} more" if len(values) > 5 else shown
