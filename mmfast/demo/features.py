"""Read features of pretrained encoders from .npy files, and report all that is wrong with them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmfast.demo.manifest import Problems, dense
from mmfast.demo.pairs import Pairs


def read_features(images: Path, texts: Path, labels: Path | None) -> Pairs:
    """Read the features of both sides, and labels, from .npy files; without labels, row i matches row i alone."""
    problems = Problems(", ".join(str(path) for path in (images, texts, labels) if path is not None))
    sides = [_read_array(name, path, problems) for name, path in (("--images", images), ("--texts", texts))]
    numbers = None if labels is None else _read_array("--labels", labels, problems)
    for name, side in zip(("--images", "--texts"), sides, strict=True):
        if side is not None:
            _check_features(name, side, problems)
    if numbers is not None and (numbers.ndim != 1 or numbers.dtype.kind not in "iu"):
        problems.add(0, f"--labels must be integers of shape (N,), got {numbers.dtype} of shape {numbers.shape}")
    lengths = {
        name: len(array)
        for name, array in zip(("--images", "--texts", "--labels"), (*sides, numbers), strict=True)
        if array is not None and array.ndim
    }
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        problems.add(0, f"the files must have one row per pair, got {got}")
    problems.raise_if_any()
    image_rows, text_rows = (torch.from_numpy(side.astype(np.float32)) for side in sides if side is not None)
    return Pairs(image_rows, text_rows, torch.arange(len(image_rows)) if numbers is None else dense(numbers.tolist()))


def _read_array(name: str, path: Path, problems: Problems) -> np.ndarray[Any, np.dtype[Any]] | None:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        problems.add(0, f"{name} {path} is not there")
    except (OSError, ValueError, EOFError) as error:
        problems.add(0, f"{name} {path} is not a .npy array of numbers: {error}")
    else:
        if isinstance(array, np.ndarray):
            return array
        array.close()
        problems.add(0, f"{name} {path} is an archive of several arrays; save one with numpy.save")
    return None


def _check_features(name: str, side: np.ndarray[Any, np.dtype[Any]], problems: Problems) -> None:
    if side.dtype.kind != "f" or side.ndim != 2 or 0 in side.shape:
        problems.add(0, f"{name} must be floating point of shape (N, features), got {side.dtype} of shape {side.shape}")
        return
    with np.errstate(over="ignore"):
        broken = np.flatnonzero(~np.isfinite(side.astype(np.float32)).all(axis=1))
    if len(broken):
        rows = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        problems.add(0, f"{name} holds NaN, or values that float32 cannot hold, in {len(broken):,} rows: {rows}")
