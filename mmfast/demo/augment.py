"""Variations of pictures and captions, so that what is learned is the motif and not one artist's drawing of it.

Pictures are varied as whole batches of tensors: first their colours, then position, size, angle and shape by a single
resampling, then sharpness, and at last the background of those that have an alpha channel. Captions lose some of their
phrases and words. The amounts below were chosen by what they do to the recall on the emoji.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 32  # pictures: their tensors stay in the cache, which takes 0.33 ms each instead of 0.46 for 128 at once
ANGLE, SCALE, SHIFT, BEND = math.radians(15), (0.8, 1.25), 0.12, 0.06  # shifts and bends in half picture widths
MIRRORED = 0.25  # some motifs look left with one artist and right with another; letters do not, so most stay
BLUR = (-0.7, 1.0)  # below 0 sharpens
WHITE = 0.75  # the share upon white, the background on which pictures are scored
DROPPED_PHRASES, DROPPED_WORDS = 0.3, 0.1
EXCHANGED = 0.15  # artists choose other colours for signs, seldom for flags


def vary_pictures(images: Tensor) -> Tensor:
    """Draw a random variation of each picture: (N, 3 or 4, S, S) uint8 to (N, 3, S, S) float in [0, 1]."""
    return torch.cat([_vary(part) for part in torch.split(images, AT_ONCE)])


def _vary(images: Tensor) -> Tensor:
    pictures = images.float() / 255
    if pictures.shape[1] == 3:
        pictures = torch.cat([pictures, torch.ones_like(pictures[:, :1])], dim=1)
    # Colours are multiplied by alpha before resampling, so that no dark seam appears around the motif.
    colours, alpha = pictures[:, :3], pictures[:, 3:]
    pictures = _focus(_move(torch.cat([_recolour(colours) * alpha, alpha], dim=1)))
    colours, alpha = pictures[:, :3], pictures[:, 3:]
    return (colours + (1 - alpha) * _backgrounds(len(images))).clamp(0, 1)


def _uniform(count: int, low: float, high: float) -> Tensor:
    return torch.empty(count, 1, 1, 1).uniform_(low, high)


def _move(pictures: Tensor) -> Tensor:
    """Shift, scale, turn, shear, sometimes mirror and slightly bend each picture, all in one resampling."""
    n, _, height, width = pictures.shape
    angle = _uniform(n, -ANGLE, ANGLE)
    scale = _uniform(n, *SCALE)
    aspect = _uniform(n, 0.8, 1.25).sqrt()
    mirror = torch.where(torch.rand(n, 1, 1, 1) < MIRRORED, -1.0, 1.0)
    shear = _uniform(n, -0.15, 0.15)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    to_x = [cos * aspect * mirror, (shear * cos - sin) * aspect, _uniform(n, -SHIFT, SHIFT)]
    to_y = [sin / aspect * mirror, (shear * sin + cos) / aspect, _uniform(n, -SHIFT, SHIFT)]
    grid = F.affine_grid(torch.cat(to_x + to_y, dim=1).view(n, 2, 3), [n, 1, height, width], align_corners=False)
    bend = F.interpolate(torch.randn(n, 2, 4, 4) * BEND, size=(height, width), mode="bilinear", align_corners=False)
    return F.grid_sample(pictures, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def _focus(pictures: Tensor) -> Tensor:
    """Blur or sharpen each picture."""
    neighbours = pictures.roll(1, 2) + pictures.roll(-1, 2) + pictures.roll(1, 3) + pictures.roll(-1, 3)
    return pictures.lerp(neighbours / 4, _uniform(len(pictures), *BLUR)).clamp(0, 1)


def _backgrounds(count: int) -> Tensor:
    return torch.where(torch.rand(count, 1, 1, 1) < WHITE, 1.0, torch.rand(count, 3, 1, 1))


def _recolour(colours: Tensor) -> Tensor:
    """Vary saturation, contrast, brightness and tint, and rarely exchange the colour channels."""
    n = len(colours)
    order = torch.where(torch.rand(n, 1) < EXCHANGED, torch.rand(n, 3).argsort(dim=1), torch.arange(3))
    colours = colours.gather(1, order[:, :, None, None].expand_as(colours))
    grey = colours.mean(dim=1, keepdim=True)
    colours = grey + (colours - grey) * _uniform(n, 0.5, 1.5)
    tint = torch.empty(n, 3, 1, 1).uniform_(-0.1, 0.1)
    return ((colours - 0.5) * _uniform(n, 0.7, 1.3) + 0.5 + _uniform(n, -0.15, 0.15) + tint).clamp(0, 1)


def vary_caption(caption: str, rng: random.Random) -> str:
    """Drop some of a caption's phrases (they end at commas) and words, never all of them."""
    phrases = caption.split(", ")
    kept = [phrase for phrase in phrases if rng.random() >= DROPPED_PHRASES] or [rng.choice(phrases)]
    varied = [" ".join(word for word in phrase.split() if rng.random() >= DROPPED_WORDS) for phrase in kept]
    return ", ".join(varied) if any(varied) else kept[0]
