"""What is computed when it is first asked for, without a lock.

:func:`functools.cached_property` of Python 3.10 and 3.11 holds a lock while it computes, one for all objects of the
class: searches in several threads wait for each other, and the child of a fork amid such a search waits for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class cached(Generic[T]):  # a decorator
    """A property that is computed once; by several threads at once perhaps more often, each to the same end."""

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self._name = compute, compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> cached[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> cached[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._compute(instance)  # found there from now on
        return value
