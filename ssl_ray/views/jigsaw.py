"""Puzzles of nine tiles, a whole batch at once on the training device.

Implements: Jigsaw (Noroozi and Favaro, ECCV 2016) and Jigsaw++ (Noroozi et al., CVPR 2018), in the order of the released
code: colour of the image, tiles with gaps and shifted channels, permutation, occluding tiles of one other image,
normalisation of every tile. All sizes follow from the image's: the released 255 pixels give cells of 85, tiles of 64 and
gaps of up to 21.

Differs from the code: the occluding image is another one of the batch, with its own puzzle's colour and gaps, where the code
reads a second stream.
"""

from __future__ import annotations

import numpy as np
import torch

from ssl_ray.permutations import TILES
from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import SIDE, JigsawViewConfig, Sizes


def puzzles(
    images: torch.Tensor, permutations: torch.Tensor, view: JigsawViewConfig, draw: BatchDraw, partner: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """A puzzle of every image, and which permutation it shows.

    Args:
        images: uint8 [n, 3, S, S].
        permutations: uint8 [P, 9], slot i shows tile row[i].
        draw: parameters for the n images.
        partner: int64 [n], the image whose tiles occlude each one.

    Returns:
        Tiles float32 [n, 9, 3, T, T], and labels int64 [n].
    """
    sizes, device, count = Sizes(images.shape[2], view), images.device, len(images)
    with torch.autocast(device.type, enabled=False):
        x = recoloured(images.float(), view, draw)
        tiles = cut(x, sizes, draw)
        label = torch.from_numpy(draw.integers(len(permutations))).to(device)
        slots = permutations.to(device).long()[label]  # [n, 9]
        shown = tiles.gather(1, slots.reshape(count, TILES, 1, 1, 1).expand_as(tiles))
        if view.occluded:
            shown = occluded(shown, tiles[torch.from_numpy(partner).to(device)], view.occluded, draw)
        return normalised(shown, view), label


def recoloured(x: torch.Tensor, view: JigsawViewConfig, draw: BatchDraw) -> torch.Tensor:
    """Grey, or without the axis (-1, 2, -1) that chromatic aberration shows on, or as it is; float [n, 3, S, S]."""
    grey = torch.from_numpy(draw.uniform() < view.grey).to(x.device)
    projected = torch.from_numpy(draw.uniform() < view.projected).to(x.device)
    axis = torch.tensor([-1.0, 2.0, -1.0], device=x.device)
    matrix = torch.eye(3, device=x.device) - torch.outer(axis, axis) / axis.dot(axis)
    x = torch.where(projected[:, None, None, None] & ~grey[:, None, None, None], torch.einsum("ij,njhw->nihw", matrix, x), x)
    return torch.where(grey[:, None, None, None], x.mean(dim=1, keepdim=True).expand_as(x), x)


def cut(x: torch.Tensor, sizes: Sizes, draw: BatchDraw) -> torch.Tensor:
    """Nine tiles, each at an offset of its own in its cell, each channel shifted a little more: [n, 9, 3, T, T]."""
    count, channels = x.shape[:2]
    jitter = draw.integers(sizes.jitter + 1, TILES, 1, 2)
    shift = draw.integers(sizes.shift + 1, TILES, channels, 2)
    corner = np.stack(np.divmod(np.arange(TILES), SIDE), axis=1).reshape(1, TILES, 1, 2) * sizes.cell
    start = torch.from_numpy(corner + jitter + shift).to(x.device)  # [n, 9, 3, 2]: top, left
    place = torch.arange(sizes.tile, device=x.device)
    rows, columns = start[..., 0, None] + place, start[..., 1, None] + place  # [n, 9, 3, T]
    image = torch.arange(count, device=x.device).reshape(-1, 1, 1, 1, 1)
    channel = torch.arange(channels, device=x.device).reshape(1, 1, -1, 1, 1)
    return x[image, channel, rows[..., :, None], columns[..., None, :]]


def occluded(shown: torch.Tensor, others: torch.Tensor, most: int, draw: BatchDraw) -> torch.Tensor:
    """Of every puzzle, 0 to `most` slots at random get tiles of the other image, from places of their own at random."""
    number = draw.integers(most + 1)  # [n]
    slot, source = draw.uniform(TILES).argsort(axis=1), draw.uniform(TILES).argsort(axis=1)  # [n, 9]
    result = shown.clone()
    for place in range(most):
        rows = np.flatnonzero(number > place)
        index = torch.from_numpy(rows).to(shown.device)
        to, of = (torch.from_numpy(order[rows, place]).to(shown.device) for order in (slot, source))
        result[index, to] = others[index, of]
    return result


def normalised(tiles: torch.Tensor, view: JigsawViewConfig) -> torch.Tensor:
    """Every tile to mean 0 and deviation 1, so that its brightness tells nothing about its neighbours; without, to -1..1."""
    if view.norm == "none":
        return view.scale * (tiles / 127.5 - 1)
    over = (2, 3, 4) if view.norm == "joint" else (3, 4)
    mean = tiles.mean(dim=over, keepdim=True)
    deviation = tiles.std(dim=over, keepdim=True, unbiased=False)
    # A flat tile has no deviation, but for rounding.
    return view.scale * torch.where(deviation > 1e-3, (tiles - mean) / (deviation + 1e-9), torch.zeros_like(tiles))
