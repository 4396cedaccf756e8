"""Nearest-neighbour search over embeddings: an index that checks what goes in, and what a file holds."""

from mmfast.search.index import Index, SearchResult

__all__ = ["Index", "SearchResult"]
