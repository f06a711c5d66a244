"""Convert any picture to RGB with 8 bits: put transparent pixels over a background, scale deep pixels to a range.

Deep pictures are gray ones with more than 8 bits per pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from ssl_ray.config import Config

Channel = Annotated[int, Field(ge=0, le=255)]


class Decoding(Config):
    """Settings of decoding that a file does not determine. They belong to a corpus and to the models trained on it."""

    background: tuple[Channel, Channel, Channel] = (255, 255, 255)  # below transparent pixels: red, green, blue
    # Values that become black and white in deep pictures; None: the full range of 12 or 16 bits, 0 to 1 of floating point.
    range: tuple[float, float] | None = None

    @field_validator("range")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (np.isfinite(value).all() and value[0] < value[1]):
            raise ValueError("range takes two finite numbers, the smaller one first, for example [0, 4095]")
        return value


RANGE_USED = "ssl_ray range used"
"""Key in `info` of a picture decoded from more than 8 bits: the share of the range that its values span."""

ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
SIXTEEN_BITS, TWELVE_BITS = (0.0, 65535.0), (0.0, 4095.0)
GRAY_STEPS = {"L;2": 85, "L;4": 17}
"""Factors by which Pillow scales gray values of 2 and 4 bits to 8. It does not scale the transparent value."""

WHITE_IS_ZERO, PHOTOMETRIC, SAMPLE_FORMAT = 0, 262, 339
"""A value of the tag PHOTOMETRIC, and two tags of TIFF."""

UNSIGNED, SIGNED = 1, 2
"""Values of the tag SAMPLE_FORMAT."""

BAND_PIXELS = 2**22
"""Number of pixels of a deep picture that are converted at a time."""


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the layout of the pixels in the file. Call it before the picture is loaded."""
    tiles: Any = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else ""


def is_deep(image: Image.Image) -> bool:
    """Return whether this is a gray picture with more than 8 bits per pixel, or with signed values."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or _is_signed_byte(image)


def _is_signed_byte(image: Image.Image) -> bool:
    """Return whether the pixels are signed bytes, which Pillow reads as unsigned ones."""
    return image.mode == "L" and _sample_format(image) == SIGNED


def _sample_format(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0])


def has_alpha(image: Image.Image) -> bool:
    """Return whether pixels of a picture may be transparent."""
    return image.mode in ALPHA_MODES or "transparency" in image.info


def to_rgb(image: Image.Image, raw: str, decoding: Decoding) -> Image.Image:
    """Convert a loaded picture to RGB with 8 bits.

    Args:
        raw: its `raw_mode`.

    Raises:
        ValueError: the range of deep pixels is unknown, or `range` is set for colors with 16 bits.
    """
    transparent = image.info.get("transparency")
    used: float | None = None
    if is_deep(image):
        key = np.asarray(image) == transparent if isinstance(transparent, int) else None
        image = _ramp(image, raw, decoding)
        used = _range_used(image)
        if key is not None:
            image.putalpha(Image.fromarray(np.where(key, 0, 255).astype(np.uint8)))
    elif ";16" in raw:
        if decoding.range is not None:
            raise ValueError("images.range holds for gray pictures; of colors with 16 bits, 8 are read: leave images.range out")
        used = _range_used(image)
        if isinstance(transparent, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
    elif isinstance(transparent, int) and raw in GRAY_STEPS:
        image.info["transparency"] = transparent * GRAY_STEPS[raw] & 255
    if has_alpha(image):
        image = _over(image, decoding.background)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if used is not None:
        image.info[RANGE_USED] = used
    return image


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Put a picture over a background of one color."""
    if image.mode in ("La", "RGBa"):  # colors are already multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    ground = Image.new("RGB", image.size, background)
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _ramp(image: Image.Image, raw: str, decoding: Decoding) -> Image.Image:
    """Scale deep pixels to gray with 8 bits, from black to white over a range."""
    tags: Any = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if image.mode == "I" and raw.startswith("I;32") and _sample_format(image) == UNSIGNED:
        values = values.view(np.uint32)  # Pillow reads unsigned integers as signed
    elif _is_signed_byte(image):
        values = values.view(np.int8)
    low, high = decoding.range or _usual_range(image, raw, values)
    gray = np.empty(values.shape, np.uint8)
    for rows in _bands(values):
        part = (values[rows].astype(np.float64 if image.mode == "I" else np.float32) - low) * (255 / (high - low))
        gray[rows] = np.rint(np.nan_to_num(part, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        np.subtract(255, gray, out=gray)
    return Image.fromarray(gray)


def _usual_range(image: Image.Image, raw: str, values: np.ndarray) -> tuple[float, float]:
    """Return the values that become black and white if `range` is not set."""
    if raw.startswith("I;12"):
        return TWELVE_BITS
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        return SIXTEEN_BITS
    found = [part[np.isfinite(part)] for part in (values[rows] for rows in _bands(values))]
    ends = [(part.min(), part.max()) for part in found if part.size]
    if not ends:
        raise ValueError("none of its pixels is a number")
    low, high = (float(min(low for low, _ in ends)), float(max(high for _, high in ends)))
    if image.mode == "F" and low >= 0 and high <= 1:
        return 0.0, 1.0
    kind = "floating-point numbers outside of 0 to 1" if image.mode == "F" else "integers of 32 bits, or with a sign"
    raise ValueError(
        f"its pixels are {kind} ({low:g} to {high:g}), and nothing tells what is black and white; say so, for example with "
        f"--set images.range=[{low:g},{high if high > low else low + 1:g}]"
    )


def _bands(values: np.ndarray) -> Iterator[slice]:
    rows = max(1, BAND_PIXELS // max(1, values.shape[1]))
    return (slice(top, top + rows) for top in range(0, len(values), rows))


def _range_used(image: Image.Image) -> float:
    """Return the share of 0 to 255 that the values of the widest channel span; alpha does not count."""
    ends: Any = image.getextrema()
    ends = ends if isinstance(ends[0], tuple) else (ends,)
    colors = ends[:-1] if image.mode in ALPHA_MODES else ends
    return float(max(high - low for low, high in colors) / 255)
