"""Emoji as drawn by two studios: trained on one artist's drawings, scored on another's and on emoji never seen.

Of the emoji that both Google (Noto) and Twitter (Twemoji) drew, four fifths are trained on, with Google's drawings
alone. The split "unseen artist" holds Twitter's drawings of the same emoji; "unseen emoji" holds Twitter's drawings of
the remaining fifth, of which neither a drawing nor a name took part in the training: a new artist and a new motif.
"unseen emoji, seen artist" holds Google's drawings of that fifth, which tells apart how much each novelty costs.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfast.demo import download, models, text
from mmfast.demo.pairs import Dataset, Pairs

SIDE, MOTIF = 64, 58  # pixels: of a picture, and of the longer side of what is drawn in it
HELD_OUT = 0.2
GOOGLE = download.Package(
    "emoji-datasource-google",
    "16.0.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    megabytes=74,
)
TWITTER = download.Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
    megabytes=62,
)
CREDITS = (
    "Trained on the drawings of Noto Emoji (© Google, Apache License 2.0) and tested on the drawings of Twemoji "
    "(© Twitter, Inc., now X Corp., and other contributors, CC BY 4.0), here composed upon white. Names and pictures "
    "were read from the npm packages emoji-datasource-google and emoji-datasource-twitter 16.0.0 by Cal Henderson "
    "(emoji-data, MIT License)."
)


class EmojiUnavailable(Exception):
    """The emoji cannot be had; the message says why."""


def load(cache: Path | None = None, progress: bool = True, split_seed: int = 0) -> Dataset:
    """Fetch both studios' drawings, unless the cache has them, and split them.

    Parameters
    ----------
    cache : Path, optional
        Where the archives are kept; by default ``mmfast`` in the user's cache folder.
    progress : bool, default True
        Show what is being downloaded.
    split_seed : int, default 0
        Which fifth of the emoji is held out. It is not the seed of the training, so that runs stay comparable.

    Raises
    ------
    EmojiUnavailable
        npm or the network is missing, or what arrived is not what was published.
    """
    try:
        google, twitter = download.fetch([GOOGLE, TWITTER], cache, progress)
    except download.DownloadError as error:
        raise EmojiUnavailable(str(error)) from error
    return from_archives(google, twitter, split_seed)


def from_archives(google: Path, twitter: Path, split_seed: int = 0) -> Dataset:
    """Read both archives, keep the emoji that both studios drew, and split them."""
    entries, google_files = _read_archive(google, "google")
    _, twitter_files = _read_archive(twitter, "twitter")
    drawn = [e for e in entries if e["image"] in google_files and e["image"] in twitter_files]
    drawn.sort(key=lambda entry: str(entry["image"]))
    captions = [caption(entry) for entry in drawn]

    held_out = set(random.Random(split_seed).sample(range(len(drawn)), round(HELD_OUT * len(drawn))))
    seen = [row for row in range(len(drawn)) if row not in held_out]
    unseen = sorted(held_out)

    def pairs(files: dict[str, bytes], rows: list[int]) -> Pairs:
        pictures = torch.stack([_decode(files[drawn[row]["image"]]) for row in rows])
        kinds = [text.clean(drawn[row]["subcategory"]) for row in rows]
        return Pairs(pictures, [captions[row] for row in rows], torch.tensor(rows), kinds)

    return Dataset(
        name="emoji",
        train=pairs(google_files, seen),  # with alpha, so that the background can vary
        splits={
            "unseen artist": _upon_white(pairs(twitter_files, seen)),
            "unseen emoji": _upon_white(pairs(twitter_files, unseen)),
            "unseen emoji, seen artist": _upon_white(pairs(google_files, unseen)),
        },
        credits=CREDITS,
    )


def caption(entry: dict[str, Any]) -> str:
    """Join an emoji's name, its short names and, as its keywords, its subcategory and category; no phrase twice.

    >>> caption({"name": "ROSE", "short_names": ["rose"], "subcategory": "plant-flower", "category": "Nature"})
    'rose, plant flower, nature'
    """
    phrases = [entry["name"], *entry["short_names"], entry["subcategory"], entry["category"]]
    return ", ".join(dict.fromkeys(text.clean(phrase) for phrase in phrases))


def _read_archive(path: Path, studio: str) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Read emoji.json and the 64-pixel drawings into memory; nothing of the archive is written to disk."""
    folder = f"package/img/{studio}/{SIDE}/"
    entries: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            wanted = member.name == "package/emoji.json" or member.name.startswith(folder)
            content = archive.extractfile(member) if wanted else None
            if content is None:
                continue
            if member.name.endswith(".json"):
                entries = json.load(content)
            else:
                files[member.name.removeprefix(folder)] = content.read()
    return entries, files


def _decode(png: bytes) -> Tensor:  # (4, SIDE, SIDE) uint8
    """Centre the motif in the picture, equally large whoever drew it."""
    with Image.open(io.BytesIO(png)) as image:
        motif = image.convert("RGBA")
    motif = motif.crop(motif.getchannel("A").getbbox())
    width, height = (max(1, round(length * MOTIF / max(motif.size))) for length in motif.size)
    picture = Image.new("RGBA", (SIDE, SIDE))
    picture.paste(motif.resize((width, height), Image.Resampling.LANCZOS), ((SIDE - width) // 2, (SIDE - height) // 2))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _upon_white(pairs: Pairs) -> Pairs:
    pictures = (models.as_float_pictures(pairs.images) * 255).round().to(torch.uint8)
    return replace(pairs, images=pictures)
