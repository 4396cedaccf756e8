"""The model: an image side and a text side, each projected to unit rows of one joint space.

Pictures go through a small CNN whose first layer reduces 64 × 64 to 16 × 16 at once, for that is where a CPU would
otherwise spend its time; captions through an ``EmbeddingBag`` over hashed n-grams; features that a pretrained encoder
made, on either side, through a small projection head.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmfast.demo import text
from mmfast.demo.pairs import Pairs

BATCH = 512  # rows encoded at a time
PICTURES = CAPTIONS = 0  # the width that stands for "not a matrix of features" in a checkpoint


def as_float_pictures(images: Tensor) -> Tensor:  # (N, 3 or 4, S, S) uint8
    """Scale pictures to [0, 1], those with an alpha channel upon white."""
    pictures = images.float() / 255
    if pictures.shape[1] == 4:
        alpha = pictures[:, 3:]
        pictures = pictures[:, :3] * alpha + (1 - alpha)
    return pictures


class Centre(nn.Module):
    """Bring [0, 1] to about zero mean and unit variance; most of an emoji is white."""

    def forward(self, pictures: Tensor) -> Tensor:
        return (pictures - 0.7) * 3


def _convolution(channels: int, wider: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, wider, size, stride=stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU(inplace=True),
    )


class PictureEncoder(nn.Sequential):
    """Pictures of any size from 16 × 16, values in [0, 1], to rows of ``joint`` features.

    The last maps are pooled to 2 × 2 rather than to one mean: where a part lies tells emoji apart.
    """

    def __init__(self, joint: int) -> None:
        super().__init__(
            Centre(),
            _convolution(3, 64, size=7, stride=4),
            _convolution(64, 128, size=3, stride=2),
            _convolution(128, 256, size=3, stride=2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 256, joint),
        )


class CaptionEncoder(nn.Module):
    """Captions to rows of ``joint`` features: the weighted mean of their n-grams' embeddings, then two layers.

    N-grams that the training never met say nothing, unless a caption has no others.
    """

    def __init__(self, joint: int, width: int = 128) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(text.BUCKETS, width, mode="sum")  # of features whose weights sum to 1
        nn.init.normal_(self.bag.weight, std=0.05)
        self.known: Tensor
        self.register_buffer("known", torch.zeros(text.BUCKETS, dtype=torch.bool))
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(inplace=True), nn.Linear(2 * width, joint))

    def forward(self, captions: list[str]) -> Tensor:
        buckets, offsets, weights = text.bags(captions)
        if self.training:
            self.known[buckets] = True
        else:
            weights = weights.where(self.known[buckets], 1e-6 * weights)
        row = torch.bucketize(torch.arange(len(buckets)), offsets, right=True) - 1
        weights = weights / torch.zeros(len(captions)).index_add_(0, row, weights)[row]
        features: Tensor = self.head(self.bag(buckets, offsets, weights))
        return features


class ProjectionHead(nn.Sequential):
    """Features of a pretrained encoder to rows of ``joint`` features."""

    def __init__(self, width: int, joint: int) -> None:
        super().__init__(
            nn.LayerNorm(width), nn.Linear(width, 4 * joint), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * joint, joint)
        )


class JointModel(nn.Module):
    """Image side and text side, both to unit rows of ``joint`` features, where a match is a small angle.

    Parameters
    ----------
    image_width, text_width : int
        The number of features per row, or 0 for pictures and captions.
    joint : int, default 128
        The number of features of the joint space.
    """

    def __init__(self, image_width: int = PICTURES, text_width: int = CAPTIONS, joint: int = 128) -> None:
        super().__init__()
        self.image_width, self.text_width, self.joint = image_width, text_width, joint
        self.image_side = PictureEncoder(joint) if image_width == PICTURES else ProjectionHead(image_width, joint)
        self.text_side = CaptionEncoder(joint) if text_width == CAPTIONS else ProjectionHead(text_width, joint)
        self.logit_scale = nn.Parameter(torch.tensor(20.0).log())  # 1 / temperature, used by the cross-entropy alone
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def for_pairs(cls, pairs: Pairs, joint: int = 128, seed: int = 0) -> JointModel:
        """Choose each side by what the pairs hold, with weights drawn from ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(
                image_width=PICTURES if pairs.images.ndim == 4 else pairs.images.shape[1],
                text_width=pairs.texts.shape[1] if isinstance(pairs.texts, Tensor) else CAPTIONS,
                joint=joint,
            )

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed uint8 pictures, float pictures in [0, 1], or features; unit rows, with gradient."""
        if images.dtype == torch.uint8:
            images = as_float_pictures(images)
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return F.normalize(self.image_side(images).float(), dim=1)

    def embed_texts(self, texts: list[str] | Tensor) -> Tensor:
        """Embed captions or features; unit rows, with gradient."""
        return F.normalize(self.text_side(texts), dim=1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images in eval mode, batch by batch."""
        self.eval()
        return torch.cat([self.embed_images(batch) for batch in torch.split(images, BATCH)])

    @torch.no_grad()
    def encode_texts(self, texts: list[str] | Tensor) -> Tensor:
        """Embed texts in eval mode, batch by batch."""
        self.eval()
        return torch.cat([self.embed_texts(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)])

    def encode(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Embed both sides in eval mode: (N, joint) images and (N, joint) texts."""
        return self.encode_images(pairs.images), self.encode_texts(pairs.texts)

    def save(self, path: Path) -> None:
        """Write a checkpoint that ``torch.load(path, weights_only=True)`` reads."""
        config = {"image_width": self.image_width, "text_width": self.text_width, "joint": self.joint}
        torch.save({"config": config, "state_dict": self.state_dict()}, path)

    @classmethod
    def load(cls, path: Path) -> JointModel:
        """Read what :meth:`save` wrote."""
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = cls(**checkpoint["config"])
        model.load_state_dict(checkpoint["state_dict"])
        return model.eval()
