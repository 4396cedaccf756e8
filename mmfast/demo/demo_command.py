"""``mmfast demo``: train a joint image–text space on real pictures, search it, score it and write a report."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table

from mmfast.cli import pairs_a_step, positive_integer, program, seed
from mmfast.demo import digits, emoji, evaluation, training
from mmfast.demo.models import JointModel
from mmfast.demo.pairs import Dataset
from mmfast.demo.timing import Timing, time_losses

# Measured so that the whole demo ends within 5 minutes (emoji) and 30 seconds (digits) on two cores.
DEFAULT_EPOCHS = {"emoji": 85, "digits": 10}
MARGIN = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``mmfast demo``."""
    parser.add_argument(
        "--data", choices=("emoji", "digits"), default="emoji", help="what to train on; digits need no network"
    )
    parser.add_argument("--loss", choices=training.LOSSES, default="both", help="what is minimised (default: both)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default: out/demo)")
    parser.add_argument(
        "--epochs",
        type=positive_integer,
        help="passes over the training pairs (default: {emoji} emoji, {digits} digits)".format(**DEFAULT_EPOCHS),
    )
    parser.add_argument(
        "--batch-size", type=pairs_a_step, default=128, help="pairs per step, compared with each other (default: 128)"
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the weights, the order and the variations (default: 0)"
    )
    parser.add_argument("--cache", type=Path, help="folder for downloads (default: mmfast in the user's cache folder)")


def run(args: argparse.Namespace) -> int:
    """Run the demo and say where its report lies."""
    # Loads matplotlib and jinja2, which nobody should wait for who only asks for --help.
    from mmfast.demo.run_folder import RunFolder, prepare

    console = Console()
    earlier = prepare(args.out)
    dataset = _load(args.data, args.cache, console)
    epochs = args.epochs or DEFAULT_EPOCHS[dataset.name]
    if earlier:
        console.print(f"{args.out} holds an earlier run, which this one overwrites", markup=False, soft_wrap=True)
    console.print(f"Training on {len(dataset.train):,} pairs of {dataset.name}, loss: {args.loss}")
    model = JointModel.for_pairs(dataset.train, seed=args.seed)
    history = training.train(
        model, dataset.train, loss=args.loss, epochs=epochs, batch_size=args.batch_size, seed=args.seed, margin=MARGIN
    )

    recalls: list[evaluation.Recall] = []
    for split, pairs in dataset.splits.items():
        recalls += evaluation.score(split, *model.encode(pairs), pairs.labels)
    console.print(recall_table(recalls))

    with console.status("Timing the loss and writing the report"):
        images, _ = model.encode(dataset.train)
        timings = time_losses(images, dataset.train.labels, margin=MARGIN)
        options: dict[str, object] = {
            "data": dataset.name, "loss": args.loss, "epochs": epochs, "batch_size": args.batch_size, "seed": args.seed,
        }  # fmt: skip
        RunFolder.write(args.out, model, dataset, history, recalls, timings, options)
    console.print(timing_table(timings))
    console.print(f"Report: {args.out / 'report.html'}")
    words = "red heart" if dataset.name == "emoji" else "seven"
    console.print(f'Search: {program()} search {args.out} "{words}"', soft_wrap=True)
    return 0


def recall_table(recalls: list[evaluation.Recall]) -> Group:
    """Lay out recall@k next to chance, one narrow table per split and one row per direction."""
    tables = []
    for split, rows in itertools.groupby(recalls, key=lambda recall: recall.split):
        table = Table("recall (by chance)", *(f"@{k}" for k in evaluation.AT), title_justify="left")
        for recall in rows:
            cells = (f"{recall.at[k]:.3f} ({recall.chance[k]:.3f})" for k in evaluation.AT)
            table.add_row(recall.direction, *cells)
            table.title = f"{split}, among {recall.candidates:,}"
        tables.append(table)
    return Group(*tables)


def timing_table(timings: list[Timing]) -> Table:
    """Lay out how long each implementation took for the loss and its gradient, and that all found the same loss."""
    table = Table("rows", "loss + gradient", "ms", "loss", "± float64", title="Speed on these embeddings")
    table.title_justify = "left"
    for timing in timings:
        cells = f"{timing.milliseconds:,.2f}", f"{timing.loss:,.7g}", f"{timing.relative_difference:.0e}"
        table.add_row(f"{timing.rows:,}", timing.name, *cells)
    return table


def _load(name: str, cache: Path | None, console: Console) -> Dataset:
    """Load what was asked for; where the emoji cannot be had, say why and go on with digits."""
    if name == "digits":
        return digits.load()
    try:
        return emoji.load(cache)
    except emoji.EmojiUnavailable as error:
        console.print(f"The emoji cannot be had: {error}. Going on with scikit-learn's digits.", style="yellow")
        return digits.load()
