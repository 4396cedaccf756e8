"""What a run trains on and is scored on: rows of images beside rows of texts, matched by labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Images and texts, row by row; an image and a text match where their labels are equal."""

    images: Tensor  # (N, 3, S, S) uint8 pictures, (N, 4, S, S) with their alpha; or (N, F) float32 features
    texts: list[str] | Tensor  # N captions; or (N, E) float32 features
    labels: Tensor  # (N,) int64
    groups: list[str] | None = None  # N keywords, each shared by the pairs of one kind; trained on beside the captions

    def __post_init__(self) -> None:
        lengths = len(self.images), len(self.texts), len(self.labels)
        if len(set(lengths)) > 1:
            raise ValueError("images, texts and labels must have one row per pair, got {}, {} and {}".format(*lengths))
        if self.groups is not None and len(self.groups) != len(self.labels):
            raise ValueError(
                f"groups must have one entry per pair, got {len(self.groups)} for {len(self.labels)} pairs"
            )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """What is trained on, and the splits that are scored."""

    name: str  # "emoji", "digits" or "own data"
    train: Pairs
    splits: dict[str, Pairs]  # in the order of the report; the first one is indexed for `mmfast search`
    credits: str  # one paragraph for the report; "" where there is nobody to credit
