"""``mmfast index build | search | info | verify | compact``: a durable index, as :meth:`mmfast.Index.open` makes it.

Building is in :mod:`mmfast.index_build`, which reads files by :mod:`mmfast.index_files`; conditions are read by
:mod:`mmfast.index_where`, and what is printed or written is in :mod:`mmfast.index_output`. Commands that only read open
the folder read-only, also beside a process that writes to it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmfast import index_build, index_output
from mmfast.cli import UserError, positive_integer, print_facts
from mmfast.index_files import check_floating, load, rows_named, unfit
from mmfast.index_folder import check_existing, open_existing, told
from mmfast.index_output import Header
from mmfast.index_where import EXAMPLE, GRAMMAR, parse
from mmfast.search.index import Index
from mmfast.search.misuse import EmptyFilterWarning
from mmfast.search.progress import Bar
from mmfast.search.results import SearchResult
from mmfast.search.settings import DTYPES, METRICS
from mmfast.search.verify import Problem

if TYPE_CHECKING:
    from mmfast.search.conditions import Condition
    from mmfast.search.durable import DurableIndex

# A transaction and its sync for each batch, and 30 MB of temporaries at 768 features.
BATCH = 10_000
_SHOWN = 10  # queries, and rows of each, in the table
_METADATA_SHOWN = 60  # characters, on a terminal
_MENDS = {  # by the place of a problem, what helps beside a copy
    "vectors": "put vectors in again with mmfast index build FOLDER VECTORS --keys KEYS --upsert",
    "metadata": "set metadata anew with Index.update_metadata(keys, metadata, replace=True) in Python",
}
_QUERIES = 4096  # searched at a time, so that the bar moves and Ctrl-C is heard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands and their options."""
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    for name, summary, declare, action in (
        ("build", "add the vectors of a file, and build the graph", _build_arguments, index_build.run),
        ("search", "find the nearest rows of each query", _search_arguments, _search),
        ("info", "show settings, sizes and what recall was measured", None, _info),
        ("verify", "read everything and list what is wrong (exit status 1)", None, _verify),
        ("compact", "build the graph anew and give the space of removed rows back", None, _compact),
    ):
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the index")
        if declare is not None:
            declare(command)
        command.set_defaults(action=action)


def run(args: argparse.Namespace) -> int:
    """Run the command that was chosen."""
    return int(args.action(args))


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "vectors",
        type=Path,
        metavar="VECTORS",
        help=".npy of shape (N, D) in float16, float32 or float64, or .parquet with a column of lists of floats",
    )
    parser.add_argument(
        "--keys", help="a .npy file with N integers or strings, or a column of the .parquet (default: row numbers)"
    )
    parser.add_argument("--metric", choices=METRICS, help="of a new index (default: cos)")
    parser.add_argument("--dtype", choices=DTYPES, help="how a new index stores vectors (default: bf16)")
    parser.add_argument("--key-kind", choices=("int", "str"), help="of a new index (default: that of the keys)")
    parser.add_argument(
        "--column-vector", metavar="NAME", help="column of vectors (default: the one of lists of floats)"
    )
    parser.add_argument(
        "--metadata", type=index_build.names, action="extend", metavar="COLUMNS", default=[],
        help="columns to keep with each row, with commas between them or given again; '*' for all",
    )  # fmt: skip
    parser.add_argument(
        "--index", type=index_build.names, action="extend", metavar="COLUMNS", default=[],
        help="columns of the metadata that SQLite indexes, for --where of mmfast index search that selects few",
    )  # fmt: skip
    parser.add_argument(
        "--upsert",
        action="store_true",
        help="replace the vectors of keys that are held already, and merge --metadata into what these have",
    )
    parser.add_argument(
        "--batch", type=positive_integer, default=BATCH, metavar="N", help=f"rows added at a time (default: {BATCH:,})"
    )


