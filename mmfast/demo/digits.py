"""Handwritten digits against number words: what the demo does where neither npm nor a network is at hand.

scikit-learn brings 1,797 digits of 8 × 8 pixels with it. A fifth of the pictures is held out; they are scored against
phrasings that were trained on and against phrasings that were not.
"""

from __future__ import annotations

import random

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from mmfast.demo.pairs import Dataset, Pairs

SIDE = 32  # pixels, enlarged from 8
HELD_OUT = 0.2
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASINGS = ("{}", "the digit {}", "a handwritten {}", "the number {}", "a picture of a {}", "{} in pencil")
UNSEEN_PHRASINGS = ("someone wrote {} here", "it says {}", "this one is a {}")
CREDITS = (
    "Handwritten digits by E. Alpaydin and C. Kaynak (Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository, CC BY 4.0), as bundled with scikit-learn."
)


def load(split_seed: int = 0) -> Dataset:
    """Load the bundled digits, pair each with number words, and split them."""
    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    dark_on_light = 255 - torch.from_numpy(digits.images).float() * (255 / 16)
    enlarged = F.interpolate(dark_on_light[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    pictures = enlarged.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()

    rng = random.Random(split_seed)
    held_out = rng.sample(range(len(labels)), round(HELD_OUT * len(labels)))
    kept = sorted(set(range(len(labels))) - set(held_out))

    def pairs(rows: list[int], phrasings: tuple[str, ...]) -> Pairs:
        chosen = torch.tensor(sorted(rows))
        texts = [rng.choice(phrasings).format(WORDS[label]) for label in labels[chosen].tolist()]
        return Pairs(pictures[chosen], texts, labels[chosen])

    return Dataset(
        name="digits",
        train=pairs(kept, PHRASINGS),
        splits={
            "held-out digits": pairs(held_out, PHRASINGS),
            "unseen phrasings": pairs(held_out, UNSEEN_PHRASINGS),
        },
        credits=CREDITS,
    )
