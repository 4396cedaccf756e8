"""The durable store and several processes: one writer, any number of readers, forks, and other users."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmfast.search import database
from mmfast.search.truth import Truth
from tests.stores import SETTINGS, rows


class Child:
    """A process that is forked now, while nothing it uses is open, and does its work when it is told to."""

    def __init__(self, work: Callable[[Child], object]) -> None:
        self._commands, self._answers = os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                self.heed()
                self.answer(work(self))
            except BaseException as error:
                self.answer(f"{type(error).__name__}: {error}")
            finally:
                os._exit(0)

    def heed(self) -> None:
        """Wait, in the child, until it is told to go on."""
        os.read(self._commands[0], 1)

    def answer(self, what: object) -> None:
        """Say something, in the child."""
        os.write(self._answers[1], f"{what}\n".encode())

    def go_on(self) -> str:
        """Let the child go on, and return what it says next."""
        os.write(self._commands[1], b"x")
        text = b""
        while not text.endswith(b"\n"):
            text += os.read(self._answers[0], 4096)
        return text.decode().strip()

    def end(self) -> None:
        """Wait for its end, killed by now."""
        os.waitpid(self.process, 0)


def outcome(folder: Path, **options: Any) -> str:
    """Open and read a store, and say how that went."""
    try:
        with Truth.open(folder, **options) as truth:
            return f"{len(truth)} {truth.version} {len(list(truth))}"
    except (OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def test_a_second_writer_is_refused(folder: Path) -> None:
    def look(child: Child) -> str:
        child.answer(outcome(folder))
        child.heed()
        child.answer(outcome(folder, read_only=True))
        child.heed()
        return outcome(folder)

    child = Child(look)
    with Truth.open(folder, SETTINGS, key_kind="int") as truth:
        with pytest.raises(BlockingIOError, match=rf"this process \({os.getpid()}\) has it open for writing already"):
            Truth.open(folder)
        assert child.go_on().startswith(
            f"BlockingIOError: cannot open {folder} for writing: process {os.getpid()} has it open for writing; wait"
        )
        truth.add([1], rows(1))
        assert child.go_on() == "1 1 1"
    assert child.go_on() == "1 1 1"
    child.end()


def test_a_writer_forgotten_lets_go(folder: Path) -> None:
    truth = Truth.open(folder, SETTINGS, key_kind="int")
    truth.add([1], rows(1))
    del truth
    with Truth.open(folder) as truth:
        assert 1 in truth


@pytest.mark.parametrize("way", ["killed", "closed"])
def test_forks_hold_nothing_and_touch_nothing(way: str, folder: Path) -> None:
    """A child that outlives its parent does not keep the folder locked, nor can it use what the parent opened."""

    def outlive(parent: Child, truth: Truth, going: Iterator[Any], _: Child) -> None:
        uses = [lambda: truth.add([2], rows(1)), lambda: len(truth), lambda: next(going), truth.compact]
        for use in [*uses, lambda: Truth.open(folder, read_only=True)]:
            with pytest.raises(RuntimeError, match="is a fork"):
                use()
        with pytest.raises(BlockingIOError):
            Truth.open(folder)
        truth.close()
        parent.answer("as it should be")
        time.sleep(60)

    def work(child: Child) -> str:
        truth = Truth.open(folder, SETTINGS, key_kind="int")
        truth.add([1], rows(1))
        going = truth.rows(block=1)
        next(going)
        grandchild = Child(partial(outlive, child, truth, going))
        os.write(grandchild._commands[1], b"x")
        child.heed()
        truth.add([3], rows(1))
        if way == "closed":
            truth.close()
        child.answer(grandchild.process)
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    child = Child(work)
    assert child.go_on() == "as it should be"
    grandchild = int(child.go_on())
    child.end()
    try:
        os.kill(grandchild, 0)
        with Truth.open(folder) as truth:
            assert list(truth) == [1, 3]
            assert truth.verify() == []
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_a_fork_that_ends_normally_harms_nothing(folder: Path) -> None:
    """Interpreters that end destroy their objects; those of a fork must not close what the parent opened."""
    code = """
