"""Find damage to the pixels that the decoders do not report: blocks of zeros where copying stopped, and missing ends."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

from PIL import Image

from ssl_ray.views.metadata import START_OF_SCAN, jpeg_segments, png_chunks

END_OF_JPEG = b"\xff\xd9"
PIXELS_PER_BYTE = 512
"""Largest compression of a JPEG: a block of 64 pixels takes at least one bit."""

ARITHMETIC = range(0xC9, 0xCC)
"""Frames of JPEG whose blocks may take less than one bit."""

ZERO_TAIL = bytes(1024)
"""End of a file that was not copied in full. The compressed pixels of WebP, AVIF and HEIC do not end like this."""


def damage_of(image: Image.Image, data: bytes) -> str:
    """Return the damage to the pixels of an opened picture; empty if none is found."""
    if image.format in ("JPEG", "MPO"):
        return _damage_of_jpeg(image, data)
    if image.format == "PNG" and not all(map(_is_intact, png_chunks(data))):
        return "a checksum of its pixels is wrong"
    if image.format == "WEBP":
        data = data[: 8 + int.from_bytes(data[4:8], "little")]
    if image.format in ("WEBP", "AVIF", "HEIF") and data.endswith(ZERO_TAIL):
        return "it ends in zeros, as if it had not been copied in full"
    return ""


def _damage_of_jpeg(image: Image.Image, data: bytes) -> str:
    with suppress(struct.error, IndexError):
        markers = {marker: stop for marker, _, stop in jpeg_segments(data)}
        if START_OF_SCAN in markers and data.find(END_OF_JPEG, markers[START_OF_SCAN]) < 0:
            return "its end is missing, as if it had not been copied in full"
        if markers.keys().isdisjoint(ARITHMETIC) and len(data) * PIXELS_PER_BYTE < image.width * image.height:
            return f"{len(data):,} bytes cannot hold {image.width} x {image.height} pixels"
    return ""


def _is_intact(chunk: tuple[bytes, bytes]) -> bool:
    """Return whether a chunk of a PNG is not of pixels, is cut short (which the decoder reports), or fits its checksum."""
    kind, data = chunk
    is_whole = len(data) == 12 + int.from_bytes(data[:4], "big")
    return kind != b"IDAT" or not is_whole or int.from_bytes(data[-4:], "big") == zlib.crc32(data[4:-4])
