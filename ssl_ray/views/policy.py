"""From decoded pixels to the net's input: crop, flip, RandAugment, cutout, normalisation; in batches, on any device."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import Preprocess, ViewConfig
from ssl_ray.views.randaugment import cutout, randaugment


def augment(images: torch.Tensor, view: ViewConfig, draw: BatchDraw, noised: torch.Tensor | None = None) -> torch.Tensor:
    """Random views of a batch.

    Args:
        images: uint8 [n, 3, H, W].
        draw: parameters for the n images.
        noised: bool [n]; rows that are False pass unchanged (the ablation "no noise on unlabeled images").

    Returns:
        float32 [n, 3, H, W] with values 0..255.
    """
    original = images.float()
    images = original
    if view.crop == "pad" and view.pad:
        images = _pad_and_crop(images, view.pad, draw.integers(2 * view.pad + 1, 2))
    if view.flip:
        flipped = torch.from_numpy(draw.integers(2)).bool().to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    if view.randaugment is not None:
        images = randaugment(images, view.randaugment, draw)
    if view.cutout:
        images = cutout(images, view.cutout, torch.from_numpy(draw.uniform(2)).to(images.device))
    if noised is not None:
        images = torch.where(noised[:, None, None, None], images, original)
    return images


def normalize(images: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """uint8 or float [n, 3, H, W], 0..255 -> float32, channels last in memory: (x / 255 - mean) / std."""
    mean = torch.tensor(preprocess.mean, device=images.device).reshape(1, 3, 1, 1) * 255
    std = torch.tensor(preprocess.std, device=images.device).reshape(1, 3, 1, 1) * 255
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


def _pad_and_crop(images: torch.Tensor, pad: int, offsets: np.ndarray) -> torch.Tensor:
    """Reflect-pad by `pad` and cut the old size at per-image offsets, int64 [n, 2] in 0..2 * pad."""
    n, _, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad), mode="reflect")
    shift = torch.from_numpy(offsets).to(images.device)
    rows = shift[:, 0, None] + torch.arange(height, device=images.device)  # [n, H]
    columns = shift[:, 1, None] + torch.arange(width, device=images.device)  # [n, W]
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
