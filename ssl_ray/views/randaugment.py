"""RandAugment on a whole batch at once, with parameters of its own for every image.

Implements: RandAugment (Cubuk et al., 2020) as in the released Noisy Student code: `num_ops` operations drawn uniformly
with replacement and always applied, fill value 128, nearest neighbour.

Magnitudes have two scales, by name:

    code         the released code's: level / 10, never clamped. Level 27, as the paper has it for the large nets, means a
                 rotation of up to 81 degrees, a colour factor of 4.96 and a cutout of 216 pixels; Solarize and Posterize
                 end above their range and do nothing.
    torchvision  31 bins as in `torchvision.transforms.RandAugment`: level 27 means 27 degrees and a factor of
                 1 +- 0.81. Translation follows `translate` in both scales.

Differs from the code: Posterize at level 20 and over (more than eight bits: a negative shift, undefined there) leaves the
image as it is. Operations run in float32 and cut to whole numbers after each, so that a pixel can differ by one from
8-bit arithmetic in places. `pool="paper"` leaves SolarizeAdd and Cutout out, which the paper's list of 14 lacks.

Ours, and not a wrapper, because no library draws per image inside a batch or reaches these magnitudes; a test holds every
operation against torchvision's functional of the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ssl_ray.randomness import BatchDraw
from ssl_ray.settings.views import RandAugmentConfig

FILL = 128.0


GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
PHOTOMETRIC = (
    "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness",
)  # fmt: skip
POOLS = {
    "geometric": GEOMETRIC,
    "paper": GEOMETRIC + PHOTOMETRIC,
    "code": (*GEOMETRIC, *PHOTOMETRIC, "SolarizeAdd", "Cutout"),
}


def magnitude(op: str, config: RandAugmentConfig) -> float:
    """The number that an operation takes at the configured level, without its sign; 0.0 where it takes none."""
    level = config.magnitude / 10 if config.scale == "code" else config.magnitude / 30
    factor = 1.8 * level + 0.1 if config.scale == "code" else 0.9 * level
    posterize = int(level * 4) if config.scale == "code" else 8 - round(level * 4)
    solarize = int(level * 256) if config.scale == "code" else 255 * (1 - level)
    return {
        "Rotate": 30.0 * level,
        "ShearX": 0.3 * level,
        "ShearY": 0.3 * level,
        "TranslateX": config.translate * level,
        "TranslateY": config.translate * level,
        "Posterize": float(posterize),
        "Solarize": float(solarize),
        "SolarizeAdd": float(int(level * 110)),
        "Color": factor,
        "Contrast": factor,
        "Brightness": factor,
        "Sharpness": factor,
        "Cutout": float(int(level * config.cutout)),
    }.get(op, 0.0)


def randaugment(images: torch.Tensor, config: RandAugmentConfig, draw: BatchDraw) -> torch.Tensor:
    """float32 [n, 3, H, W] with whole values 0..255 -> the same, augmented; every image by operations of its own."""
    pool = POOLS[config.pool]
    for _ in range(config.num_ops):
        choice = torch.from_numpy(draw.integers(len(pool)))  # [n]
        sign = torch.from_numpy(draw.integers(2)).mul(2).sub(1).float()  # [n], -1 or 1
        where = torch.from_numpy(draw.uniform(2))  # [n, 2], the centre of Cutout
        images = images.clone()
        geometric = torch.tensor([op in GEOMETRIC for op in pool])[choice]
        if geometric.any():
            index = geometric.nonzero()[:, 0]
            height, width = images.shape[2:]
            matrices = torch.stack([_matrix(pool[choice[i]], sign[i].item(), config, height, width) for i in index])
            rows = index.to(images.device)
            images[rows] = affine(images[rows], matrices.to(images.device))
        for number, op in enumerate(pool):
            index = (choice == number).nonzero()[:, 0]
            if op in GEOMETRIC or not len(index):
                continue
            rows = index.to(images.device)
            value = magnitude(op, config)
            if op == "Cutout":
                images[rows] = cutout(images[rows], value, where[index].to(images.device))
            elif op in _BLENDS and config.scale == "torchvision":
                images[rows] = _BLENDS[op](images[rows], (1 + sign[index] * value).to(images.device))
            elif op in _BLENDS:
                images[rows] = _BLENDS[op](images[rows], torch.full((len(index),), value, device=images.device))
            else:
                images[rows] = _POINTWISE[op](images[rows], value)
    return images


def _matrix(op: str, sign: float, config: RandAugmentConfig, height: int, width: int) -> torch.Tensor:
    """Build the affine map from output to input pixels, relative to the center of the image: float32 [2, 3].

    A rotation keeps the center. A shear keeps the first row or column, as the released code, Pillow and torchvision do.
    """
    value = sign * magnitude(op, config)
    if op == "Rotate":
        c, s = math.cos(math.radians(value)), math.sin(math.radians(value))
        return torch.tensor([[c, -s, 0.0], [s, c, 0.0]])
    if op == "ShearX":
        return torch.tensor([[1.0, value, value * height / 2], [0.0, 1.0, 0.0]])
    if op == "ShearY":
        return torch.tensor([[1.0, 0.0, 0.0], [value, 1.0, value * width / 2]])
    move_x, move_y = (value if op == "TranslateX" else 0.0), (value if op == "TranslateY" else 0.0)
    return torch.tensor([[1.0, 0.0, move_x], [0.0, 1.0, move_y]])


def affine(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Resample by per-image maps from output to input pixels (`[n, 2, 3]`), nearest neighbour, fill 128."""
    n, _, height, width = images.shape
    # affine_grid works on coordinates that run from -1 to 1, so x is in units of width / 2 and y of height / 2.
    half = torch.tensor([width / 2, height / 2], device=images.device)
    theta = matrices.clone()
    theta[:, :, :2] = matrices[:, :, :2] * half[None, None, :] / half[None, :, None]
    theta[:, :, 2] = matrices[:, :, 2] / half[None, :]
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    return F.grid_sample(images - FILL, grid, mode="nearest", padding_mode="zeros", align_corners=False) + FILL


