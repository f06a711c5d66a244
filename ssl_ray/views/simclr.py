"""The views of SimCLR, a whole batch at once on the training device, with parameters of its own for every image.

Implements: SimCLR (Chen et al., ICML 2020, appendix A) as in the authors' v2 code: random resized crop, flip, colour jitter
(four operations in random order, cut to the range after each; multiplicative brightness; TensorFlow's contrast, around the
mean of each channel, and saturation, in HSV), grey, Gaussian blur.

Differs from the code: the crop is drawn like torchvision's (ten tries, then the middle; the code tries a hundred times and
then takes all); sigma of the blur is drawn for each image and not for a whole batch; the blur's kernel is normalised at the
border, where the code's darkens from zero padding. Crop and blur are products with small matrices, which on a CPU is
faster than sampling a grid; the crop smooths where it shrinks.
"""

from __future__ import annotations

import numpy as np
import torch

from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import SimCLRViewConfig


def simclr_view(images: torch.Tensor, view: SimCLRViewConfig, draw: BatchDraw, size: int) -> torch.Tensor:
    """One random view of every image.

    Args:
        images: uint8 [n, 3, H, W].
        draw: parameters for the n images.

    Returns:
        float32 [n, 3, size, size] with values 0..255.
    """
    with torch.autocast(images.device.type, enabled=False):
        x = images.float() / 255.0
        device = x.device
        flipped = draw.uniform() < 0.5 if view.flip else np.zeros(draw.count, bool)
        boxes = crop_boxes(x.shape[2], x.shape[3], draw, 1.0 if view.decode_crops else view.crop)
        x = resized_crops(x, torch.from_numpy(boxes).to(device), torch.from_numpy(flipped).to(device), size)
        x = colour_jitter(x, view, draw)
        grey = torch.from_numpy(draw.uniform() < view.grey).to(device)
        x = torch.where(grey[:, None, None, None], _grey(x), x)
        chosen, sigma = draw.uniform() < view.blur, draw.uniform()
        index = torch.from_numpy(np.flatnonzero(chosen)).to(device)
        if len(index):
            low, high = view.sigma
            widths = torch.from_numpy(low + (high - low) * sigma).to(device)[index]
            x[index] = gaussian_blur(x[index], widths)
        return x * 255.0


