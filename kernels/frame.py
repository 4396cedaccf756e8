"""What both sides are compared in: classes of one numbering, a centre, a unit and a step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = 2**31 - 1  # the class of rows that take no part; it sorts behind all others
SAMPLE = 128  # rows of a side that the frame is made from


class Frame(NamedTuple):
    """What both sides are measured in; any is right, one that fits most rows screens best."""

    centre: Tensor  # (D,) float64, of values that the rows' dtype holds
    constants: Tensor  # (3,) float64: unit, margin and step


def number_classes(x_labels: Tensor, y_labels: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Number the labels of both sides alike, from 0 on; in the self form both results are one tensor."""
    labels = x_labels if y_labels is None else torch.cat([x_labels, y_labels])
    ordered, order = labels.sort(stable=True)
    numbers = torch.zeros_like(ordered, dtype=torch.int32)
    torch.cumsum(ordered[1:] != ordered[:-1], dim=0, dtype=torch.int32, out=numbers[1:])
    classes = torch.empty_like(numbers).scatter_(0, order, numbers)
    classes = torch.where(labels == ignore_index, IGNORED, classes)
    x_classes = classes[: x_labels.shape[0]]
    return x_classes, x_classes if y_labels is None else classes[x_labels.shape[0] :]


def common_frame(sides: list[tuple[Tensor, Tensor]], margin: float) -> Frame:
    """Make the frame of the (rows, classes) given: the median of a sample, and its median deviation as the unit."""
    sample = torch.cat([_sample(rows, classes) for rows, classes in sides]).double()
    # The lower of two medians is one of the values, so that the rows' dtype holds it.
    middle = (sample.shape[0] - 1) // 2
    centre = sample.sort(dim=0).values[middle].nan_to_num()
    deviation = (sample - centre).abs().amax(dim=1).sort().values[middle]
    lowest, highest = (-120, 80) if sides[0][0].dtype != torch.float64 else (-900, 900)
    exponent = -torch.where(deviation > 0, deviation, 1.0).log2().floor()
    unit = torch.exp2(exponent.nan_to_num(0.0, 0.0, 0.0).clamp(lowest, highest))
    largest = torch.clamp(256 * (margin / sample.shape[1]) ** 0.5 * unit, max=16.0)
    return Frame(centre, torch.stack([unit, torch.full_like(unit, margin), largest * 2.0**-30]))


def _sample(rows: Tensor, classes: Tensor) -> Tensor:
    taking_part = (classes != IGNORED).sum()
    index = torch.arange(SAMPLE, device=rows.device) * taking_part // SAMPLE
    return rows[index.clamp(max=max(rows.shape[0] - 1, 0))]