def _search_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queries", type=Path, metavar="QUERIES.npy", help="of shape (N, D), or (D,) for one")
    parser.add_argument("-k", type=positive_integer, default=10, help="rows to find for each query (default: 10)")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--recall", type=_share, help="share of the nearest that is to be found (default: 0.95)")
    effort.add_argument("--exact", action="store_true", help="look at all rows")
    effort.add_argument("--ef", type=positive_integer, metavar="N", help="candidates kept while walking the graph")
    parser.add_argument("--where", metavar="CONDITION", help=f'of the metadata, as "{EXAMPLE}"; see below')
    parser.epilog, parser.formatter_class = GRAMMAR, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=".npz (arrays keys and distances) or .jsonl (a line for each query, with the metadata)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file of --out")


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text}")
    return number


def _search(args: argparse.Namespace) -> int:
    where = None if args.where is None else parse(args.where)
    if args.out is not None:
        index_output.check_output(args.out, args.force)
    queries = _read_queries(args.queries)
    with open_existing(args.folder, read_only=True) as index:
        _check_queries(args.queries, queries, index)
        k = min(args.k, max(len(index), 1))  # room is made for k rows of each query
        with warnings.catch_warnings():
            warnings.simplefilter("error", EmptyFilterWarning)  # of what no row has
            try:
                found = _find(index, queries, k, args, where)
            except EmptyFilterWarning as warning:
                raise UserError(f"--{warning}") from warning
        why = "no row fulfils --where" if where is not None and len(index) else "there are no rows or no queries"
        nothing = not np.isfinite(found.distances).any()
        if args.out is not None:
            index_output.write_results(args.out, found, index)
            print(f"{args.out}: {len(queries):,} queries, up to {k:,} rows each{f'; {why}' if nothing else ''}")
        elif nothing:
            print(f"nothing found: {why}")
        else:
            _show(index, found)
    return 0


def _read_queries(path: Path) -> Any:
    array = load(path)
    check_floating(path, array)
    if array.ndim not in (1, 2):
        raise UserError(f"{path} must hold an array of shape (N, D), or (D,) for one query, got {array.shape}")
    return array if array.ndim == 2 else array[None]


def _check_queries(path: Path, queries: Any, index: DurableIndex) -> None:
    if queries.shape[1] != index.ndim:
        raise UserError(f"{path} has {queries.shape[1]} features a query, but the index has {index.ndim}")
    for start in range(0, len(queries), _QUERIES):
        for what, at in unfit(queries[start : start + _QUERIES], index.metric, "f32"):
            raise UserError(f"{path}: {what} in {rows_named(at + start)}")