def crop_boxes(height: int, width: int, draw: BatchDraw, least: float) -> np.ndarray:
    """top, left, height, width in pixels, int64 [n, 4]: an area share of `least` to 1, an aspect of 3/4 to 4/3.

    Of ten tries the first that fits is taken; without one, the largest square in the middle.
    """
    tries = draw.uniform(10, 2).astype(np.float64)
    area = (least + (1 - least) * tries[:, :, 0]) * height * width
    aspect = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * tries[:, :, 1])
    w, h = np.round(np.sqrt(area * aspect)).astype(np.int64), np.round(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first, rows = fits.argmax(axis=1), np.arange(len(w))
    side = min(height, width)
    w, h = np.where(fits.any(1), w[rows, first], side), np.where(fits.any(1), h[rows, first], side)
    where = draw.uniform(2).astype(np.float64)
    middle = ~fits.any(1)
    top = np.where(middle, (height - h) // 2, np.floor(where[:, 0] * (height - h + 1)).astype(np.int64))
    left = np.where(middle, (width - w) // 2, np.floor(where[:, 1] * (width - w + 1)).astype(np.int64))
    return np.stack([top, left, h, w], axis=1)


def resized_crops(x: torch.Tensor, boxes: torch.Tensor, flipped: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a box from every image and resize it: float [n, 3, H, W] -> [n, 3, size, size], bicubic, cut to [0, 1].

    Args:
        boxes: top, left, height, width, int64 [n, 4].
        flipped: bool [n], mirrored left to right.
    """
    rows = resize_matrix(boxes[:, 0], boxes[:, 2], x.shape[2], size)
    columns = resize_matrix(boxes[:, 1], boxes[:, 3], x.shape[3], size)
    columns = torch.where(flipped[:, None, None], columns.flip(1), columns)
    return (rows[:, None] @ x @ columns.transpose(1, 2)[:, None]).clamp(0, 1)


def resize_matrix(start: torch.Tensor, length: torch.Tensor, source: int, size: int) -> torch.Tensor:
    """float32 [n, size, source]: row i of a matrix gives pixel i from the pixels [start, start + length) of the source.

    The cubic kernel of Keys (1981) with a = -0.5, widened where the crop shrinks, as Pillow's.
    """
    scale = length.float() / size
    wide = scale.clamp(min=1.0)
    pixel = torch.arange(size, device=start.device) + 0.5
    centre = start.float()[:, None] + pixel[None, :] * scale[:, None]  # [n, size]
    place = torch.arange(source, device=start.device)
    distance = ((place + 0.5)[None, None, :] - centre[:, :, None]).abs() / wide[:, None, None]
    weight = torch.where(
        distance < 1,
        (1.5 * distance - 2.5) * distance.square() + 1,
        ((-0.5 * distance + 2.5) * distance - 4) * distance + 2,
    )
    inside = (place[None, :] >= start[:, None]) & (place[None, :] < (start + length)[:, None])
    weight = torch.where((distance < 2) & inside[:, None, :], weight, torch.zeros_like(weight))
    return weight / weight.sum(dim=2, keepdim=True)


def colour_jitter(x: torch.Tensor, view: SimCLRViewConfig, draw: BatchDraw) -> torch.Tensor:
    """Brightness, contrast, saturation and hue in an order of its own for every image; float [n, 3, H, W] in [0, 1]."""
    strong, hue = 0.8 * view.strength, 0.2 * view.strength if view.hue is None else view.hue
    applied, order = draw.uniform() < view.jitter, draw.uniform(4).argsort(axis=1)
    factors = max(0.0, 1 - strong) + (1 + strong - max(0.0, 1 - strong)) * draw.uniform(3)
    shift = (2 * draw.uniform() - 1) * hue
    if not view.strength and not hue:
        return x
    numbers = torch.from_numpy(np.concatenate([factors, shift[:, None]], axis=1).astype(np.float32)).to(x.device)
    x = x.clone()
    for place in range(4):
        for number, operation in enumerate((brightness, contrast, saturation, hue_shift)):
            rows = np.flatnonzero(applied & (order[:, place] == number))
            if len(rows):
                index = torch.from_numpy(rows).to(x.device)
                x[index] = operation(x[index], numbers[index, number].reshape(-1, 1, 1, 1)).clamp(0, 1)
    return x


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return x * factor


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    mean = x.mean(dim=(2, 3), keepdim=True)
    return mean + (x - mean) * factor


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """HSV's saturation times a factor, at most 1: every channel moves towards, or away from, the largest."""
    high, low = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)
    most = high / (high - low).clamp(min=1e-6)  # 1 / saturation
    return high - (high - x) * torch.minimum(factor, most)


def hue_shift(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """HSV's hue turned by a share of the circle."""
    red, green, blue = x[:, 0], x[:, 1], x[:, 2]
    high, low = x.amax(dim=1), x.amin(dim=1)
    range_ = high - low
    safe = range_.clamp(min=1e-6)
    sixths = torch.where(
        high == red,
        (green - blue) / safe,
        torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * turns[:, :, :, 0]
    channels = []
    for offset in (5, 3, 1):
        k = (offset + sixths) % 6
        channels.append(high - range_ * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1)


def gaussian_blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur with a sigma for every image, float [n]; the kernel reaches over a tenth of the side, made odd."""
    rows, columns = blur_matrix(sigma, x.shape[2]), blur_matrix(sigma, x.shape[3])
    return rows[:, None] @ x @ columns.transpose(1, 2)[:, None]


def blur_matrix(sigma: torch.Tensor, side: int) -> torch.Tensor:
    """float32 [n, side, side], rows that sum to one."""
    reach = max(1, side // 20)  # half of a tenth
    place = torch.arange(side, device=sigma.device)
    distance = (place[:, None] - place[None, :]).abs()
    weight = torch.exp(-distance.square()[None].float() / (2 * sigma.float().square()[:, None, None]))
    weight = torch.where(distance[None] <= reach, weight, torch.zeros_like(weight))
    return weight / weight.sum(dim=2, keepdim=True)


def _grey(x: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.2989, 0.587, 0.114], device=x.device).reshape(1, 3, 1, 1)
    return (x * weights).sum(dim=1, keepdim=True).expand_as(x)
