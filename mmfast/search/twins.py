"""Keep one row in the graph for all keys whose stored vectors are equal.

A navigable graph gets lost among copies: after 3,000 identical vectors every candidate of a search is one of them, all
at the same distance, and of 500 distinct vectors added next hardly any is found. Copies are common in real data (one
placeholder picture behind many products), so the graph holds a vector once, under its *head*, and the other keys are
its *followers*, remembered here and put back into the results of a search.

Equality is that of the stored bytes, told by 128-bit digests. The cost is some 130 bytes of memory a row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
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


@dataclass(slots=True)
class Group:
    """A head and its followers, shared by all of them, so that another head is one assignment."""

    head: int
    # In the order they came. A dict would walk over the gaps of those removed to find its first.
    followers: OrderedDict[int, None] = field(default_factory=OrderedDict)


class Twins:
    """The heads by digest, and the groups of those that have followers."""

    def __init__(self) -> None:
        self.heads: dict[bytes, int] = {}  # digest -> head
        self.led: dict[int, Group] = {}  # head -> its group
        self.followed: dict[int, Group] = {}  # follower -> its group

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
        group = self.led.get(head)
        if group is None:
            group = self.led[head] = Group(head)
        group.followers[key] = None
        self.followed[key] = group

    def remove_follower(self, key: int) -> None:
        """Forget a key that is no head."""
        group = self.followed.pop(key)
        del group.followers[key]
        if not group.followers:
            del self.led[group.head]

    def succeed(self, head: int, digest: bytes) -> int:
        """Make the first follower of ``head`` the head in its place, and return it."""
        group = self.led.pop(head)
        group.head, _ = group.followers.popitem(last=False)
        self.heads[digest] = group.head
        del self.followed[group.head]
        if group.followers:
            self.led[group.head] = group
        return group.head

    def forget(self, heads_digests: Iterable[bytes]) -> None:
        """Forget heads that have no followers."""
        for digest in heads_digests:
            del self.heads[digest]

    def expand(self, keys: npt.NDArray[np.int64], distances: npt.NDArray[np.float32]) -> None:
        """Put followers behind their heads in padded results (N, k), in place; what falls off the end is lost."""
        if not self.led:
            return
        k = keys.shape[1]
        for row, found in enumerate(keys.tolist()):
            if not any(key in self.led for key in found):
                continue
            filled = 0
            for key, distance in zip(found, distances[row].tolist(), strict=True):
                if key < 0 or filled == k:
                    break
                group = self.led.get(key)
                copies = [key, *islice(group.followers if group else (), k - filled - 1)]
                keys[row, filled : filled + len(copies)] = copies
                distances[row, filled : filled + len(copies)] = distance
                filled += len(copies)