def autocontrast(images: torch.Tensor, _: float = 0.0) -> torch.Tensor:
    """Stretch every channel to 0..255; a channel of one value stays."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    stretched = (images - low) * (255.0 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, _whole(stretched), images)


def equalize(images: torch.Tensor, _: float = 0.0) -> torch.Tensor:
    """Flatten the histogram of every channel, with Pillow's rounding."""
    n, channels, height, width = images.shape
    flat = images.reshape(n * channels, -1).long()
    histogram = torch.zeros(n * channels, 256, device=images.device).scatter_add_(1, flat, torch.ones_like(flat).float())
    # Pillow's step leaves the pixels of the brightest occupied level out.
    last = 255 - (histogram.flip(1) > 0).float().argmax(dim=1, keepdim=True)
    step = torch.floor((flat.shape[1] - histogram.gather(1, last)) / 255)
    before = histogram.cumsum(1) - histogram
    table = torch.floor((before + torch.floor(step / 2)) / step.clamp(min=1)).clamp(0, 255)
    mapped = table.gather(1, flat).reshape(n, channels, height, width)
    return torch.where(step.reshape(n, channels, 1, 1) > 0, mapped, images)


def invert(images: torch.Tensor, _: float = 0.0) -> torch.Tensor:
    return 255.0 - images


def posterize(images: torch.Tensor, bits: float) -> torch.Tensor:
    """Keep the highest `bits` bits; eight and more keep all."""
    step = float(2 ** (8 - min(int(bits), 8)))
    return torch.floor(images / step) * step


def solarize(images: torch.Tensor, threshold: float) -> torch.Tensor:
    return torch.where(images < threshold, images, 255.0 - images)


def solarize_add(images: torch.Tensor, addition: float) -> torch.Tensor:
    return torch.where(images < 128, (images + addition).clamp(0, 255), images)


def color(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(_grey(images).expand_as(images), images, factor)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(_grey(images).mean(dim=(2, 3), keepdim=True).expand_as(images), images, factor)


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(torch.zeros_like(images), images, factor)


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Away from a 3x3 smoothing (centre 5/13, others 1/13); the border stays."""
    kernel = torch.full((3, 3), 1 / 13, device=images.device)
    kernel[1, 1] = 5 / 13
    smooth = images.clone()
    if min(images.shape[2:]) >= 3:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel.expand(3, 1, 3, 3), groups=3).round()
    return _blend(smooth, images, factor)


def cutout(images: torch.Tensor, half: float, centre: torch.Tensor) -> torch.Tensor:
    """Fill a square of side 2 * half, cut at the border, around a centre given in [0, 1): [n, 2]."""
    height, width = images.shape[2:]
    y, x = torch.floor(centre[:, :1] * height), torch.floor(centre[:, 1:] * width)  # [n, 1]
    rows, columns = torch.arange(height, device=images.device)[None], torch.arange(width, device=images.device)[None]
    inside_y, inside_x = (rows >= y - half) & (rows < y + half), (columns >= x - half) & (columns < x + half)
    return torch.where((inside_y[:, :, None] & inside_x[:, None, :])[:, None], FILL, images)


def _grey(images: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device).reshape(1, 3, 1, 1)  # ITU-R 601-2
    return torch.floor((images * weights).sum(dim=1, keepdim=True))


def _blend(base: torch.Tensor, images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """base + factor * (images - base): factor 0 gives the base, 1 the image, beyond it the opposite of the base."""
    return _whole(base + factor.reshape(-1, 1, 1, 1) * (images - base))


def _whole(images: torch.Tensor) -> torch.Tensor:
    return torch.floor(images.clamp(0, 255))


_POINTWISE: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
}
_BLENDS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
