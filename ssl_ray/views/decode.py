"""Encoded bytes -> uint8 pixels. Every image that a model sees, in training or in labelling, comes through here."""

from __future__ import annotations

import io
import warnings
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from ssl_ray.config import Config

MAX_PIXELS = 178_956_970
"""Twice Pillow's warning level, where Pillow itself begins to refuse: a decompression bomb."""


ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that change width and height."""

UPRIGHT = ("JPEG", "PNG", "WEBP", "TIFF")
"""Formats that can carry an EXIF orientation."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS decides


class Preprocess(Config):
    """How an image becomes the net's input when nothing is random: in labelling, evaluation and inference."""

    size: Annotated[int, Field(ge=8)] = 28  # pixels, square
    # whole: resized to the square; center: its middle; fit: all of it at its own aspect, in the upper left corner.
    crop: Literal["whole", "center", "fit"] = "whole"
    crop_share: Annotated[float, Field(gt=0, le=1)] | None = None  # of the short side; None: size / (size + 32), released code
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


def open_rgb(data: bytes) -> Image.Image:
    """Decode to RGB: the first frame, upright as its EXIF tag says, 16 bits scaled to 8, transparency left out.

    Raises:
        ValueError: not an image, cut short, or too large; the message is one line.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than the {MAX_PIXELS} allowed")
        if image.format in UPRIGHT and image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode == "I":  # Pillow would cut everything over 255 off
            deep = np.asarray(image, np.float32)
            image = Image.fromarray((deep / 257.0).clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, EOFError
        what = "no data" if not data else str(error).replace("\n", " ")
        raise ValueError(f"cannot be decoded: {what}") from None


def upright_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that `open_rgb` will give, from the first bytes of a file; None: it does not begin like an image."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            tagged = image.format == "TIFF" or "exif" in image.info  # asked otherwise, Pillow would decode a PNG for its tags
            turned = tagged and image.format in UPRIGHT and image.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (image.height, image.width) if turned else (image.width, image.height)
    except MemoryError:
        raise
    except Exception:  # as in open_rgb
        return None


def whole(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """The view without randomness: uint8 [size, size, 3].

    `center` takes the middle square of size / (size + 32) of the short side, bicubic, as the released code does at
    evaluation, or of `crop_share`; `whole` takes all of the image; `fit` keeps its aspect, and fills what is left over at the
    right or below with the mean colour.
    """
    size = preprocess.size
    if preprocess.crop == "fit":
        inner = fit_size(*image.size, size)
        square = np.empty((size, size, 3), np.uint8)
        square[:] = mean_colour(preprocess)
        if image.size != inner:
            image = image.resize(inner, Image.Resampling[preprocess.interpolation.upper()])
        square[: inner[1], : inner[0]] = np.asarray(image, np.uint8)
        return square
    box = None
    if preprocess.crop == "center":
        side = (preprocess.crop_share or size / (size + 32)) * min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    if image.size != (size, size) or box is not None:
        image = image.resize((size, size), Image.Resampling[preprocess.interpolation.upper()], box=box)
    return np.asarray(image, np.uint8)


def fit_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height of an image whose longer side is brought to `size`; at least one pixel each."""
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def mean_colour(preprocess: Preprocess) -> np.ndarray:
    """uint8 [3]: what normalisation takes to zero."""
    return np.round(np.array(preprocess.mean) * 255).astype(np.uint8)


def resized_crop(image: Image.Image, size: int, draw: np.random.Generator, least: float = 0.08) -> np.ndarray:
    """The Inception crop: a share of `least` to 1 of the area at an aspect of 3/4 to 4/3, uint8 [size, size, 3].

    Ten tries, then the middle: the usual form of ImageNet training, which the released code uses too.
    """
    width, height = image.size
    for _ in range(10):
        area = draw.uniform(least, 1.0) * width * height
        aspect = np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(0, width - w + 1)), int(draw.integers(0, height - h + 1))
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box), np.uint8)
