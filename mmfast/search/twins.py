"""Keep one row in the graph for all keys whose stored vectors are equal.

A navigable graph gets lost among copies: after 3,000 identical vectors every candidate of a search is one of them, all
at the same distance, and of 500 distinct vectors added next hardly any is found. Copies are common in real data (one
placeholder picture behind many products), so the graph holds a vector once, under its *head*, and the other keys are
its *followers*, remembered here and put back into the results of a search.

Equality is that of the stored bytes, told by 128-bit digests. The cost is about 200 bytes of memory a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16


def digests(stored: npt.NDArray[Any]) -> list[bytes]:
    """Return one digest for each row of the C-contiguous matrix ``stored``."""
    return [blake2b(row, digest_size=DIGEST_BYTES).digest() for row in stored]


class Plan(NamedTuple):
    """What adding a batch means; nothing is changed until it is carried out."""

    fresh: npt.NDArray[np.bool_]  # (N,): the rows that go into the graph, as heads
    heads: dict[bytes, int]  # digest -> key, for those rows
    followers: list[tuple[int, int]]  # (key, head) for the others


class Twins:
    """The heads by digest, and the followers of each head."""

    def __init__(self) -> None:
        self.heads: dict[bytes, int] = {}  # digest -> head
        self.followers: dict[int, dict[int, None]] = {}  # head -> its followers, in the order they came
        self.head_of: dict[int, int] = {}  # follower -> head

    def plan(self, keys: npt.NDArray[np.int64], row_digests: list[bytes]) -> Plan:
        """Tell which rows of a batch are new to the graph and which follow a head, old or of the same batch."""
        fresh = np.zeros(len(keys), dtype=np.bool_)
        heads: dict[bytes, int] = {}
        followers: list[tuple[int, int]] = []
        for position, (key, digest) in enumerate(zip(keys.tolist(), row_digests, strict=True)):
            head = self.heads.get(digest, heads.get(digest))
            if head is None:
                heads[digest] = key
                fresh[position] = True
            else:
                followers.append((key, head))
        return Plan(fresh, heads, followers)

    def carry_out(self, plan: Plan) -> None:
        """Remember a planned batch, once its fresh rows are in the graph."""
        self.heads.update(plan.heads)
        for key, head in plan.followers:
            self.follow(key, head)

    def follow(self, key: int, head: int) -> None:
        """Remember that ``key`` has the vector of ``head``."""
        self.followers.setdefault(head, {})[key] = None
        self.head_of[key] = head

    def remove_follower(self, key: int) -> None:
        """Forget a key that is no head."""
        head = self.head_of.pop(key)
        del self.followers[head][key]
        if not self.followers[head]:
            del self.followers[head]

    def succeed(self, head: int, digest: bytes) -> int:
        """Make the first follower of ``head`` the head in its place, and return it."""
        first, *others = self.followers.pop(head)
        self.heads[digest] = first
        del self.head_of[first]
        if others:
            self.followers[first] = dict.fromkeys(others)
            self.head_of.update(dict.fromkeys(others, first))
        return first

    def forget(self, heads_digests: Iterable[bytes]) -> None:
        """Forget heads that have no followers."""
        for digest in heads_digests:
            del self.heads[digest]

    def expand(self, keys: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]) -> None:
        """Put followers behind their heads in padded results (N, k), in place; what falls off the end is lost."""
        if not self.followers:
            return
        k = keys.shape[1]
        for row, found in enumerate(keys.tolist()):
            if not any(key in self.followers for key in found):
                continue
            filled = 0
            for key, distance in zip(found, distances[row].tolist(), strict=True):
                if key < 0 or filled == k:
                    break
                group = [key, *self.followers.get(key, ())][: k - filled]
                keys[row, filled : filled + len(group)] = group
                distances[row, filled : filled + len(group)] = distance
                filled += len(group)
