"""``mmfast train``: train a joint space on one's own pictures and captions, or on features of pretrained encoders."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from rich.console import Console

from mmfast.cli import UserError, pairs_a_step, positive_integer, program, seed
from mmfast.demo import evaluation, features, manifest, training
from mmfast.demo.demo_command import MARGIN, recall_table, timing_table
from mmfast.demo.models import JointModel
from mmfast.demo.pairs import Dataset, Pairs
from mmfast.demo.timing import time_losses

# A training step compares matches with mismatches, and so does a score: either needs two labels at least.
MIN_LABELS = 2
SPLIT = "held out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``mmfast train``."""
    parser.add_argument(
        "manifest",
        nargs="?",
        type=Path,
        metavar="MANIFEST",
        help="CSV or JSON-lines file with image (a path, relative to the file), caption and, optionally, label; "
        "images and captions with the same label match each other, and without labels those that share a line",
    )
    parser.add_argument("--images", type=Path, metavar="A.npy", help="instead: features of the images, (N, F) floats")
    parser.add_argument("--texts", type=Path, metavar="B.npy", help="and features of their texts, (N, E) floats")
    parser.add_argument("--labels", type=Path, metavar="Y.npy", help="(N,) integers; default: row i matches row i")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--loss", choices=training.LOSSES, default="both", help="what is minimised (default: both)")
    parser.add_argument("--epochs", type=positive_integer, default=40, help="passes over the data (default: 40)")
    parser.add_argument(
        "--batch-size", type=pairs_a_step, default=128, help="pairs per step, compared with each other (default: 128)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the weights, the order and the split (default: 0)")
    parser.add_argument(
        "--holdout",
        type=share_of_rows,
        default=0.1,
        help="share of the rows kept from training and scored: whole labels, two at least (default: 0.1)",
    )


def run(args: argparse.Namespace) -> int:
    """Read, check, train, score and write the run."""
    from mmfast.demo.run_folder import RunFolder, prepare

    console = Console()
    earlier = prepare(args.out)
    pairs, files = _read(args)
    train_rows, held_out_rows = split_by_label(pairs.labels.tolist(), args.holdout, args.seed)
    dataset = Dataset("own data", _rows(pairs, train_rows), {SPLIT: _rows(pairs, held_out_rows)}, credits="")
    if earlier:
        console.print(f"{args.out} holds an earlier run, which this one overwrites", markup=False, soft_wrap=True)
    console.print(f"Training on {len(train_rows):,} pairs, {len(held_out_rows):,} held out, loss: {args.loss}")
    model = JointModel.for_pairs(dataset.train, seed=args.seed)
    history = training.train(
        model, dataset.train, loss=args.loss, epochs=args.epochs, batch_size=args.batch_size, seed=args.seed,
        margin=MARGIN,
    )  # fmt: skip
    held_out = dataset.splits[SPLIT]
    images, texts = model.encode(held_out)
    if not (images.isfinite().all() and texts.isfinite().all()):
        raise UserError("the training diverged (the embeddings are not finite); scale the features to about unit size")
    recalls = evaluation.score(SPLIT, images, texts, held_out.labels)
    console.print(recall_table(recalls))

    with console.status("Timing the loss and writing the report"):
        timings = time_losses(model.encode_images(dataset.train.images), dataset.train.labels, margin=MARGIN)
        options: dict[str, object] = {
            "data": args.manifest or f"{args.images}, {args.texts}", "held out": f"{len(held_out):,} of {len(pairs):,}",
            "loss": args.loss, "epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed,
        }  # fmt: skip
        RunFolder.write(args.out, model, dataset, history, recalls, timings, options, searchable=pairs, files=files)
    console.print(timing_table(timings))
    console.print(f"Report: {args.out / 'report.html'}", soft_wrap=True)
    query = "WORDS or PICTURE" if files else "VECTOR.npy --as text"
    console.print(f"Search: {program()} search {args.out} {query}", soft_wrap=True)
    return 0


def _read(args: argparse.Namespace) -> tuple[Pairs, list[str] | None]:
    """Read a manifest or features, whichever was given."""
    if args.manifest is not None:
        if args.images or args.texts or args.labels:
            raise UserError("give either MANIFEST, or --images and --texts, not both")
        return manifest.read_manifest(args.manifest)
    if args.images is None or args.texts is None:
        raise UserError("give MANIFEST (CSV or JSON lines), or both --images and --texts (.npy)")
    return features.read_features(args.images, args.texts, args.labels), None


def split_by_label(labels: list[int], holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Hold out labels drawn at random until ``holdout`` of the rows is reached; return rows to train on and held out.

    Whole labels are held out, so that nothing that was trained on has a match among what is scored.
    """
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    if len(rows_of) < 2 * MIN_LABELS:
        raise UserError(
            f"{2 * MIN_LABELS} different labels are needed, {MIN_LABELS} to train on and {MIN_LABELS} to hold out; "
            f"got {len(rows_of)} among {len(labels)} rows"
        )
    order = random.Random(seed).sample(list(rows_of), len(rows_of))
    taken: list[int] = []
    for position, label in enumerate(order):
        enough = position >= MIN_LABELS and len(taken) >= holdout * len(labels)
        if enough or len(order) - position <= MIN_LABELS:
            break
        taken.extend(rows_of[label])
    held_out = set(taken)
    return [row for row in range(len(labels)) if row not in held_out], sorted(held_out)


def _rows(pairs: Pairs, rows: list[int]) -> Pairs:
    chosen = torch.tensor(rows)
    texts = [pairs.texts[row] for row in rows] if isinstance(pairs.texts, list) else pairs.texts[chosen]
    return Pairs(pairs.images[chosen], texts, pairs.labels[chosen])


def share_of_rows(text: str) -> float:
    """Read a share; argparse names this function where it fails."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}")
    return value
