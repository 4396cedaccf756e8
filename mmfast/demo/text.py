"""Words to numbers: hashed word and character n-grams, so that no vocabulary has to be built, stored or versioned.

A word is described by itself and by its character 3- and 4-grams (with its ends marked), so that "hearts" still
resembles "heart"; neighbouring words add a bigram, so that "red heart" differs from "heart, red". Each feature is
hashed by CRC-32, which is the same on every machine and in every process, unlike Python's own ``hash``.
"""

from __future__ import annotations

import itertools
import re
import zlib
from functools import lru_cache

import torch
from torch import Tensor

BUCKETS = 1 << 15  # the emoji captions have about 13,000 distinct features
WORDS, NGRAMS, BIGRAMS = 0.5, 0.3, 0.2  # their shares of a phrase

_WORD = re.compile(r"\w+")
_PHRASE_END = re.compile(r"[,;.]")


def clean(text: str) -> str:
    """Lower the case and keep words only, one space apart.

    >>> clean("FAMILY: MAN, WOMAN & BOY")
    'family man woman boy'
    """
    return " ".join(_WORD.findall(text.lower().replace("_", " ")))


def hashed_features(text: str) -> list[tuple[int, float]]:
    """Describe a text by the buckets of its words, n-grams and bigrams, with weights that sum to 1.

    Every phrase weighs nearly the same, however long; phrases end at commas, semicolons and full stops.
    """
    features = [feature for phrase in _PHRASE_END.split(text) for feature in _phrase_features(phrase)]
    total = sum(weight for _, weight in features)
    return [(bucket, weight / total) for bucket, weight in features]


@lru_cache(maxsize=1 << 16)
def _phrase_features(phrase: str) -> tuple[tuple[int, float], ...]:
    words = clean(phrase).split()
    groups = {
        WORDS: [_bucket(word) for word in words],
        NGRAMS: [bucket for word in words for bucket in _ngrams(word)],
        BIGRAMS: [_bucket(f"{first} {second}") for first, second in itertools.pairwise(words)],
    }
    return tuple((bucket, share / len(buckets)) for share, buckets in groups.items() for bucket in buckets)


def bags(texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Lay the features of all texts end to end: their buckets, the offset of each text, and the features' weights."""
    features = [hashed_features(text) for text in texts]
    buckets = torch.tensor([bucket for row in features for bucket, _ in row], dtype=torch.int64)
    offsets = torch.tensor([0, *map(len, features)]).cumsum(0)[:-1]
    return buckets, offsets, torch.tensor([weight for row in features for _, weight in row])


def _ngrams(word: str) -> tuple[int, ...]:
    marked = f"<{word}>"
    grams = {marked[start : start + size] for size in (3, 4) for start in range(len(marked) - size + 1)}
    return tuple(_bucket(f"#{gram}") for gram in sorted(grams))


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode()) % BUCKETS