import os, sys, numpy as np
from mmfast.search.truth import Truth
truth = Truth.open(sys.argv[1], {"ndim": 4, "dtype": "bf16"}, key_kind="int")
truth.add([1], np.zeros((1, 4), dtype=np.int16))
child = os.fork()
if child == 0:
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
truth.add([2], np.zeros((1, 4), dtype=np.int16))
assert list(truth) == [1, 2] and truth.verify() == []
print(sorted(os.listdir(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "truth.sqlite-wal" in done.stdout
    with Truth.open(folder) as truth:  # closed at exit
        assert list(truth) == [1, 2]


def test_a_fork_made_before_may_open(folder: Path) -> None:
    child = Child(lambda _: outcome(folder, read_only=True))
    with Truth.open(folder, SETTINGS, key_kind="int") as truth:
        truth.add([1], rows(1))
        assert child.go_on() == "1 1 1"
    child.end()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_one_who_may_only_read_reads() -> None:
    top = Path(tempfile.mkdtemp())  # tmp_path lies where only its owner may look
    top.chmod(0o755)
    folder = top / "index"

    def as_nobody(child: Child) -> str:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        for options in ({"read_only": True}, {}, {"read_only": True}):
            child.answer(outcome(folder, **options))
            child.heed()
        with Truth.open(folder, read_only=True) as truth:
            child.answer(len(truth))
            child.heed()
            child.answer(len(list(truth)))
        child.heed()
        return outcome(folder, read_only=True)

    try:
        child = Child(as_nobody)
        with Truth.open(folder, SETTINGS, key_kind="int") as truth:
            truth.add([1, 2], rows(2))
            assert child.go_on() == "2 1 2"  # beside a writer
            assert child.go_on().startswith("PermissionError")
        assert child.go_on() == "2 1 2"  # without one
        assert child.go_on() == "2"
        # It reads without SQLite's locks, so its own keeps writers out.
        with pytest.raises(BlockingIOError, match="readers do that may not write in the folder"):
            Truth.open(folder)
        with Truth.open(folder, read_only=True) as truth:
            assert len(truth) == 2
        assert child.go_on() == "2"
        (folder / "truth.sqlite").chmod(0o600)
        assert child.go_on().startswith("PermissionError: [Errno 13] cannot open")
        child.end()
        with Truth.open(folder) as truth:
            truth.add([3], rows(1))
    finally:
        shutil.rmtree(top)


def test_another_programs_lock_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_TIMEOUT", 0.1)
    with Truth.open(folder, SETTINGS, key_kind="int") as truth:
        other = sqlite3.connect(folder / "truth.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BlockingIOError, match=r"truth\.sqlite is locked by another program"):
            truth.add([1], rows(1))
        other.execute("ROLLBACK")
        other.close()
        truth.add([1], rows(1))
        assert len(truth) == 1


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forks_made_while_threads_are_in_sqlite_may_open_others(folder: Path) -> None:
    """Of SQLite's locks one is held whenever it allocates memory: without care one in ten children hangs here."""
    with Truth.open(folder, SETTINGS, key_kind="int") as truth:
        truth.add(range(20), rows(20))
    ended = threading.Event()

    def work() -> None:
        connection = sqlite3.connect(":memory:")
        connection.execute("CREATE TABLE t (a, b)")
        while not ended.is_set():
            connection.executemany("INSERT INTO t VALUES (?, ?)", ((n, "x" * 50) for n in range(300)))
            connection.execute("SELECT * FROM t ORDER BY b, a LIMIT 30").fetchall()
            connection.execute("DELETE FROM t")
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                with suppress(BaseException), Truth.open(folder, read_only=True) as reader:
                    os._exit(len(reader) != 20)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join()
