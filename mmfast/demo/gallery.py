"""What can be found: the images and the texts of one set of pairs, each side embedded and indexed.

A picture that several captions describe, or a caption that several pictures share, is indexed once, under the first row
that holds it: a search should show eight pictures rather than one picture eight times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

import mmfast
from mmfast.demo.models import JointModel
from mmfast.demo.pairs import Pairs
from mmfast.search.durable import DurableIndex


class Hit(NamedTuple):
    """A row found, and the cosine of its angle to the query."""

    row: int
    similarity: float


AnyIndex = mmfast.Index | DurableIndex


@dataclass(frozen=True)
class Side:
    """The images or the texts: their embeddings, which rows hold the same item, and an index of the distinct ones."""

    embeddings: Tensor  # (N, joint) unit rows
    copies: dict[int, list[int]]  # the first row of each distinct item -> all rows that hold it
    index: mmfast.Index  # keys are those first rows

    @classmethod
    def build(cls, items: Tensor | list[str], embeddings: Tensor) -> Side:
        """Index the distinct items: pictures or features (N, ...), or captions."""
        names: Sequence[bytes | str] = items if isinstance(items, list) else _digests(items)
        first_row: dict[bytes | str, int] = {}
        copies: dict[int, list[int]] = {}
        for row, name in enumerate(names):
            copies.setdefault(first_row.setdefault(name, row), []).append(row)
        index = mmfast.Index(embeddings.shape[1], metric="cos", dtype="f32")
        index.add(list(copies), embeddings[list(copies)])
        return cls(embeddings, copies, index)


def _digests(items: Tensor) -> list[bytes]:
    return [blake2b(row.tobytes()).digest() for row in items.numpy()]


@dataclass(frozen=True)
class Gallery:
    """Pairs with both sides indexed."""

    pairs: Pairs
    images: Side
    texts: Side

    @classmethod
    def build(cls, model: JointModel, pairs: Pairs) -> Gallery:
        """Embed and index both sides."""
        images, texts = model.encode(pairs)
        return cls(pairs, Side.build(pairs.images, images), Side.build(pairs.texts, texts))


def nearest(index: AnyIndex, query: Tensor, k: int) -> list[Hit]:
    """Return the at most ``k`` rows nearest to ``query`` (joint,), nearest first."""
    keys, distances = index.search(query, min(k, max(len(index), 1)))  # room is made for k
    return [Hit(int(key), 1 - float(distance)) for key, distance in zip(keys, distances, strict=True) if key >= 0]
