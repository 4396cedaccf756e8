"""USearch's graph under distinct keys, with copies folded: input is already checked, and one thread at a time calls.

What changes a graph takes several steps, so an interrupt must not come between them
(:mod:`mmfast.search.interrupts`). The number of threads comes from the caller, since PyTorch keeps one per thread.

Native calls get only arrays that live through them, never a callback (one that raises ends the process) and never a
view of someone's memory. The bytes of a graph come from a file whose checksum agreed, since USearch follows whatever
links it reads.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmfast.search.settings import Settings
from mmfast.search.storage import Bytes
from mmfast.search.twins import DIGEST_BYTES, Twins, digests

# Measured: up to here scanning every row is as fast as walking the graph (64 and 512 features), and it is exact.
EXACT_ROWS = 2000


class Graph:
    """Rows in the storage dtype under int64 keys."""

    def __init__(self, settings: Settings) -> None:
        from usearch.index import Index as NativeIndex

        self._twins = Twins()
        self._dtype = settings.dtype
        self._clip = settings.metric == "cos"  # rounding leaves [0, 2] by some 1e-7
        self._native: Any = NativeIndex(**asdict(settings))

    def __len__(self) -> int:
        """Return the number of keys, copies included."""
        return len(self._native) + len(self._twins.followed)

    def set_expansion_search(self, value: int) -> None:
        """Set the candidates kept while searching."""
        self._native.expansion_search = value

    def held(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Tell for each key whether it is here."""
        held: npt.NDArray[np.bool_] = np.asarray(self._native.contains(keys.astype(np.uint64)), dtype=np.bool_)
        if self._twins.followed:
            held |= np.fromiter((key in self._twins.followed for key in keys.tolist()), np.bool_, len(keys))
        return held

    def add(
        self, keys: npt.NDArray[np.int64], stored: npt.NDArray[Any], row_digests: list[bytes], threads: int
    ) -> None:
        """Add rows under keys that are distinct and new; where that fails, none of them."""
        plan = self._twins.plan(keys, row_digests)
        fresh_keys = keys[plan.fresh].astype(np.uint64)
        if len(fresh_keys):
            try:
                rows = stored[plan.fresh]
                self._native.add(fresh_keys, rows, threads=min(threads, len(rows)), dtype=self._raw_dtype())
            except BaseException:  # out of memory
                self._native.remove(fresh_keys[np.asarray(self._native.contains(fresh_keys), dtype=np.bool_)])
                raise
        self._twins.carry_out(plan)

    def search(
        self,
        queries: npt.NDArray[Any],  # (N, ndim) in the storage dtype
        keys: npt.NDArray[np.int64],  # (N, k), filled with -1
        distances: npt.NDArray[np.float32],  # (N, k), filled with +inf
        threads: int,
    ) -> None:
        """Write the neighbours found over the padding."""
        rows = len(self._native)
        if not rows or not len(queries):
            return
        wanted = min(keys.shape[1], rows)
        exact = rows <= EXACT_ROWS or wanted == rows
        keys[:, :wanted], distances[:, :wanted] = self._nearest(queries, wanted, exact, threads)
        # Where many links lead to the same few rows, a walk through the graph ends before it has met as many as wanted.
        short = np.flatnonzero(keys[:, wanted - 1] < 0)
        if len(short):
            keys[short, :wanted], distances[short, :wanted] = self._nearest(queries[short], wanted, True, threads)
        self._twins.expand(keys, distances)

    def _nearest(
        self, queries: npt.NDArray[Any], wanted: int, exact: bool, threads: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return keys and distances (N, wanted) as the native search finds them, padded with -1 and +inf."""
        found = self._native.search(
            queries, wanted, exact=exact, threads=min(threads, len(queries)), dtype=self._raw_dtype()
        )
        # One query comes back as a vector of what was found; several as matrices whose rows are valid up to a count.
        found_keys, found_distances = np.atleast_2d(found.keys), np.atleast_2d(found.distances)
        counts = found.counts if len(queries) > 1 else np.array([found_keys.shape[1]])
        valid = np.arange(found_keys.shape[1]) < counts[:, None]
        if self._clip:
            found_distances = np.clip(found_distances, 0, 2)
        keys = np.full((len(queries), wanted), -1, dtype=np.int64)
        distances = np.full((len(queries), wanted), np.inf, dtype=np.float32)
        keys[:, : valid.shape[1]][valid] = found_keys[valid].astype(np.int64)
        distances[:, : valid.shape[1]][valid] = found_distances[valid]
        return keys, distances

    def remove(self, keys: npt.NDArray[np.int64]) -> None:
        """Remove keys that are distinct and here."""
        followers = [key for key in keys.tolist() if key in self._twins.followed]
        heads = [key for key in keys.tolist() if key not in self._twins.followed]
        for key in followers:  # first, so that a group changes its head once at most
            self._twins.remove_follower(key)
        alone = np.array([key for key in heads if key not in self._twins.led], dtype=np.int64)
        for key in heads:
            if key in self._twins.led:
                (digest,) = digests(self._stored(np.array([key])))
                self._native.rename(key, self._twins.succeed(key, digest))
        if len(alone):
            forgotten = digests(self._stored(alone))
            self._native.remove(alone.astype(np.uint64))
            self._twins.forget(forgotten)

    def _stored(self, heads: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the rows of heads, byte for byte as they were added."""
        rows: npt.NDArray[Any] = np.stack(self._native.get(heads.astype(np.uint64)))
        # bfloat16 comes back widened to float32, which is exact.
        return torch.from_numpy(rows).to(torch.bfloat16).view(torch.int16).numpy() if self._dtype == "bf16" else rows

    def _raw_dtype(self) -> str | None:
        """Name the dtype that NumPy cannot."""
        return "bf16" if self._dtype == "bf16" else None

    def to_sections(self) -> list[Bytes]:
        """Return all that is needed to make this graph again."""
        heads = np.fromiter(self._twins.heads.values(), "<i8", len(self._twins.heads))
        if len(heads) != len(self._native):  # a file of it would be refused, and a good one may be in its place
            raise RuntimeError(
                f"the index is damaged: its graph holds {len(self._native):,} rows where {len(heads):,} are known; "
                "load it from a file or build it anew"
            )
        followers = [(key, head) for head, group in self._twins.led.items() for key in group.followers]
        graph: Bytes = self._native.save() if len(heads) else b""
        return [
            heads.tobytes(),
            b"".join(self._twins.heads),
            np.array(followers, dtype="<i8").tobytes(),
            graph,
        ]

    @classmethod
    def from_sections(cls, settings: Settings, sections: list[memoryview]) -> Graph:
        """Make a graph from what :meth:`to_sections` returned."""
        self = cls(settings)
        heads, head_digests, followers, graph = sections
        if len(graph):
            self._native.load(graph)
            # The graph's own header overrules what it was made with, and knows no expansions.
            self._native.expansion_add = settings.expansion_add
            self._native.expansion_search = settings.expansion_search
        keys = np.frombuffer(heads, "<i8")
        made = (self._native.ndim, self._native.dtype, self._native.connectivity, len(self._native))
        wanted = cls(settings)._native
        if made != (wanted.ndim, wanted.dtype, wanted.connectivity, len(keys)) or not self.held(keys).all():
            raise ValueError(f"its graph does not fit its settings {settings}")
        starts = range(0, len(head_digests), DIGEST_BYTES)
        digest_of = (bytes(head_digests[start : start + DIGEST_BYTES]) for start in starts)
        self._twins.heads = dict(zip(digest_of, keys.tolist(), strict=True))
        for key, head in np.frombuffer(followers, "<i8").reshape(-1, 2).tolist():
            self._twins.follow(key, head)
        return self
