"""Damage to pixels that the decoders do not report is found; sound pictures of the same formats are read."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_ray.views.decode import open_rgb
from tests.pictures import encoded, halves

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8))
FLAT = Image.new("L", (1500, 1500))


def zeros_from(data: bytes, share: float) -> bytes:
    """A file of which the rest was never copied."""
    start = int(len(data) * share)
    return data[:start] + bytes(len(data) - start)


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size."""
    return jpeg.replace(struct.pack(">HH", 20, 40), struct.pack(">HH", height, width), 1)


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("format", ["JPEG", "MPO", "PNG", "WEBP", "AVIF"])
def test_a_file_that_ends_in_zeros_is_refused(format: str, share: float) -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        open_rgb(zeros_from(encoded(NOISE, format), share))


def test_a_jpeg_too_small_for_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes cannot hold 9000 x 9000 pixels"):
        open_rgb(resized(encoded(halves(), "JPEG"), 9000, 9000))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"quality": 1}])
def test_a_flat_jpeg_is_read(options: dict[str, Any]) -> None:
    assert open_rgb(encoded(FLAT, "JPEG", **options)).size == FLAT.size


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_zeros_behind_a_picture_do_no_harm(format: str) -> None:
    assert open_rgb(encoded(NOISE, format) + bytes(5000)).size == NOISE.size


def test_metadata_that_ends_in_zeros_does_no_harm() -> None:
    exif = Image.Exif()
    exif[0x9286] = bytes(4000)
    assert open_rgb(encoded(NOISE, "WEBP", exif=exif.tobytes())).size == NOISE.size
