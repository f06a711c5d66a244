"""Images with what stands in them drawn over: boxes with their classes, or masks in colours."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ssl_ray.tasks.boxes import Boxes
from ssl_ray.tasks.masks import IGNORE, Mask

SIDE = 192
"""Pixels of the longer side of a drawing."""


def colour(label: int) -> tuple[int, int, int]:
    """Of a class: neighbours in number are far apart in hue."""
    red, green, blue = colorsys.hsv_to_rgb((label * 0.381966) % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def drawn(image: Image.Image, found: Any, classes: list[str]) -> str:
    """A PNG, as base64, of an image (RGB) with its `Boxes` or `Mask`."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
    if isinstance(found, Mask):
        canvas = _painted(canvas, found)
    else:
        _outlined(canvas, found, scale, classes)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _painted(canvas: Image.Image, mask: Mask) -> Image.Image:
    """Class 0 is the ground and stays as it is; pixels without a class are grey."""
    table = np.zeros((256, 3), np.uint8)
    for label in range(1, 255):
        table[label] = colour(label)
    table[IGNORE] = 128
    colours = Image.fromarray(table[mask.classes]).resize(canvas.size, Image.Resampling.NEAREST)
    there = Image.fromarray(((mask.classes != 0) * np.uint8(160)).astype(np.uint8)).resize(
        canvas.size, Image.Resampling.NEAREST
    )
    return Image.composite(colours, canvas, there)


def _outlined(canvas: Image.Image, boxes: Boxes, scale: float, classes: list[str]) -> None:
    pen = ImageDraw.Draw(canvas)
    for corners, label, score in zip(boxes.boxes * scale, boxes.labels, boxes.scores, strict=True):
        left, top, right, bottom = (float(side) for side in corners)
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour(int(label)), width=2)
        words = classes[int(label)][:12] + (f": {score:.0%}" if score < 1 else "")
        words = words.encode("ascii", "replace").decode()  # the font that Pillow carries knows no more
        place = (left + 2, max(0.0, top - 11))
        pen.rectangle(pen.textbbox(place, words), fill=(0, 0, 0))
        pen.text(place, words, fill=colour(int(label)))
