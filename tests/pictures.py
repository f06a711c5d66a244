"""Encoded pictures of many kinds, built by hand where no library writes them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def halves(width: int = 40, height: int = 20) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def xmp(orientation: int, quote: str = '"') -> bytes:
    return f"<x:xmpmeta><rdf:Description tiff:Orientation={quote}{orientation}{quote}/></x:xmpmeta>".encode()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(png: bytes, kind: bytes, data: bytes, late: bool = False) -> bytes:
    """A PNG with one more chunk, before or behind its pixels."""
    place = png.rindex(b"IEND") - 4 if late else 33
    return png[:place] + png_chunk(kind, data) + png[place:]


def profile(kind: str, data: bytes) -> bytes:
    """The text chunk in which ImageMagick keeps metadata."""
    return f"Raw profile type {kind}\0\n{kind}\n{len(data):8}\n{data.hex()}\n".encode()


def png(width: int, height: int, depth: int, color: int, rows: list[bytes], *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, *, photometric: int = 1, sample_format: int = 1, extra: int | None = None) -> bytes:
    """An uncompressed TIFF, little endian, of pixels [H, W] or [H, W, C]."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    entries: list[tuple[int, list[int]]] = [
        (256, [width]),
        (257, [height]),
        (258, [pixels.dtype.itemsize * 8] * channels),
        (259, [1]),
        (262, [photometric]),
        (273, [0]),  # where the pixels begin
        (277, [channels]),
        (278, [height]),
        (279, [pixels.nbytes]),
        (339, [sample_format] * channels),
    ]
    entries += [(338, [extra])] if extra is not None else []
    entries.sort()
    place = 8 + 2 + 12 * len(entries) + 4
    long, directory = b"", b""
    pixels_at = place + sum(4 * len(values) for _, values in entries if len(values) > 1)
    for tag, values in entries:
        values = [pixels_at] if tag == 273 else values
        if len(values) == 1:
            directory += struct.pack("<HHII", tag, 4, 1, values[0])
        else:
            directory += struct.pack("<HHII", tag, 4, len(values), place + len(long))
            long += struct.pack(f"<{len(values)}I", *values)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + struct.pack("<I", 0) + long + pixels.tobytes()


def ramp(low: float, high: float, dtype: Any) -> np.ndarray:
    """Values from the upper left to the lower right, [64, 64]."""
    return np.linspace(low, high, 64 * 64).reshape(64, 64).astype(dtype)
