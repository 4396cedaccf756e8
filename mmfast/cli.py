"""The command line: ``mmfast info | demo | train | search | index | bench``.

Each command is a module with ``add_arguments(parser)`` and ``run(args) -> int``. Only the chosen one is imported, so
that ``mmfast info`` works where no extra is installed, and a missing extra is named instead of traced back.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mmfast
from mmfast import _C


class Command(NamedTuple):
    module: str
    summary: str
    extra: str | None  # the optional dependencies that it imports


COMMANDS = {
    "info": Command("mmfast.info", "show versions, CPU tiers, threads, GPUs and which extras are importable", None),
    "demo": Command("mmfast.demo.demo_command", "train a joint image–text space on emoji, search it, report", "demo"),
    "train": Command("mmfast.demo.train_command", "train a joint space on your own images and captions", "demo"),
    "search": Command("mmfast.demo.search_command", "search what demo or train made, by words or by picture", "demo"),
    "index": Command("mmfast.index_command", "make, search and look after a durable index in a folder", None),
    "bench": Command("mmfast.bench_command", "draw plots and a table of the results of `make bench`", "bench"),
}


class UserError(Exception):
    """What the user can mend: printed without a traceback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        try:
            return _run(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            sys.stdout.flush()  # here, where what goes wrong can still be caught
    except BrokenPipeError:  # who reads the output has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 1


def _run(words: list[str]) -> int:
    # Abbreviations are refused: what one means would change with the next option that begins alike.
    summary = mmfast.__doc__.partition("\n")[0]
    parser = argparse.ArgumentParser(prog="mmfast", description=summary, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mmfast {mmfast.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, description=command.summary, allow_abbrev=False)
        if name in words[:1]:
            try:
                module = importlib.import_module(command.module)
            except ModuleNotFoundError as error:
                if command.extra is None or (error.name or "").startswith("mmfast"):
                    raise
                print(_missing(name, error.name, command.extra), file=sys.stderr)
                return 2
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(words)
    try:
        if words[0] != "info":  # which shows what is wrong instead
            _check_tier()
        return int(args.run(args))
    except UserError as error:
        print(f"mmfast {words[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # which says what was kept, where a command knows
        print(f"mmfast {words[0]}: {stop}" if str(stop) else "interrupted", file=sys.stderr)
        return 130


def positive_integer(text: str) -> int:
    """Read a count."""
    return _integer(text, 1, 2**31 - 1)


def pairs_a_step(text: str) -> int:
    """Read the size of a batch, whose pairs are compared with each other: of one nothing is learnt."""
    return _integer(text, 2, 2**31 - 1)


def seed(text: str) -> int:
    """Read a seed."""
    return _integer(text, 0, 2**63 - 1)


def _integer(text: str, low: int, high: int) -> int:
    if not text.strip().isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"must be an integer from {low:,} to {high:,}, got {text}")
    return int(text)


def print_facts(facts: dict[str, str]) -> None:
    """Print one fact a line."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")


def program() -> str:
    """Return how this program was called, for commands to copy: by its name where the shell finds it so."""
    typed = sys.argv[0]
    return typed if Path(typed).name == "mmfast" and shutil.which("mmfast") != typed else "mmfast"


def _check_tier() -> None:
    try:
        _C.cpu_tier()
    except ValueError as error:
        raise UserError(str(error)) from error


def _missing(command: str, module: str | None, extra: str) -> str:
    return f"mmfast {command} needs {module}, which is not installed: pip install 'mmfast[{extra}]'"


if __name__ == "__main__":
    from mmfast.cli import main as run  # the module that commands know, not this copy of it

    sys.exit(run())
