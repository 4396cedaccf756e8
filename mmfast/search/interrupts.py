"""Keep Ctrl-C out of what must not be left half done.

Python runs signal handlers in the main thread only, between any two of its steps, and native code that asks for signals
there gives up midway. So such work is done in another thread, while the main one waits and remembers what came.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(lock: threading.Lock, work: Callable[[], T]) -> T:
    """Return ``work()``, done under ``lock``; what signal handlers raise meanwhile is raised once it is complete.

    The thread that works is the one that holds the lock: whatever befalls the waiting one, nobody else gets in early,
    and a signal handler that calls the index itself waits its turn.
    """

    def locked() -> T:
        with lock:
            return work()

    return _apart(locked, [])


def abandonable(work: Callable[[Callable[[int], None]], T], progress: Callable[[int], None]) -> T:
    """Return ``work(progress)``; after an interrupt the next call of ``progress`` raises, and then the interrupt is.

    For work that takes long and may be given up. It is not done in the main thread: what a signal handler raises there,
    native code that asks for signals turns into an error of its own.
    """
    interrupts: list[BaseException] = []

    def reach(count: int) -> None:
        if interrupts:
            raise InterruptedError("given up")
        progress(count)

    return _apart(lambda: work(reach), interrupts)


def _apart(work: Callable[[], T], interrupts: list[BaseException]) -> T:
    """Return ``work()``, not done in the main thread, which notes in ``interrupts`` what came while it waited."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    results: list[T] = []
    failures: list[BaseException] = []
    # Not Thread.join: it takes a thread for ended that a signal handler interrupted it for.
    claim, running = threading.Lock(), threading.Lock()
    running.acquire()

    def run() -> None:
        if not claim.acquire(blocking=False):
            return
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        running.release()

    try:
        _thread.start_new_thread(run, ())  # some 50 us less a call than threading.Thread
    except BaseException as error:  # an interrupt, or there is no thread to be had
        if claim.acquire(blocking=False):  # the work has not begun, and now never will
            if "shutdown" in str(error):  # Python 3.12 starts no thread once the interpreter is about to end
                return work()
            raise
        interrupts.append(error)
    while not (results or failures):
        try:
            running.acquire()
        except BaseException as error:  # noqa: PERF203
            interrupts.append(error)
    # Raised from the lists, which forget them: a name here would tie error, traceback and the batch into a cycle.
    if interrupts:
        raise interrupts.pop(0) from (failures.pop() if failures else None)
    if failures:
        raise failures.pop()
    return results.pop()
