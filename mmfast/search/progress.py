"""A progress bar for what takes long, where someone watches and rich is installed."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """Shows how many of ``total`` are done, on a terminal."""

    def __init__(self, title: str, total: int, wanted: bool) -> None:
        self._bar: Any = None
        self._done = 0
        if not wanted or not sys.stderr.isatty():
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ModuleNotFoundError:
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(title, total=total)

    def reach(self, done: int) -> None:
        """Show that so many are done."""
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def advance(self, more: int) -> None:
        """Show that so many more are done."""
        self.reach(self._done + more)

    def __enter__(self) -> Bar:
        """Begin to show it."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it off the terminal."""
        if self._bar is not None:
            self._bar.stop()
