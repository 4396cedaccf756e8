"""Training of a joint space: the pairwise hinge loss across the two sides, a cross-entropy over the batch, or both.

All randomness (order, variations, dropout) follows from ``seed``, so a run repeats exactly on the same machine with the
same number of threads.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import mmfast
from mmfast.demo import augment
from mmfast.demo.models import JointModel
from mmfast.demo.muon import Muon
from mmfast.demo.pairs import Pairs

Loss = Literal["hinge", "infonce", "both"]
LOSSES: tuple[Loss, ...] = ("hinge", "infonce", "both")
HINGE_WEIGHT = 0.25  # beside the cross-entropy; more of it costs recall on the emoji (0.53 instead of 0.54 at 1)
MUON_RATE = 10.0  # times the learning rate; 25 does as well on the emoji, 2.5 a little worse
TOLD = 10  # lines of progress, where there is no terminal for a bar
MAX_LOGIT_SCALE = 100.0  # as in CLIP: beyond it the softmax is a hard maximum


@dataclass(frozen=True)
class Epoch:
    """The mean losses over one epoch; nan where a loss is not used."""

    number: int
    hinge: float
    infonce: float
    seconds: float


class JointLoss(NamedTuple):
    """What is minimised, and its parts; nan where a part is not used."""

    total: Tensor
    hinge: float
    infonce: float


def joint_loss(
    image_embeddings: Tensor,  # (B, D) unit rows
    text_embeddings: Tensor,  # (B, D) unit rows
    labels: Tensor,  # (B,)
    loss: Loss = "both",
    *,
    logit_scale: float | Tensor = 10.0,
    margin: float = 1.0,
    label_smoothing: float = 0.0,
) -> JointLoss:
    """Compare all images of a batch with all its texts: HINGE_WEIGHT * hinge + cross-entropy, or one of them."""
    total = image_embeddings.new_zeros(())
    hinge = infonce = math.nan
    if loss != "infonce":
        # Positives and active negatives weigh the same, however many there are of either: a plain sum lets the majority
        # win, and all images end in one point, all texts in another.
        pair_hinge = mmfast.contrastive_loss(
            image_embeddings, labels, text_embeddings, labels, margin=margin, reduction="mean_nonzero"
        )
        total = total + (HINGE_WEIGHT if loss == "both" else 1.0) * pair_hinge
        hinge = pair_hinge.item()
    if loss != "hinge":
        cross_entropy = symmetric_cross_entropy(image_embeddings, text_embeddings, labels, logit_scale, label_smoothing)
        total, infonce = total + cross_entropy, cross_entropy.item()
    return JointLoss(total, hinge, infonce)


def symmetric_cross_entropy(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    labels: Tensor,
    logit_scale: float | Tensor,
    label_smoothing: float = 0.0,
) -> Tensor:
    """InfoNCE in both directions; a row with several matches in the batch aims at each of them equally."""
    logits = logit_scale * image_embeddings @ text_embeddings.T
    matches = (labels[:, None] == labels[None, :]).to(logits.dtype)
    targets = matches / matches.sum(dim=1, keepdim=True)  # symmetric, as both sides share the labels
    return 0.5 * (
        F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        + F.cross_entropy(logits.T, targets, label_smoothing=label_smoothing)
    )


def train(
    model: JointModel,
    pairs: Pairs,
    *,
    loss: Loss = "both",
    epochs: int,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    margin: float = 1.0,
    label_smoothing: float = 0.1,
) -> list[Epoch]:
    """Train the model in place and return the history; the weights left behind are the running average.

    Where the pairs belong to groups, each picture is also compared with the keywords of all groups in its batch. That
    easier lesson is what carries over to motifs never seen; the history shows the captions' losses alone.
    """
    with torch.random.fork_rng(devices=[]), _display(progress) as display:
        torch.manual_seed(seed)
        rng = random.Random(seed)
        steps = epochs * math.ceil(len(pairs) / batch_size)
        optimizers = _optimizers(model, learning_rate, weight_decay)
        schedules = [
            torch.optim.lr_scheduler.OneCycleLR(
                optimizer, optimizer.defaults["lr"], total_steps=max(steps, 2), pct_start=0.15, cycle_momentum=False
            )
            for optimizer in optimizers
        ]
        bfloat16 = _computes_bfloat16()
        average = AveragedModel(model, avg_fn=_running_average, use_buffers=True)
        groups = _numbered(pairs.groups or [])

        def compare(image_embeddings: Tensor, texts: list[str] | Tensor, labels: Tensor) -> JointLoss:
            scale = model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
            text_embeddings = model.embed_texts(texts)
            return joint_loss(
                image_embeddings, text_embeddings, labels, loss,
                logit_scale=scale, margin=margin, label_smoothing=label_smoothing,
            )  # fmt: skip

        def step(rows: Tensor) -> JointLoss:
            images, texts = _varied(pairs, rows, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                image_embeddings = model.embed_images(images)
            parts = compare(image_embeddings, texts, pairs.labels[rows])
            total = parts.total
            if pairs.groups is not None:
                keywords = [pairs.groups[row] for row in rows.tolist()]
                total = total + compare(image_embeddings, keywords, groups[rows]).total
            model.zero_grad()
            torch.autograd.backward(total)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
            average.update_parameters(model)
            return parts

        history: list[Epoch] = []
        task = display.add_task("", total=epochs, losses="")
        for number in range(1, epochs + 1):
            started, hinge, infonce = time.perf_counter(), 0.0, 0.0
            model.train()
            for rows in _batches(len(pairs), batch_size):
                parts = step(rows)
                hinge += parts.hinge * len(rows) / len(pairs)
                infonce += parts.infonce * len(rows) / len(pairs)
            history.append(Epoch(number, hinge, infonce, time.perf_counter() - started))
            display.update(task, advance=1, losses=_in_words(history[-1]))
            if progress and not display.console.is_terminal and number % max(1, epochs // TOLD) == 0:
                print(f"epoch {number}/{epochs}  {_in_words(history[-1])}", file=sys.stderr, flush=True)
        model.load_state_dict(average.module.state_dict())
        model.eval()
    return history


def _display(shown: bool) -> Progress:
    return Progress(
        TextColumn("Training"),
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}  {task.fields[losses]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        disable=not shown,
    )


def _computes_bfloat16() -> bool:
    """Say whether this CPU multiplies bfloat16 natively: then the CNN trains almost twice as fast, equally well."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # newer than torch 2.6
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _running_average(average: Tensor, current: Tensor, steps: int | Tensor) -> Tensor:
    """Average over about the last 50 steps; over fewer at first, so that the start is soon forgotten."""
    if not current.is_floating_point():  # a counter
        return current
    return average.lerp(current, max(0.02, 9 / (10 + int(steps))))