def _find(index: DurableIndex, queries: Any, k: int, args: argparse.Namespace, where: Condition | None) -> SearchResult:
    """Search for all queries, some at a time."""
    parts = []
    with told(), Bar("searching", len(queries), wanted=len(queries) > _QUERIES) as bar:
        for start in range(0, max(len(queries), 1), _QUERIES):
            some = np.asarray(queries[start : start + _QUERIES])
            options = {"recall": args.recall, "exact": args.exact, "ef": args.ef, "where": where}
            parts.append(index.search(some, k, **options))
            bar.advance(len(some))
    return SearchResult(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _show(index: DurableIndex, found: SearchResult) -> None:
    """Print the nearest rows of the first queries."""
    queries, most = len(found.keys), int(np.isfinite(found.distances).sum(axis=1).max())
    headers = [Header("query"), Header("rank"), Header("distance"), Header("key", index.key_kind == "int")]
    rows: list[list[str]] = []
    documents: list[dict[str, Any] | None] = []
    sections = []
    for number in range(min(queries, _SHOWN)):
        there = np.flatnonzero(np.isfinite(found.distances[number]))[:_SHOWN]
        keys = found.keys[number, there].tolist()
        documents += index_output.metadata_of(index, keys)
        for rank, key, distance in zip(there + 1, keys, found.distances[number, there], strict=True):
            rows.append([str(number), str(rank), f"{round(float(distance), 4) + 0.0:.4f}", str(key)])
        sections.append(len(rows))
    if any(documents):
        headers.append(Header("metadata", right=False, fold=False))
        rows = [[*row, _shortened(document)] for row, document in zip(rows, documents, strict=True)]
    if queries == 1:
        headers, rows = headers[1:], [row[1:] for row in rows]
    index_output.table(headers, rows, sections)
    cut = []
    if queries > _SHOWN:
        cut.append(f"the first {_SHOWN} of {queries:,} queries")
    if most > _SHOWN:
        cut.append(f"the nearest {_SHOWN} of {most:,} rows")
    if cut:
        print(f"({' and '.join(cut)}; --out FILE writes all)")


def _shortened(document: dict[str, Any] | None) -> str:
    if not document:
        return ""
    text = "  ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in document.items())
    fits = len(text) <= _METADATA_SHOWN or not sys.stdout.isatty()  # a program that reads it wants all
    return text if fits else f"{text[: _METADATA_SHOWN - 1]}…"


def _info(args: argparse.Namespace) -> int:
    with open_existing(args.folder, read_only=True) as index, told():
        stats, curve, columns = index.stats(), index.recall_curve(), index_output.columns_of(index)
    files = index_output.sizes(args.folder)
    facts = {
        "index": str(args.folder),
        "rows": f"{stats['rows']:,} of {index.ndim} features",
        "metric": index.metric,
        "dtype": index.dtype,
        "keys": index.key_kind,
        "metadata": ", ".join(columns) or "none in the first rows",
        "graph": "none" if stats["built"] is None else f"{stats['graph']:,} rows, built {_moment(stats['built'])}",
        "links": f"connectivity {index.connectivity}, expansion_add {index.expansion_add}",
        "memory": index_output.size(stats["bytes"]),
        "disk": index_output.size(sum(files.values())),
        "version": f"{stats['version']:,}",
    }
    if stats["tail"]:
        facts["graph"] += f"; {stats['tail']:,} rows since, searched one by one"
    if stats["removed"]:
        facts["removed"] = f"{stats['removed']:,} rows that still take room; mmfast index compact gives it back"
    print_facts(facts)
    for k, points in curve.items():
        print(f"\nRecall of the {k} nearest, measured when the graph was built")
        headers = [Header("ef"), Header("recall"), Header("µs a query, in a batch"), Header("alone")]
        rows = [
            [str(p.ef), f"{p.recall:.4f}", f"{p.batch_seconds * 1e6:,.1f}", f"{p.single_seconds * 1e6:,.1f}"]
            for p in points
        ]
        index_output.table(headers, rows)
    print()
    _show_sizes(files)
    return 0


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _show_sizes(*listings: dict[str, int], heads: tuple[str, ...] = ("size",)) -> None:
    """Print the sizes of files, of several moments side by side."""
    names = list(dict.fromkeys(name for listing in listings for name in listing))
    rows = [[name, *(index_output.size(each[name]) if name in each else "" for each in listings)] for name in names]
    rows.append(["together", *(index_output.size(sum(listing.values())) for listing in listings)])
    headers = [Header("file", right=False), *map(Header, heads)]
    index_output.table(headers, rows, sections=[len(names)])


def _verify(args: argparse.Namespace) -> int:
    check_existing(args.folder)
    try:
        with Index.open(args.folder, read_only=True) as index:
            problems, rows = index.verify(), len(index)
    except ValueError as error:  # so damaged that it cannot be opened
        problems, rows = [Problem(str(error))], 0
    except OSError as error:
        with told():
            raise error from None
    for problem in problems:
        print(problem)
    if problems:
        print(f"{args.folder}: {len(problems):,} problem{'s' * (len(problems) > 1)}", file=sys.stderr)
        places = {problem.place for problem in problems}
        if mends := [how for place, how in _MENDS.items() if place in places]:
            print(f"{'; '.join(mends)}; or restore the folder from a copy", file=sys.stderr)
        return 1
    print(f"{args.folder}: {rows:,} rows, nothing wrong")
    return 0


def _compact(args: argparse.Namespace) -> int:
    check_existing(args.folder)
    before = index_output.sizes(args.folder)  # opening it may build the graph that is missing
    with open_existing(args.folder, read_only=False) as index, told():
        index.compact()
        after = index_output.sizes(args.folder)
    _show_sizes(before, after, heads=("before", "after"))
    return 0
