"""A finished run on disk: what ``mmfast demo`` and ``mmfast train`` leave behind, and what ``mmfast search`` opens.

    run.json         options, history, recall and timings; written last, so that half a run is not taken for a whole one
    gallery.json     captions and the pictures' origins, row by row
    pictures/        the pictures, row by row, as the model saw them
    images/          a durable index of the embedded images, by row number; texts/ likewise
    checkpoint.pt    the model
    report.html      with its contact sheets and curves as PNG files

Everything needed for a search is in here, so the folder can be moved, and the user's own pictures too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

import mmfast
from mmfast.cli import UserError
from mmfast.demo import report
from mmfast.demo.evaluation import Recall
from mmfast.demo.gallery import AnyIndex, Gallery
from mmfast.demo.models import JointModel
from mmfast.demo.pairs import Dataset, Pairs
from mmfast.demo.pictures import to_image
from mmfast.demo.timing import Timing
from mmfast.demo.training import Epoch

FORMAT = 2
RUN, GALLERY, PICTURES = "run.json", "gallery.json", "pictures"
CHECKPOINT, IMAGES, TEXTS = "checkpoint.pt", "images", "texts"
_FACTS = {RUN: {"format", "mmfast", "dataset"}, GALLERY: {"rows", "captions"}}  # what tells these files from others


@dataclass(frozen=True)
class RunFolder:
    """A run that can be searched."""

    root: Path
    model: JointModel
    images: AnyIndex  # keys are rows of the gallery
    texts: AnyIndex
    captions: list[str] | None  # None where the texts are features
    files: list[str] | None  # where each picture came from; None: see :meth:`file`
    side: int | None  # pixels of a picture

    @classmethod
    def write(
        cls,
        root: Path,
        model: JointModel,
        dataset: Dataset,
        history: list[Epoch],
        recalls: list[Recall],
        timings: list[Timing],
        options: dict[str, object],
        *,
        searchable: Pairs | None = None,
        files: list[str] | None = None,
    ) -> RunFolder:
        """Write a run and its report into ``root``, in place of an earlier run.

        ``searchable`` are the pairs that ``mmfast search`` will search, by default the first split, which the report
        shows in any case; ``files`` says where each of their pictures came from, by default the copy in this folder.
        """
        _make(root)
        (root / RUN).unlink(missing_ok=True)
        scored = Gallery.build(model, next(iter(dataset.splits.values())))
        gallery = scored if searchable is None else Gallery.build(model, searchable)
        pairs = gallery.pairs
        side = pairs.images.shape[-1] if pairs.images.ndim == 4 else None
        captions = None if isinstance(pairs.texts, Tensor) else pairs.texts
        # First, so that half a run is known as one.
        _write_json(root / GALLERY, {"rows": len(pairs), "side": side, "captions": captions, "files": files})
        if side is not None:
            _save_pictures(root / PICTURES, pairs.images, list(gallery.images.copies))
        _write_index(root / IMAGES, gallery.images.index)
        _write_index(root / TEXTS, gallery.texts.index)
        model.save(root / CHECKPOINT)
        report.write(root, dataset, scored, history, recalls, timings, options)
        facts = {
            "format": FORMAT,
            "mmfast": mmfast.__version__,
            "dataset": dataset.name,
            "splits": {name: len(split) for name, split in dataset.splits.items()},
            "options": options,
            "history": [dataclasses.asdict(epoch) for epoch in history],
            "recall": [dataclasses.asdict(recall) for recall in recalls],
            "timings": [dataclasses.asdict(timing) for timing in timings],
            "credits": dataset.credits,
        }
        _write_json(root / RUN, facts)
        return cls(root, model, gallery.images.index, gallery.texts.index, captions, files, side)

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """Open a run; a missing or damaged part is named in a ``UserError``."""
        if not root.is_dir():
            raise UserError(f"there is no folder {root}; make one with: mmfast demo --out {root}")
        if not (root / RUN).is_file():
            raise UserError(f"{root} is not the folder of a finished run: it has no {RUN}")
        made = _read_json(root / RUN).get("format")
        if made != FORMAT:
            raise UserError(f"{root / RUN} has format {made!r}, but this mmfast reads {FORMAT}; run it again")
        gallery = _read_json(root / GALLERY)
        try:
            rows, side, captions, files = (gallery[name] for name in ("rows", "side", "captions", "files"))
        except KeyError as error:
            raise _damaged(root / GALLERY, f"it lacks {error}") from error
        model = _load_model(root / CHECKPOINT)
        images, texts = (_open_index(root / name, model.joint, rows) for name in (IMAGES, TEXTS))
        return cls(root, model, images, texts, captions, files, side)

    def file(self, row: int) -> str:
        """Name the picture of a row: where it came from, or else the copy, by its path within this folder."""
        return self.files[row] if self.files else str(picture_path(self.root, row).relative_to(self.root))

    def picture(self, row: int) -> Image.Image:
        """Open the picture of a row."""
        path = picture_path(self.root, row)
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except OSError as error:
            raise _damaged(path, str(error)) from error


def picture_path(root: Path, row: int) -> Path:
    """Name the file that holds the picture of a row."""
    return root / PICTURES / f"{row:06d}.png"


def prepare(root: Path) -> bool:
    """Make the folder, or say why nothing can be written there; call it before a long computation.

    True where the folder holds an earlier run, or a part of one, which would be overwritten; anything else is refused.
    """
    _make(root)
    there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    earlier = any(_is_ours(root / name, facts) for name, facts in _FACTS.items())
    if there and not earlier:
        shown = ", ".join(there[:3]) + (f" and {len(there) - 3:,} more" if len(there) > 3 else "")
        raise UserError(
            f"--out {root} is a folder of something else than an earlier run: it holds {shown}; name another folder, "
            "or one that is not there yet"
        )
    return earlier


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".mmfast-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {root}: {error.strerror or error}; choose another --out") from error


def _is_ours(path: Path, facts: set[str]) -> bool:
    try:
        return path.is_file() and facts <= _read_json(path).keys()
    except UserError:
        return False


def _save_pictures(folder: Path, pictures: Tensor, rows: list[int]) -> None:
    """Save the distinct pictures, and remove those of an earlier run."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("[0-9]" * 6 + ".png"):
        old.unlink()
    for row in rows:
        to_image(pictures[row]).save(picture_path(folder.parent, row), compress_level=3)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(_without_nan(content), ensure_ascii=False, indent=1, default=str), encoding="utf-8")


def _without_nan(value: Any) -> Any:
    """Put null for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it does not hold a JSON object")
    return content


def _load_model(path: Path) -> JointModel:
    try:
        return JointModel.load(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise _damaged(path, str(error).partition("\n")[0]) from error


def _write_index(path: Path, index: mmfast.Index) -> None:
    if path.exists():
        shutil.rmtree(path)
    with mmfast.Index.open(path, index.ndim, index.metric, index.dtype) as durable:
        keys = index.keys()
        durable.add(keys, index.get(keys))


def _open_index(path: Path, joint: int, rows: int) -> AnyIndex:
    try:
        index = mmfast.Index.open(path, read_only=True)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if index.ndim != joint or len(index) > rows:
        raise _damaged(path, f"it holds {len(index):,} rows of {index.ndim}, expected up to {rows:,} of {joint}")
    return index


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} cannot be read: {reason}; run `mmfast demo` or `mmfast train` again")
