"""Nearest-neighbour search over embeddings: an index that checks what goes in, and what a file holds."""

from mmfast.search.conditions import col
from mmfast.search.exact import exact_search
from mmfast.search.index import Index
from mmfast.search.results import RangeResult, SearchResult

__all__ = ["Index", "RangeResult", "SearchResult", "col", "exact_search"]
