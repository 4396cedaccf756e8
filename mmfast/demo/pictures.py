"""Between files and tensors: pictures read as the model wants them, and made fit to draw and save again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SIDE = 64  # pixels
DEEP = ("I", "F")  # pillow's modes of more than 8 bits begin so; pillow would clip them to white


class UnreadableError(Exception):
    """A picture cannot be decoded; the message says which and why."""


def read_picture(path: Path, side: int = SIDE) -> Tensor:  # (3, side, side) uint8
    """Decode a picture, upright, whole and upon white, scaled to fit a square."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(DEEP):
                raise UnreadableError(f"image {path} has more than 8 bits per channel ({image.mode}); convert it to 8")
            picture = ImageOps.exif_transpose(image).convert("RGBA")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UnreadableError(f"image {path} cannot be decoded: {reason}") from error
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    square = ImageOps.pad(flat, (side, side), Image.Resampling.LANCZOS, color="white")
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def to_image(picture: Tensor) -> Image.Image:  # (3, S, S) uint8
    """Turn a tensor into a picture that pillow draws and saves."""
    return Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy()))