def _numbered(keywords: list[str]) -> Tensor:
    """Number equal keywords equally."""
    numbers = {keyword: number for number, keyword in enumerate(dict.fromkeys(keywords))}
    return torch.tensor([numbers[keyword] for keyword in keywords], dtype=torch.int64)


def _in_words(epoch: Epoch) -> str:
    losses = {"hinge": epoch.hinge, "infonce": epoch.infonce}
    return "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if not math.isnan(value))


def _optimizers(model: nn.Module, learning_rate: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers; AdamW for embeddings, which decay, and for biases, norms and the temperature."""
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.EmbeddingBag)]
    known = {id(weight) for weight in embeddings}
    layers = [p for p in model.parameters() if p.ndim > 1 and id(p) not in known]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": embeddings, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [Muon(layers, MUON_RATE * learning_rate), torch.optim.AdamW(groups, lr=learning_rate, fused=True)]


def _batches(rows: int, batch_size: int) -> Iterator[Tensor]:
    """Cut a random order into batches of nearly equal size, so that none is too small for batch statistics."""
    yield from torch.randperm(rows).tensor_split(math.ceil(rows / batch_size))


def _varied(pairs: Pairs, rows: Tensor, rng: random.Random) -> tuple[Tensor, list[str] | Tensor]:
    images = pairs.images[rows]
    if images.ndim == 4:
        images = augment.vary_pictures(images)
    if isinstance(pairs.texts, Tensor):
        return images, pairs.texts[rows]
    return images, [augment.vary_caption(pairs.texts[row], rng) for row in rows.tolist()]
