"""Whatever a heap of images holds: decoded as a person sees it, or refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_ray.data.shards import decode_all
from ssl_ray.views.decode import Preprocess, open_rgb, whole


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def png_header(width: int, height: int) -> bytes:
    """A valid PNG that claims a size and holds next to nothing: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


class TestKept:
    def test_cmyk(self) -> None:
        image = open_rgb(encoded(halves().convert("CMYK"), "JPEG", quality=95))
        assert image.mode == "RGB"
        assert np.asarray(image)[10, 5, 0] > 200

    def test_sixteen_bits_are_scaled_not_cut_off(self) -> None:
        ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
        found = np.asarray(open_rgb(encoded(Image.fromarray(ramp))))[..., 0]
        np.testing.assert_allclose(found, np.arange(256).reshape(16, 16), atol=1)

    def test_the_first_frame_of_an_animation(self) -> None:
        frames = [halves(), Image.new("RGB", (40, 20), "white")]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        found = np.asarray(open_rgb(data))
        assert found[10, 5, 0] > 200
        assert found[10, 5, 1] < 50

    def test_upright_as_exif_says(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3  # upside down
        image = np.asarray(open_rgb(encoded(halves(), "JPEG", exif=exif, quality=95)))
        assert image[10, 5, 2] > 200, "what is stored on the right stands on the left"

    def test_transparency_and_palette(self) -> None:
        assert open_rgb(encoded(halves().convert("RGBA"))).mode == "RGB"
        assert np.asarray(open_rgb(encoded(halves().convert("P"))))[10, 5, 0] > 200

    def test_one_pixel(self) -> None:
        pixels = whole(open_rgb(encoded(Image.new("RGB", (1, 1), (9, 99, 199)))), Preprocess(size=8))
        assert (pixels == (9, 99, 199)).all()

    def test_long_and_thin(self) -> None:
        image = Image.new("RGB", (20_000, 4), (10, 20, 30))
        assert whole(open_rgb(encoded(image)), Preprocess(size=16)).shape == (16, 16, 3)

    @pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
    def test_formats(self, format: str) -> None:
        assert open_rgb(encoded(halves(), format)).size == (40, 20)


class TestRefused:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "no data"),
            (b"GIF89a", "cannot be decoded"),
            (encoded(halves())[:60], "cannot be decoded"),
            (encoded(Image.effect_noise((200, 200), 60).convert("RGB"), "JPEG")[:4000], "cannot be decoded"),
            (b"<svg></svg>", "cannot be decoded"),
            (png_header(60_000, 60_000), "pixels"),
            (png_header(13_500, 13_500), "182250000 pixels|more than"),
            (b"\xff\xd8\xff" + b"\0" * 100, "cannot be decoded"),
        ],
        ids=["empty", "header only", "cut png", "cut jpeg", "svg", "bomb", "small bomb", "zeros"],
    )
    def test_with_one_line(self, data: bytes, reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as caught:
            open_rgb(data)
        assert "\n" not in str(caught.value)

    def test_neighbours_live(self) -> None:
        data = [encoded(halves()), b"", encoded(halves()), b"x" * 10]
        images, failures = decode_all(data, Preprocess(size=8))
        assert [position for position, _ in failures] == [1, 3]
        assert images[0].any()
        assert images[2].any()
        assert not images[1].any()


def test_random_damage_never_raises_anything_else() -> None:
    """A few thousand broken files: each is decoded or refused, and nothing else happens."""
    good = [encoded(halves(), format) for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")]
    draw = np.random.default_rng(0)
    refused = 0
    for number in range(1500):
        data = bytearray(good[number % len(good)])
        for _ in range(int(draw.integers(1, 8))):
            data[int(draw.integers(len(data)))] = int(draw.integers(256))
        try:
            whole(open_rgb(bytes(data[: int(draw.integers(1, len(data) + 1))])), Preprocess(size=8))
        except ValueError:
            refused += 1
    assert refused > 300
